#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "image_file.hpp"
#include "manifest.hpp"

namespace lockstep {
namespace {

SaverOptions checked(SaverOptions options) {
  if (options.max_to_keep < 0) {
    throw UsageError(fmt::format("max_to_keep is {}; give the number of checkpoints to keep, or 0 for all",
                                 options.max_to_keep));
  }
  if (!(options.keep_checkpoint_every_n_hours >= 0) || std::isinf(options.keep_checkpoint_every_n_hours)) {
    throw UsageError(fmt::format("keep_checkpoint_every_n_hours is {}; give hours, or 0 for none",
                                 options.keep_checkpoint_every_n_hours));
  }
  // Room for the step, suffixes and what a name set aside gets.
  constexpr std::size_t kMaxBasename = 64;
  if (!is_plain_name(options.basename) || options.basename.size() > kMaxBasename) {
    throw UsageError(
        fmt::format("checkpoint basename '{}' is no plain name; use at most {} letters, digits, '.', "
                    "'_', '-'",
                    options.basename, kMaxBasename));
  }
  return options;
}

/// The exception being handled, with another message where it is one of ours.
std::exception_ptr told_again(const std::string& message) {
  try {
    try {
      throw;
    } catch (const Error& error) {
      throw_error(error.exit_code(), message);
    }
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace

Saver::Saver(std::shared_ptr<Directory> directory, std::vector<Entry> entries, SaverOptions options,
             Clock& clock, Executor& executor, Log log, std::uint64_t token, ProcessIdentity& identity,
             std::optional<ShardTable> shards)
    : directory_(std::move(directory)),
      shards_(std::move(shards)),
      manifest_(shards_ ? std::make_unique<Manifest>(std::move(entries), *shards_, options.basename)
                        : nullptr),
      image_(manifest_ ? manifest_->entries() : std::move(entries)),
      options_(checked(std::move(options))),
      clock_(clock),
      log_(std::move(log)),
      token_(token),
      identity_(identity) {
  for (const Entry& entry : image_.entries()) {
    if (entry.path == "/session/global_step")
      global_step_ = reinterpret_cast<const std::int64_t*>(entry.data);
  }
  state_ = load_state(*directory_, options_.basename, log_, options_.key.get());
  if (state_.checkpoints.empty()) state_.last_preserved = clock_.wall_seconds();
  if (!state_.checkpoints.empty()) {
    const CheckpointRecord& newest = state_.checkpoints.back();
    if (const double ahead = newest.time - clock_.wall_seconds(); ahead > kClockStepSeconds) {
      log_.warn(
          fmt::format("the clock runs backwards: {} was saved {:.0f} s from now; checkpoints go by their "
                      "steps, and where "
                      "one is kept every so many hours, one too many stays",
                      newest.file, ahead));
    }
  }
  remove_leftovers();
  fence();
  if (directory_->others_may_write()) {
    log_.warn(
        fmt::format("'{}' can be written by other users, who can then exchange checkpoints; close it "
                    "(chmod go-w), or sign checkpoints with a key",
                    directory_->path().string()));
  }
  worker_ = executor.start("saver");
}

Saver::~Saver() = default;

void Saver::fence() {
  if (token_ <= state_.token || state_.checkpoints.empty()) return;
  state_.token = token_;
  write_state_file(*directory_, state_, options_.key.get());
}

void Saver::remove_leftovers() {
  for (const DirectoryEntry& entry : directory_->list()) {
    const bool checkpoint = is_temporary_checkpoint(options_.basename, entry.name);
    if (!checkpoint && !entry.name.starts_with(".probe.tmp.") &&
        entry.name != "." + std::string(kStateFileName) + ".tmp") {
      continue;
    }
    if (checkpoint) {
      log_.info(fmt::format("removing {}, an unfinished checkpoint of a job that is gone", entry.name));
    }
    try {
      directory_->remove(entry.name);
    } catch (const FileError& error) {
      log_.warn(error.what());
    }
  }
  try {
    for (const std::string& name :
         remove_orphaned_shards(*directory_, options_.basename, options_.key.get())) {
      log_.info(fmt::format("removed {}, a shard that no checkpoint names", name));
    }
  } catch (const FileError& error) {
    log_.warn(error.what());
  }
}

bool Saver::start(std::int64_t step, Metric metric, std::uint64_t save) {
  if (underway_) throw InternalError("a save begins while shards of the one before are written");
  if (busy()) {
    log_.warn(
        fmt::format("the save of step {} is still running; training waits for it before step {} is saved",
                    running_step_, step));
  }
  worker_->wait();
  const Seconds started = clock_.now();
  if (manifest_) manifest_->hold();
  if (global_step_ != nullptr && *global_step_ != step) {
    throw InternalError(fmt::format("step {} is to be saved as step {}", *global_step_, step));
  }
  if (const Entry* bad = image_.snapshot()) {
    log_.error(
        fmt::format("step {} is not saved: '{}' has values that are not finite; the newest checkpoint stays "
                    "the last good one",
                    step, bad->path));
    return false;
  }
  running_step_ = step;
  busy_.store(true);
  Stamp stamp{step, token_, 0, std::move(metric)};
  if (manifest_) {
    underway_ = Underway{std::move(stamp), save, started};
    return true;
  }
  worker_->post([this, stamp = std::move(stamp), nonce = identity_.nonce(), started] {
    run(stamp, nonce, started, nullptr);
  });
  return true;
}

void Saver::commit() {
  if (!underway_) return;
  worker_->post([this, save = *std::exchange(underway_, std::nullopt), nonce = identity_.nonce()] {
    run(save.stamp, nonce, save.started, &save);
  });
}

void Saver::abandon(const std::string& reason) {
  if (!underway_) return;
  SaveResult result;
  result.step = underway_->stamp.step;
  try {
    throw IoError(reason);
  } catch (const std::exception& error) {
    fail(result, error);
  }
  underway_.reset();
  {
    const std::lock_guard guard(mutex_);
    results_.push_back(std::move(result));
  }
  busy_.store(false);
}

void Saver::wait() {
  worker_->wait();
  const std::lock_guard guard(mutex_);
  const auto failed =
      std::find_if(results_.begin(), results_.end(), [](const SaveResult& result) { return !result.ok(); });
  if (failed == results_.end()) return;
  const std::exception_ptr error = failed->error;
  results_.erase(failed);
  std::rethrow_exception(error);
}

std::optional<SaveResult> Saver::take_result() {
  const std::lock_guard guard(mutex_);
  if (results_.empty()) return std::nullopt;
  SaveResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

Seconds Saver::slow_save() const {
  constexpr double kGuess = 100e6;  // bytes a second: a busy shared file system
  constexpr double kSlow = 0.99;
  const std::lock_guard guard(mutex_);
  if (seconds_.empty()) return Seconds(static_cast<double>(image_.bytes().size()) / kGuess);
  const double rank = std::ceil(kSlow * static_cast<double>(seconds_.size()));
  return Seconds(seconds_[static_cast<std::size_t>(rank) - 1]);
}

std::optional<std::int64_t> Saver::last_durable_step() const {
  const std::lock_guard guard(mutex_);
  return last_durable_step_;
}

std::vector<CheckpointRecord> Saver::checkpoints() const {
  const std::lock_guard guard(mutex_);
  return state_.checkpoints;
}

void Saver::run(const Stamp& stamp, std::uint64_t nonce, Seconds started, const Underway* sharded) noexcept {
  const std::int64_t step = stamp.step;
  SaveResult result;
  result.step = step;
  named_ = false;
  try {
    if (sharded != nullptr) take_in_shards(*sharded);
    result.name = publish(stamp, nonce);
    result.bytes = written_.bytes + (shards_ ? shards_->bytes : 0);
    result.seconds = clock_.now() - started;
    result.message = fmt::format("saved checkpoint {} (step {}, {} bytes, {:.3f} s)", result.name, step,
                                 result.bytes, result.seconds.count());
    {
      const std::lock_guard guard(mutex_);
      last_durable_step_ = std::max(last_durable_step_.value_or(step), step);
      seconds_.insert(std::upper_bound(seconds_.begin(), seconds_.end(), result.seconds.count()),
                      result.seconds.count());
    }
    // Named in the state file before it is acknowledged: a host whose listing of the directory is old finds
    // it there.
    const auto superseded = note_saved(result.name);
    log_.info(result.message);
    remove(superseded);
  } catch (const std::exception& error) {
    if (sharded != nullptr && !named_) remove_shards(sharded->save);
    fail(result, error);
  }
  {
    const std::lock_guard guard(mutex_);
    results_.push_back(std::move(result));
  }
  busy_.store(false);
}

/// Called where `error` is handled.
void Saver::fail(SaveResult& result, const std::exception& error) {
  // What is in the directory now is not known for sure: a name may be there that was not synced.
  rescan_ = true;
  const std::lock_guard guard(mutex_);
  result.message = fmt::format(
      "the checkpoint of step {} was not saved: {}; {}, and the next save tries anew", result.step,
      error.what(),
      state_.checkpoints.empty()
          ? "there is no earlier checkpoint"
          : fmt::format("earlier checkpoints are as they were (newest: {})", state_.checkpoints.back().file));
  result.error = told_again(result.message);
  log_.error(result.message);
}

/// What the manifest says of the shards is what this host finds in the directory.
void Saver::take_in_shards(const Underway& save) {
  for (std::size_t k = 0; k < shards_->count; ++k) {
    const std::string name = shard_name(options_.basename, save.save, static_cast<int>(k));
    try {
      const Trailer trailer = read_trailer(*directory_->open(name), name);
      if (trailer.step != save.stamp.step || trailer.token != token_) {
        throw DataError(fmt::format("{} is of step {} and token {}", name, trailer.step, trailer.token));
      }
      manifest_->set(k, {name, trailer.file_bytes, trailer.digest.hex()});
    } catch (const FileError& error) {
      if (error.code() != ENOENT) throw;
      throw IoError(
          fmt::format("the chief does not see {}, which another rank has written; '{}' must be one "
                      "directory on all nodes",
                      name, directory_->path().string()));
    }
  }
  image_.snapshot();
}

void Saver::remove_shards(std::uint64_t save) noexcept {
  for (std::size_t k = 0; k < shards_->count; ++k) {
    try {
      const std::string name = shard_name(options_.basename, save, static_cast<int>(k));
      if (directory_->exists(name)) directory_->remove(name);
    } catch (const FileError& error) {
      log_.warn(error.what());
    }
  }
}

std::string Saver::publish(Stamp stamp, std::uint64_t nonce) {
  const std::int64_t step = stamp.step;
  CheckpointName name{step, 0};
  for (const FoundCheckpoint& found : scan_checkpoints(*directory_, options_.basename, state_)) {
    if (found.name.step != step) continue;
    name.suffix = found.name.suffix + 1;  // the list is in order: ends one above the highest
  }
  while (directory_->exists(to_file_name(options_.basename, name))) ++name.suffix;  // not listed yet
  if (name.suffix > 0) {
    const CheckpointName highest{step, name.suffix - 1};
    const FoundCheckpoint existing{highest, to_file_name(options_.basename, highest), 0};
    if (holds_same(existing, step)) {
      directory_->sync();  // whoever gave it its name may not have come to this
      log_.info(fmt::format("{} already holds just this", existing.file));
      return existing.file;
    }
  }
  const std::string temporary = temporary_name(to_file_name(options_.basename, name), nonce);
  try {
    stamp.saved_at = clock_.wall_seconds();
    written_ = record_of("", write_image_file(*directory_, temporary, image_, stamp, options_.key.get(),
                                              options_.verify_after_write));
    check_owner();
    written_.file = to_file_name(options_.basename, name);
    named_ = true;
    directory_->rename(temporary, written_.file);
  } catch (...) {
    try {
      if (directory_->exists(temporary)) directory_->remove(temporary);
    } catch (const FileError& error) {
      log_.warn(error.what());
    }
    throw;
  }
  directory_->sync();
  // Slept through the loss of the directory just now: what readers will not take must not be acknowledged.
  check_owner();
  return written_.file;
}

/// True when the file is whole and has the content that is about to be saved.
bool Saver::holds_same(const FoundCheckpoint& existing, std::int64_t step) {
  try {
    const auto file = directory_->open(existing.file);
    const VerifiedImage stored =
        read_verified(*file, existing.file, image_.bytes().size(), options_.key.get());
    if (stored.trailer.step != step || !std::ranges::equal(stored.image(), image_.bytes())) return false;
    // One that a later owner has passed over would be passed over by a reader, too.
    const std::lock_guard guard(mutex_);
    for (const CheckpointRecord& record : state_.checkpoints) {
      if (record.token > stored.trailer.token) return false;
    }
    written_ = record_of(existing.file, stored.trailer);
    return true;
  } catch (const Error&) {
    return false;  // damaged or unreadable: it stays, and ours gets a higher suffix
  }
}

/// A job that was stopped for so long that another took over must not publish anything more; and nobody finds
/// what is written to a directory that is not there any more.
void Saver::check_owner() const {
  if (!directory_->is_at_its_path()) {
    throw IoError(
        fmt::format("'{}' is not the directory any more that this job writes to: it was moved or "
                    "removed, or a disk was taken away or put over it",
                    directory_->path().string()));
  }
  if (token_ == 0) return;
  const auto holder = read_lock(*directory_);
  if (holder && holder->token == token_) return;
  throw EnvironmentError(holder ? fmt::format("the directory was taken over by {}", describe(*holder))
                                : "the directory is not this job's any more: its lock is gone");
}

/// Writes the state file after a save and returns what may be deleted. Nothing here can make the save fail:
/// the state file is a hint, and what was not deleted is deleted next time.
std::vector<std::string> Saver::note_saved(const std::string& current) {
  try {
    StateFile state;
    {
      const std::lock_guard guard(mutex_);
      state = state_;
    }
    if (rescan_) {
      const auto last_preserved = state.last_preserved;
      state = load_state(*directory_, options_.basename, log_, options_.key.get());
      state.last_preserved = last_preserved;
      state.token = std::max(state.token, token_);
      rescan_ = false;
    }
    std::erase_if(state.checkpoints, [&](const CheckpointRecord& record) { return record.file == current; });
    state.checkpoints.push_back(written_);
    state.token = std::max(state.token, token_);
    std::ranges::sort(state.checkpoints, {}, [&](const CheckpointRecord& record) {
      return parse_file_name(options_.basename, record.file);
    });
    const RetentionPlan plan = plan_retention(
        state, current, {options_.max_to_keep, options_.keep_checkpoint_every_n_hours, options_.keep_best});
    {
      const std::lock_guard guard(mutex_);
      state_ = plan.state;
    }
    write_state_file(*directory_, plan.state, options_.key.get());
    return plan.remove;
  } catch (const std::exception& error) {
    rescan_ = true;
    log_.warn(
        fmt::format("the checkpoint is safe, but what follows a save failed: {}; it is made up for after "
                    "the next save",
                    error.what()));
  }
  return {};
}

/// Of a manifest that is to go. Of one that is damaged nobody knows: the next owner removes what it named.
std::vector<std::string> Saver::shards_beside(const std::string& name) {
  try {
    return shards_of(*directory_, name, options_.key.get());
  } catch (const DataError&) {
    return {};
  }
}

void Saver::remove(const std::vector<std::string>& superseded) {
  for (const std::string& name : superseded) {
    try {
      const auto shards = shards_beside(name);
      directory_->remove(name);
      if (shards.empty()) continue;
      directory_->sync();  // never a name whose shards are gone
      for (const std::string& shard : shards) directory_->remove(shard);
    } catch (const FileError& error) {
      if (error.code() == ENOENT) continue;
      log_.warn(fmt::format("{}; it is removed after the next save", error.what()));
      rescan_ = true;
    }
  }
}

}  // namespace lockstep
