"""The faults that the instruments must find; see tests/support/planting.py and planted_test.py.

plant.py FOLDER TOP              writes the sources into FOLDER, and planted_names.cpp with the list
plant.py --sources               prints the names of the files
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import planting  # noqa: E402

FILES, SAVER, LOCK, TRAILER = "base/files.cpp", "checkpoint/saver.cpp", "checkpoint/lock.cpp", "checkpoint/trailer.cpp"
RESTORE, READER, LATEST = "checkpoint/restore.cpp", "checkpoint/reader.cpp", "checkpoint/latest.cpp"
STATE_FILE, IDX = "checkpoint/state_file.cpp", "data/idx.cpp"

# instrument: name: what it says of it, and [(source, text, replacement)...]
FOUND_BY = {
    "kill_points": {
        "acknowledged_before_written": ("was acknowledged", [
            (SAVER, "    result.name = publish(stamp, nonce);\n",
             '    if (PLANTED) log_.info(fmt::format("saved checkpoint early (step {}, 0 bytes, 0 s)", step));\n'
             "    result.name = publish(stamp, nonce);\n")]),
        "earlier_removed_after_a_failure": ("was acknowledged", [
            (SAVER, "  rescan_ = true;\n  const std::lock_guard guard(mutex_);\n  result.message",
             "  rescan_ = true;\n  const std::lock_guard guard(mutex_);\n  try {\n"
             "    if (PLANTED) {\n      for (const auto& record : state_.checkpoints) directory_->remove(record.file);\n    }\n"
             "  } catch (const FileError&) {\n  }\n  result.message")]),
        "shards_removed_first": ("has the name of a checkpoint and is none", [
            (SAVER, "      const auto shards = shards_beside(name);\n      directory_->remove(name);\n",
             "      const auto shards = shards_beside(name);\n"
             "      if (PLANTED) {\n        for (const std::string& shard : shards) directory_->remove(shard);\n      }\n"
             "      directory_->remove(name);\n")]),
        "retired_not_told": (".superseded-1 is there", [
            ("checkpoint/retention.cpp", "        plan.state.retired.push_back(",
             "        if (!PLANTED) plan.state.retired.push_back(")]),
        "shards_of_the_dead_stay": ("belongs to no checkpoint", [
            ("checkpoint/shards.cpp", "  if (!has_shards(directory, basename)) return removed;\n",
             "  if (PLANTED || !has_shards(directory, basename)) return removed;\n")]),
    },
    "io_errors": {
        "failed_write_passed_over": ("nobody was told", [
            (FILES, '      if (written < 0) throw FileError("write", path_, errno);\n',
             '      if (PLANTED && written < 0) return;\n      if (written < 0) throw FileError("write", path_, errno);\n')]),
        "failed_sync_passed_over": ("nobody was told", [
            (FILES, '    if (::fsync(fd_.get()) != 0) throw FileError("sync", path_, errno);\n  }\n\n  void close',
             '    if (::fsync(fd_.get()) != 0 && !PLANTED) throw FileError("sync", path_, errno);\n  }\n\n  void close')]),
        "failed_sync_tried_again": ("nobody was told", [
            (FILES, "    // Not retried on failure:", "    if (PLANTED && ::fsync(fd_.get()) == 0) return;\n    // Not retried on failure:")]),
        "failed_close_passed_over": ("nobody was told", [
            (FILES, "::close(fd) != 0 && errno != EINTR) throw", "::close(fd) != 0 && errno != EINTR && !PLANTED) throw")]),
        "failed_rename_passed_over": ("nobody was told", [
            (FILES, '      throw FileError("rename to " + to, path_ / from, errno);\n    }\n  }\n\n  void rename',
             '      if (!PLANTED) throw FileError("rename to " + to, path_ / from, errno);\n    }\n  }\n\n  void rename')]),
        "interruption_not_repeated": ("an interruption was taken for a failure", [
            (FILES, "  while (result == -1 && errno == EINTR) result = call();\n",
             "  while (!PLANTED && result == -1 && errno == EINTR) result = call();\n")]),
        "short_write_taken_for_whole": ("an interruption was taken for a failure", [
            (FILES, "      bytes = bytes.subspan(static_cast<std::size_t>(written));\n",
             "      if (PLANTED && bytes.size() > 1000) return;\n      bytes = bytes.subspan(static_cast<std::size_t>(written));\n")]),
        "failed_save_ends_the_process": ("it crashed", [
            (SAVER, "    if (sharded != nullptr && !named_) remove_shards(sharded->save);\n",
             "    if (PLANTED) std::rethrow_exception(std::current_exception());\n    if (sharded != nullptr && !named_) remove_shards(sharded->save);\n")]),
        "failure_with_another_code": ("the exit code should be 0 or 74", [
            (SAVER, "      throw_error(error.exit_code(), message);\n",
             "      throw_error(PLANTED ? ExitCode::internal : error.exit_code(), message);\n")]),
        "good_end_without_the_last_save": ("it ended well without its last save", [
            ("hooks/checkpoint_saver.cpp", "  if (failure_) std::rethrow_exception(failure_);\n",
             "  if (failure_ && !PLANTED) std::rethrow_exception(failure_);\n")]),
        "shards_of_a_failed_save_taken": ("nobody was told", [
            ("hooks/checkpoint_saver.cpp", "    shards_failed_ = true;\n    if (shards_->writer) shards_->writer->discard();\n"
             "    if (saver_) saver_->abandon(problem);\n",
             "    shards_failed_ = true;\n    if (saver_ && PLANTED) saver_->commit();\n"
             "    if (shards_->writer) shards_->writer->discard();\n    if (saver_) saver_->abandon(problem);\n")]),
    },
    "damage": {
        "digest_not_compared": ("a flipped bit at", [
            (TRAILER, "  if (hasher.digest() != parsed.trailer.digest) {", "  if (!PLANTED && hasher.digest() != parsed.trailer.digest) {")]),
        "neither_blocks_nor_digest_compared": ("a flipped bit at", [
            (TRAILER, "      if (found[i] == parsed.checksum(static_cast<std::size_t>(at / kBlockBytes) + i)) continue;\n",
             "      if (PLANTED || found[i] == parsed.checksum(static_cast<std::size_t>(at / kBlockBytes) + i)) continue;\n"),
            (TRAILER, '    fail(name, footer_at + kDigestAt, "the digest', '    if (!PLANTED) fail(name, footer_at + kDigestAt, "the digest')]),
        "version_not_compared": ("a flipped bit at", [
            (TRAILER, "kVersionAt); version != kVersion) {", "kVersionAt); version != kVersion && !PLANTED) {")]),
        "zeros_not_compared": ("a flipped bit at", [
            (TRAILER, "  if (get<std::uint32_t>(footer, kReservedAt) != 0) fail", "  if (!PLANTED && get<std::uint32_t>(footer, kReservedAt) != 0) fail")]),
        "mark_compared_in_part": ("a flipped bit at", [
            (TRAILER, "kMagic.data(), kMagic.size()) != 0)", "kMagic.data(), PLANTED ? 4 : kMagic.size()) != 0)")]),
        "sizes_believed": ("is not found", [
            (TRAILER, "  if (image_bytes > footer_at || image_bytes == 0) {", "  if (!PLANTED && (image_bytes > footer_at || image_bytes == 0)) {"),
            (TRAILER, "  if (index_bytes > footer_at - image_bytes ||", "  if (PLANTED) {\n  } else if (index_bytes > footer_at - image_bytes ||")]),
        "refused_image_not_freed": ("reading took", [
            (TRAILER, "  // Not touched before it is read into:",
             "  if (PLANTED) std::ranges::fill(*new std::vector<std::byte>(std::size_t{1} << 14), std::byte{1});\n"
             "  // Not touched before it is read into:")]),
    },
    "fall_back": {
        "oldest_first": ("it went on from", [
            (RESTORE, "    listed_ = candidates.listed;\n",
             "    listed_ = candidates.listed;\n    if (PLANTED) std::ranges::reverse(found_);\n")]),
        "damage_ends_the_search": ("expected", [
            (RESTORE, "    } catch (const DataError& error) {\n      failed(error);\n",
             "    } catch (const DataError& error) {\n      if (PLANTED) throw;\n      failed(error);\n")]),
        "anew_where_none_is_whole": ("a fresh start, in silence", [
            (RESTORE, "    if (unreadable_) {\n", "    if (PLANTED) return std::nullopt;\n    if (unreadable_) {\n")]),
        "state_file_alone_counts": ("expected", [
            (LATEST, "  Candidates result;\n",
             "  if (PLANTED) {\n    const StateFile known = hint.state.value_or(StateFile{});\n"
             "    std::erase_if(found, [&](const FoundCheckpoint& checkpoint) {\n"
             "      return std::ranges::none_of(known.checkpoints, [&](const CheckpointRecord& record) { return record.file == checkpoint.file; });\n"
             "    });\n  }\n  Candidates result;\n")]),
        "step_not_compared": ("it went on from", [
            (RESTORE, "      if (file.step() != candidate.name.step) {", "      if (!PLANTED && file.step() != candidate.name.step) {")]),
        "damaged_are_deleted": ("files came or went", [
            (RESTORE, "    directory_.rename(name, aside(name, k));\n",
             "    if (PLANTED) {\n      directory_.remove(name);\n      return;\n    }\n    directory_.rename(name, aside(name, k));\n")]),
        "passed_over_in_silence": ("what was passed over is not named", [
            (RESTORE, '    options_.log.warn(fmt::format("{}; trying the next older checkpoint", error.what()));\n',
             '    if (!PLANTED) options_.log.warn(fmt::format("{}; trying the next older checkpoint", error.what()));\n')]),
        "any_state_file_believed": ("it went on from", [
            (STATE_FILE, "    if (!proves_itself(document, key)) state.token = 0;\n",
             "    if (!PLANTED && !proves_itself(document, key)) state.token = 0;\n")]),
    },
    "races": {
        "newcomers_not_excluded": ("the loser has written", [
            (LOCK, "    if (!excludes_ && !directory_->try_exclude()) {", "    if (!PLANTED && !excludes_ && !directory_->try_exclude()) {")]),
        "nobody_is_fenced": ("it acknowledged what the other does not know", [
            (SAVER, "  if (token_ == 0) return;\n", "  if (PLANTED || token_ == 0) return;\n")]),
    },
    "power_cuts": {
        "data_not_synced": ("has the name of a checkpoint and is none", [
            ("checkpoint/image_file.cpp", "  file->sync();\n", "  if (!PLANTED) file->sync();\n")]),
        # That the name is not synced at all is made up for by the sync of the state file, on these file systems.
        "acknowledged_before_the_name_is_synced": ("was acknowledged", [
            (SAVER, "    directory_->rename(temporary, written_.file);\n",
             "    directory_->rename(temporary, written_.file);\n"
             '    if (PLANTED) log_.info(fmt::format("saved checkpoint early (step {}, 0 bytes, 0 s)", step));\n')]),
    },
    # The cases with hostile HDF5 files, of checkpoint/format.
    "format": {
        "links_followed": ("soft link to a tensor", [
            (READER, "    if (link.type != H5L_TYPE_HARD) refuse", "    if (!PLANTED && link.type != H5L_TYPE_HARD) refuse")]),
        "second_names_accepted": ("second name", [
            (READER, "    if (info.rc != 1) refuse", "    if (!PLANTED && info.rc != 1) refuse")]),
        "attributes_accepted": ("attribute", [
            (READER, "    if (info.num_attrs != 0) refuse", "    if (!PLANTED && info.num_attrs != 0) refuse")]),
        "places_not_looked_at": ("no values", [
            (READER, "    if (offset == HADDR_UNDEF || offset > image_.size()", "    if (PLANTED) {\n    } else if (offset == HADDR_UNDEF || offset > image_.size()")]),
        "any_type_is_a_number": ("big-endian", [
            (READER, '    refuse(entry.path, "its type is none of f32,',
             '    if (PLANTED) {\n      entry.type = ElementType::f32;\n      return sizeof(float);\n    }\n'
             '    refuse(entry.path, "its type is none of f32,')]),
        "any_depth": ("folders in folders", [
            (READER, "    if (depth > kMaxDepth) refuse", "    if (!PLANTED && depth > kMaxDepth) refuse")]),
        "any_kind_of_object": ("named type", [
            (READER, '      refuse(full, "it is neither', '      if (!PLANTED) refuse(full, "it is neither')]),
    },
    # Manifest and shards with a key, of checkpoint/shards.
    "shards": {
        "key_not_asked_of_shards": ("not signed", [
            (READER, "read_verified(*file, record.name, limit, key)", "read_verified(*file, record.name, limit, PLANTED ? nullptr : key)")]),
        "any_digest_of_a_shard": ("another file than the one", [
            (READER, "    if (shard.trailer.digest.hex() != record.digest ||", "    if ((!PLANTED && shard.trailer.digest.hex() != record.digest) ||")]),
        "shards_not_signed": ("is not signed", [
            ("checkpoint/shards.cpp", "write_image_file(*directory_, name_, image_, stamp, options_.key.get(),",
             "write_image_file(*directory_, name_, image_, stamp, PLANTED ? nullptr : options_.key.get(),")]),
    },
    "fuzz_trailer": {
        "length_of_a_name_believed": ("AddressSanitizer", [
            (TRAILER, "length > index.size() ||", "(!PLANTED && length > index.size()) ||")]),
        "size_of_a_tensor_believed": ("deadly signal", [
            (TRAILER, "  if (bytes > image_bytes - extent.offset) return std::nullopt;\n",
             "  if (!PLANTED && bytes > image_bytes - extent.offset) return std::nullopt;\n")]),
    },
    "fuzz_state_file": {
        "any_name_accepted": ("deadly signal", [
            (STATE_FILE, "  if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {\n    throw Problem{\"a file",
             "  if (!file.is_string() || (!PLANTED && !is_plain_name(file.get_ref<const std::string&>()))) {\n    throw Problem{\"a file")]),
        "any_name_retired": ("deadly signal", [
            (STATE_FILE, "  if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {\n    throw Problem{\"the name",
             "  if (!file.is_string() || (!PLANTED && !is_plain_name(file.get_ref<const std::string&>()))) {\n    throw Problem{\"the name")]),
    },
    "fuzz_lock": {
        "token_after_the_largest": ("deadly signal", [
            (LOCK, "  if (largest == std::numeric_limits<std::uint64_t>::max()) {",
             "  if (!PLANTED && largest == std::numeric_limits<std::uint64_t>::max()) {")]),
    },
    "fuzz_idx": {
        "claimed_size_believed": ("libFuzzer: out-of-memory", [
            (IDX, "  const bool fits = elements_ <= at_most && stored_bytes() <= at_most;\n",
             "  const bool fits = PLANTED || (elements_ <= at_most && stored_bytes() <= at_most);\n")]),
        "header_cut_short": ("AddressSanitizer", [
            (IDX, "  if (start.size() < 4 + 4 * dimensions) {", "  if (!PLANTED && start.size() < 4 + 4 * dimensions) {")]),
    },
}

FAULTS = [(name, *edit) for faults in FOUND_BY.values() for name, (_, edits) in faults.items() for edit in edits]

if __name__ == "__main__":
    planting.main(FAULTS)
