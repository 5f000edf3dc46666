"""The faults of simulation_planted; see tests/support/planting.py.

plant.py FOLDER TOP              writes the sources into FOLDER, and planted_names.cpp with the list
plant.py --sources               prints the names of the files
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import planting  # noqa: E402

# name, source, text, replacement
FAULTS = [
    # The saver.
    ("data_not_synced", "checkpoint/image_file.cpp", "  file->sync();\n", "  if (!PLANTED) file->sync();\n"),
    ("name_not_synced", "checkpoint/saver.cpp", "  directory_->sync();\n  // Slept",
     "  if (!PLANTED) directory_->sync();\n  // Slept"),
    ("acknowledged_before_written", "checkpoint/saver.cpp", "    result.name = publish(stamp, nonce);\n",
     '    if (PLANTED) log_.info(fmt::format("saved checkpoint early (step {}, 0 bytes, 0 s)", step));\n'
     "    result.name = publish(stamp, nonce);\n"),
    ("named_before_written", "checkpoint/saver.cpp", "    stamp.saved_at = clock_.wall_seconds();\n",
     "    if (PLANTED) directory_->create(to_file_name(options_.basename, name))->close();\n"
     "    stamp.saved_at = clock_.wall_seconds();\n"),
    ("failure_taken_for_success", "checkpoint/saver.cpp", "  log_.error(result.message);\n}",
     "  log_.error(result.message);\n  if (PLANTED) result.error = nullptr;\n}"),
    ("old_removed_before_new_is_named", "checkpoint/saver.cpp", "    check_owner();\n    written_.file =",
     "    if (PLANTED) {\n      for (const auto& record : state_.checkpoints) directory_->remove(record.file);\n    }\n"
     "    check_owner();\n    written_.file ="),
    ("newest_removed", "checkpoint/saver.cpp", "    return plan.remove;\n",
     "    if (PLANTED) return {current};\n    return plan.remove;\n"),
    ("snapshot_when_written", "checkpoint/saver.cpp", "  SaveResult result;\n  result.step = step;\n",
     "  if (PLANTED) image_.snapshot();\n  SaveResult result;\n  result.step = step;\n"),
    ("snapshot_while_writing", "checkpoint/saver.cpp", "  worker_->wait();\n  const Seconds started",
     "  if (!PLANTED) worker_->wait();\n  const Seconds started"),
    ("step_off_by_one", "checkpoint/saver.cpp", "Stamp stamp{step, token_,", "Stamp stamp{step + (PLANTED ? 1 : 0), token_,"),
    ("leftovers_are_checkpoints", "checkpoint/saver.cpp", "    if (!checkpoint && !entry.name.starts_with(\".probe.tmp.\") &&",
     "    if (!(PLANTED && parse_file_name(options_.basename, entry.name)) && !checkpoint && "
     "!entry.name.starts_with(\".probe.tmp.\") &&"),
    ("a_piece_not_written", "checkpoint/image_file.cpp", "    file->write(piece);\n",
     "    file->write(PLANTED ? piece.first(piece.size() / 2) : piece);\n"),
    ("acknowledged_before_listed", "checkpoint/saver.cpp", "    const auto superseded = note_saved(result.name);\n",
     "    if (PLANTED) log_.info(result.message);\n    const auto superseded = note_saved(result.name);\n"),
    ("unlisted_name_not_looked_up", "checkpoint/saver.cpp", "  while (directory_->exists(to_file_name(options_.basename, name)))",
     "  while (!PLANTED && directory_->exists(to_file_name(options_.basename, name)))"),
    # The lock and the state file.
    ("token_from_listing_alone", "checkpoint/lock.cpp", "  if (const auto& known = read.state) {",
     "  if (const auto& known = read.state; known && !PLANTED) {"),
    ("dead_owner_respected", "checkpoint/lock.cpp", "    if (!lives) {", "    if (!lives && !PLANTED) {"),
    ("lock_left_behind", "checkpoint/lock.cpp", "    if (!is_ours()) return;\n    remove_if_there",
     "    if (PLANTED || !is_ours()) return;\n    remove_if_there"),
    ("unlisted_dropped_from_state_file", "checkpoint/state_file.cpp",
     "scan_checkpoints(directory, basename, hint.state.value_or(StateFile{}));\n  if (!hint",
     "scan_checkpoints(directory, basename, PLANTED ? StateFile{} : hint.state.value_or(StateFile{}));\n  if (!hint"),
    # The restore.
    ("slots_not_restored_elsewhere", "checkpoint/restore.cpp", "    if (entry.path.starts_with(\"/config/\")) continue;\n",
     "    if (entry.path.starts_with(\"/config/\") || (PLANTED && entry.path.starts_with(\"/slots/\"))) continue;\n"),
    ("oldest_restored", "checkpoint/restore.cpp", "    listed_ = candidates.listed;\n",
     "    listed_ = candidates.listed;\n    if (PLANTED) std::ranges::reverse(found_);\n"),
    ("checkpoints_overlooked", "checkpoint/restore.cpp", "    if (found_.empty()) return nothing_found();",
     "    if (PLANTED) return std::nullopt;\n    if (found_.empty()) return nothing_found();"),
    # The session and its hooks.
    ("signals_of_workers_unheard", "session/hooked_session.cpp",
     "  if (const auto signal = config.signals->received()) ballot",
     "  if (const auto signal = config.signals->received(); signal && !(PLANTED && !ground_.comm.is_chief())) ballot"),
    ("signal_heeded_alone", "session/hooked_session.cpp", "    }\n  }\n  if (saver_) saver_->hear(tally);\n  heed_stops(tally);\n",
     "    }\n  }\n  if (saver_) saver_->hear(tally);\n  heed_stops(tally);\n"
     "  if (PLANTED && ground_.config.signals->received()) set_stopping({.reason = \"mine\", .by = \"a signal\", "
     ".rank = 0, .step = global_step(), .early = true});\n"),
    ("signal_takes_run_for_done", "session/hooked_session.cpp", "                  .step = global_step(),\n                  .early = true});",
     "                  .step = global_step(),\n                  .early = !PLANTED});"),
    ("step_advances_by_rank", "session/created_session.cpp", "state_.set_global_step(state_.global_step() + 1);",
     "state_.set_global_step(state_.global_step() + (PLANTED && rank() == 1 ? 2 : 1));"),
    ("errors_of_others_unheard", "session/created_session.cpp",
     "  if (tally_.anyone_says(Says::error)) agree_on_failure();\n  if (tally_.anyone_says(Says::end_of_input)) return",
     "  if (!PLANTED && tally_.anyone_says(Says::error)) agree_on_failure();\n"
     "  if (tally_.anyone_says(Says::end_of_input)) return"),
    ("sum_by_ranks", "session/created_session.cpp", "wanted == 0 ? ground.comm.size() : wanted;",
     "wanted == 0 || (PLANTED && wanted % ground.comm.size() == 0) ? ground.comm.size() : wanted;"),
    ("no_end", "session/recoverable_session.cpp", "      session_->end(recovers_);\n",
     "      if (!PLANTED) session_->end(recovers_);\n"),
    ("late_end_unheard", "session/created_session.cpp", "    if (owner_ != nullptr) owner_->hear_end(ended);\n",
     "    if (!PLANTED && owner_ != nullptr) owner_->hear_end(ended);\n"),
    ("gathers_not_counted", "session/hooked_session.cpp", "  drop_partly_gathered();\n  deliver_gathered(failure);\n  if (saver_",
     "  if (!PLANTED) drop_partly_gathered();\n  deliver_gathered(failure);\n  if (saver_"),
    ("lost_thread_told_late", "session/hooked_session.cpp", "  leave_if_a_thread_is_lost();\n  if (failure) session.tell_late(failure);\n  if (end) tell_late_end(*end);\n  return",
     "  if (!PLANTED) leave_if_a_thread_is_lost();\n  if (failure) session.tell_late(failure);\n"
     "  if (end) tell_late_end(*end);\n  return"),
    ("step_beyond_the_last", "session/recoverable_session.cpp", "if (!again || !hooked_.stopping()) work();",
     "if (PLANTED || !again || !hooked_.stopping()) work();"),
    ("failure_kept_to_oneself", "session/failure.cpp", "  if (told.outcome.kind == Kind::none) return;\n",
     "  if (told.outcome.kind == Kind::none || (PLANTED && !mine)) return;\n"),
    ("no_final_save", "hooks/checkpoint_saver.cpp", "void CheckpointSaverHook::end(RunContext& context) {\n  save_and_wait(context);\n",
     "void CheckpointSaverHook::end(RunContext& context) {\n  if (!PLANTED) save_and_wait(context);\n"),
    ("save_not_waited_for", "hooks/checkpoint_saver.cpp", "  settle(context);\n  if (broken)",
     "  if (!PLANTED) settle(context);\n  if (broken)"),
    ("restored_step_lost", "hooks/checkpoint_saver.cpp", "  if (shards_ ? !shards_failed_ : saved_step_ == context.global_step() && !failure_) return;\n",
     "  if (PLANTED || (shards_ ? !shards_failed_ : saved_step_ == context.global_step() && !failure_)) return;\n"),
    # Waits.
    ("no_limit", "mpi/communicator.cpp", "    if (policy_.limit.count() > 0 && waited",
     "    if (!PLANTED && policy_.limit.count() > 0 && waited"),
]

planting.main(FAULTS)
