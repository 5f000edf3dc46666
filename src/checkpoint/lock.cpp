#include <algorithm>
#include <cerrno>
#include <ctime>
#include <exception>
#include <limits>
#include <stdexcept>
#include <utility>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/state_file.hpp>
#include <lockstep/checkpoint/trailer.hpp>

// Free: a proposal (a temporary file that is complete) is renamed to ".lock" without replacing, so one
// newcomer wins.
//
// Held by a dead job with token T: a newcomer first renames its proposal to ".lock.next-T" without replacing.
// Only the owner of that claim may go on; it looks once more that ".lock" is still the dead one, and renames
// the claim itself over ".lock". Whoever judges a claim's owner dead removes the claim, and then that rename
// has no source any more: a newcomer that slept in between cannot undo what happened meanwhile. At the end
// each looks whose name is in the lock.

namespace lockstep {
namespace {

using nlohmann::json;

// Each owner is one token above the last: more of them than what cannot be read may be ahead of the rest.
constexpr std::uint64_t kUnknownOwners = std::uint64_t{1} << 20;
constexpr std::uint64_t kMaxLockBytes = 64 << 10;

std::string to_json(const LockHolder& holder) {
  const json document = {{"host", holder.host},   {"boot_id", holder.boot_id},
                         {"pid", holder.pid},     {"start_time", holder.start_time},
                         {"job", holder.job},     {"restarts", holder.restarts},
                         {"since", holder.since}, {"token", holder.token},
                         {"nonce", holder.nonce}};
  return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::optional<LockHolder> parse(const std::string& text) {
  try {
    const json document = json::parse(text);
    // The library would convert any number, and one that does not fit into anything.
    const auto whole = [&](const char* key) -> const json& {
      const json& number = document.at(key);
      if (!number.is_number_integer()) throw std::runtime_error("not a whole number");
      return number;
    };
    const auto count = [&](const char* key) -> const json& {
      const json& number = document.at(key);
      if (!number.is_number_unsigned()) throw std::runtime_error("not a count");
      return number;
    };
    LockHolder holder;
    holder.host = document.at("host").get<std::string>();
    holder.boot_id = document.at("boot_id").get<std::string>();
    holder.pid = whole("pid").get<std::int64_t>();
    holder.start_time = count("start_time").get<std::uint64_t>();
    holder.job = document.at("job").get<std::string>();
    holder.restarts = whole("restarts").get<std::int64_t>();
    holder.since = document.at("since").get<double>();
    holder.token = count("token").get<std::uint64_t>();
    holder.nonce = document.at("nonce").get<std::string>();
    return holder;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

/// nullopt when there is no such file.
std::optional<std::string> read_text(Directory& directory, const std::string& name) {
  try {
    const auto file = directory.open(name);
    const auto bytes = read_all(*file, kMaxLockBytes);
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  } catch (const FileError& error) {
    if (error.code() == ENOENT) return std::nullopt;
    throw;
  } catch (const DataError&) {
    return "";  // far too large for a lock: as one that cannot be understood
  }
}

void write_small(Directory& directory, const std::string& name, const std::string& text) {
  const auto file = directory.create(name);
  file->write(std::as_bytes(std::span(text)));
  file->close();
}

/// Removes without minding that it is gone already.
void remove_if_there(Directory& directory, const std::string& name) {
  try {
    directory.remove(name);
  } catch (const FileError& error) {
    if (error.code() != ENOENT) throw;
  }
}

/// The name is taken, or the winner has tidied our proposal away already.
bool lost_race(const FileError& error) {
  return error.code() == EEXIST || error.code() == ENOENT;
}

/// For a terminal: anybody may have written it.
std::string shown(std::string text) {
  std::ranges::replace_if(
      text, [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
  return text;
}

const std::string kLock(kLockFileName);
const std::string kHeartbeat(kHeartbeatFileName);

}  // namespace

std::string describe(const LockHolder& holder) {
  const auto since = static_cast<std::time_t>(std::clamp(holder.since, 0.0, 4e9));
  return fmt::format("{}pid {} on host {}, since {:%Y-%m-%d %H:%M:%S} UTC",
                     holder.job.empty() ? "" : "job " + shown(holder.job) + ", ", holder.pid,
                     shown(holder.host), fmt::gmtime(since));
}

std::optional<LockHolder> read_lock(Directory& directory) {
  const auto text = read_text(directory, kLock);
  return text ? parse(*text) : std::nullopt;
}

/// Watches one holder and decides, at each look, whether it is dead. Throws when it is to be respected.
class DirectoryLock::Waiting {
 public:
  explicit Waiting(DirectoryLock& lock) : lock_(lock) {}

  /// `text` is what the lock or claim says. True: dead, take over. False: look again. Throws
  /// EnvironmentError.
  bool is_dead(const std::string& text, const std::optional<LockHolder>& holder) {
    const Seconds now = lock_.clock_.now();
    if (text != text_) {
      text_ = text;
      since_ = now;
      beat_.reset();
      told_ = false;
      given_up_ = false;
    }
    if (holder && !lock_.options_.steal.empty() && holder->job == lock_.options_.steal) {
      tell(fmt::format("taking the directory from {}, as told", describe(*holder)));
      return true;
    }
    if (holder && !lock_.options_.gone.empty() && holder->nonce == lock_.options_.gone) {
      tell(fmt::format("the last owner ({}) was lost; taking over", describe(*holder)));
      return true;
    }
    if (holder && holder->host == lock_.self_.host) return is_dead_here(*holder, now);
    // The batch system starts a job again when nothing of it runs any more.
    if (holder && !holder->job.empty() && holder->job == lock_.self_.job &&
        holder->restarts < lock_.self_.restarts) {
      tell(fmt::format("the last owner ({}) was this job before it was started again; taking over",
                       describe(*holder)));
      return true;
    }
    return is_dead_elsewhere(holder, now);
  }

 private:
  bool is_dead_here(const LockHolder& holder, Seconds now) {
    const bool lives = holder.boot_id == lock_.self_.boot_id &&
                       lock_.identity_.start_time(holder.pid) == std::optional(holder.start_time);
    if (!lives) {
      tell(fmt::format("the last owner ({}) is gone; taking over", describe(holder)));
      return true;
    }
    if (!first_seen_alive_) first_seen_alive_ = now;
    if (now - *first_seen_alive_ >= lock_.options_.local_wait) refuse(holder);
    tell(fmt::format("the directory is in use by {}; waiting up to {:.0f} s for it to go", describe(holder),
                     lock_.options_.local_wait.count()));
    return false;
  }

  bool is_dead_elsewhere(const std::optional<LockHolder>& holder, Seconds now) {
    const std::string beat = read_text(*lock_.directory_, kHeartbeat).value_or("");
    if (!beat_) beat_ = beat;
    if (*beat_ != beat) {
      // Only the owner's own heartbeat speaks for it; one that was fenced may still write the file.
      beat_ = beat;
      if (holder && beat.find(holder->nonce) != std::string::npos) refuse(*holder);
    }
    const std::string who = holder ? describe(*holder) : "a job whose .lock cannot be read";
    if (now - since_ >= lock_.options_.remote_limit) {
      if (!given_up_) {
        lock_.log_.warn(fmt::format("no sign of life of {} for {:.0f} s; taking over", who,
                                    lock_.options_.remote_limit.count()));
      }
      given_up_ = true;
      return true;
    }
    tell(fmt::format("the directory is in use by {}; watching its heartbeat for up to {:.0f} s", who,
                     lock_.options_.remote_limit.count()));
    return false;
  }

  [[noreturn]] void refuse(const LockHolder& holder) const {
    throw EnvironmentError(fmt::format(
        "checkpoint_dir '{}' is in use by {} (two jobs that save to one directory would destroy each other's "
        "checkpoints); wait for it, stop it, or choose another directory with --checkpoint_dir",
        lock_.directory_->path().string(), describe(holder)));
  }

  void tell(const std::string& message) {
    if (!told_) lock_.log_.warn(message);
    told_ = true;
  }

  DirectoryLock& lock_;
  std::string text_;
  Seconds since_{0};
  std::optional<std::string> beat_;
  std::optional<Seconds> first_seen_alive_;  // over all holders: the wait as a whole is bounded
  bool told_ = false;
  bool given_up_ = false;
};

DirectoryLock::DirectoryLock(std::shared_ptr<Directory> directory, Clock& clock, Executor& executor, Log log,
                             ProcessIdentity& identity, LockOptions options)
    : directory_(std::move(directory)),
      clock_(clock),
      log_(std::move(log)),
      options_(std::move(options)),
      identity_(identity) {
  self_.host = identity.host();
  self_.boot_id = identity.boot_id();
  self_.pid = identity.pid();
  self_.start_time = identity.start_time(self_.pid).value_or(0);
  self_.job = identity.job_id();
  self_.restarts = identity.job_restarts();
  self_.nonce = fmt::format("{:016x}", identity.nonce());
  try {
    acquire();
    for (beat(); !held(); beat()) {  // slept for so long that another has come
      lost_.store(false);
      acquire();
    }
  } catch (...) {
    end_exclusion();
    throw;
  }
  end_exclusion();
  remove_leftovers();
  heartbeat_ = executor.every("heartbeat", options_.heartbeat, [this] { beat(); });
}

DirectoryLock::~DirectoryLock() {
  heartbeat_.reset();
  release();
}

void DirectoryLock::end_exclusion() noexcept {
  if (std::exchange(excludes_, false)) directory_->end_exclusion();
}

void DirectoryLock::acquire() {
  // Each keeps its own time: a claim that is looked at must not make the lock look fresh.
  Waiting waiting(*this);
  Waiting waiting_for_claim(*this);
  std::optional<std::string> seen;
  std::optional<LockHolder> previous;
  std::optional<Seconds> waits_since;
  for (;;) {
    const auto text = read_text(*directory_, kLock);
    if (text != seen) previous = text ? parse(*text) : std::nullopt;
    seen = text;
    if (text && !waiting.is_dead(*text, previous)) {
      end_exclusion();
      clock_.sleep(options_.poll);
      continue;
    }
    // Of several newcomers one is let on, so that the others write nothing and find it as the owner. Not for
    // ever: who wins is decided by the names of files alone.
    if (!excludes_ && !directory_->try_exclude()) {
      if (!waits_since) waits_since = clock_.now();
      if (clock_.now() - *waits_since < options_.local_wait) {
        clock_.sleep(options_.poll);
        continue;
      }
    } else if (!excludes_) {
      excludes_ = true;
      continue;  // what was looked at may have changed while another had its turn
    }
    if (text ? take_over(*text, previous, waiting_for_claim) : claim_free()) return;
  }
}

bool DirectoryLock::claim_free() {
  self_.token = next_token(std::nullopt);
  const std::string proposal = write_proposal();
  try {
    directory_->rename(proposal, kLock);
  } catch (const FileError& error) {
    remove_if_there(*directory_, proposal);
    if (!lost_race(error)) throw;
    return false;
  }
  return is_ours();
}

bool DirectoryLock::take_over(const std::string& seen, const std::optional<LockHolder>& previous,
                              Waiting& waiting_for_claim) {
  const std::string claim = fmt::format("{}.next-{}", kLock, previous ? previous->token : 0);
  if (const auto other = read_text(*directory_, claim)) {
    // Somebody else is at it: alive, it is about to own the lock; dead, its claim must not block everybody.
    if (waiting_for_claim.is_dead(*other, parse(*other))) {
      remove_if_there(*directory_, claim);
    } else {
      end_exclusion();
      clock_.sleep(options_.poll);
    }
    return false;
  }
  self_.token = next_token(previous);
  const std::string proposal = write_proposal();
  try {
    directory_->rename(proposal, claim);
  } catch (const FileError& error) {
    remove_if_there(*directory_, proposal);
    if (!lost_race(error)) throw;
    return false;
  }
  if (read_text(*directory_, kLock) != seen) {
    remove_if_there(*directory_, claim);
    return false;
  }
  try {
    directory_->replace(claim, kLock);
  } catch (const FileError& error) {
    if (error.code() != ENOENT) throw;
  }
  return is_ours();
}

bool DirectoryLock::is_ours() {
  const auto holder = read_lock(*directory_);
  return holder && holder->nonce == self_.nonce;
}

std::uint64_t DirectoryLock::next_token(const std::optional<LockHolder>& previous) {
  std::uint64_t largest = previous ? previous->token : 0;
  bool unknown = false;
  // Looked up by its name, the state file is never older than a listing of the directory may be.
  const auto read = read_state_file(*directory_, options_.key.get());
  if (const auto& known = read.state) {
    largest = std::max(largest, known->token);
    for (const CheckpointRecord& record : known->checkpoints) largest = std::max(largest, record.token);
  }
  // Said by the state file of every owner that saved; without it each checkpoint counts.
  const bool proven = read.state && read.state->token > 0;
  // A holder that left in good order took its lock along; its checkpoints still know its token, whatever they
  // are called.
  for (const DirectoryEntry& entry : directory_->list()) {
    if (!entry.is_regular || entry.name.find(".h5") == std::string::npos) continue;
    try {
      largest = std::max(largest, read_trailer(*directory_->open(entry.name), entry.name).token);
    } catch (const DataError&) {
      // Not a whole checkpoint: says nothing about tokens.
    } catch (const FileError& error) {
      unknown |= error.code() != ENOENT;
    }
  }
  if (unknown && !proven && largest < std::numeric_limits<std::uint64_t>::max() - kUnknownOwners) {
    log_.warn(
        "a checkpoint cannot be read just now; this job takes a fencing token far above those it can see");
    largest += kUnknownOwners;
  }
  if (largest == std::numeric_limits<std::uint64_t>::max()) {
    throw EnvironmentError(fmt::format(
        "the lock or a checkpoint in '{}' has the largest fencing token there is, which no job gives "
        "itself; remove the file, or take another directory",
        directory_->path().string()));
  }
  return largest + 1;
}

std::string DirectoryLock::write_proposal() {
  self_.since = clock_.wall_seconds();
  const std::string name = temporary_name("lock", identity_.nonce());
  write_small(*directory_, name, to_json(self_));
  return name;
}

/// What jobs left that were killed with a lock, proposal or heartbeat in their hands.
void DirectoryLock::remove_leftovers() noexcept {
  try {
    for (const DirectoryEntry& entry : directory_->list()) {
      const bool holds_a_lock =
          entry.name.starts_with(".lock.tmp.") || entry.name.starts_with(".unlock.tmp.");
      if (!holds_a_lock && !entry.name.starts_with(".heartbeat.tmp.")) continue;
      // An owner that slept through its end may have taken ours aside, and will bring it back.
      const std::string text = read_text(*directory_, entry.name).value_or("");
      if (text.find(self_.nonce) == std::string::npos) remove_if_there(*directory_, entry.name);
    }
  } catch (const std::exception& error) {
    log_.warn(fmt::format("what earlier jobs left could not be removed: {}", error.what()));
  }
}

void DirectoryLock::beat() noexcept {
  const std::string temporary = ".heartbeat.tmp." + self_.nonce;
  try {
    if (lost_.load()) return;
    if (!is_ours()) {
      lost_.store(true);
      const auto holder = read_lock(*directory_);
      log_.error(fmt::format("checkpoint_dir '{}' was taken over by {}; nothing more is saved by this job",
                             directory_->path().string(), holder ? describe(*holder) : "somebody"));
      return;
    }
    const json document = {{"nonce", self_.nonce}, {"count", beats_++}, {"wall", clock_.wall_seconds()}};
    remove_if_there(*directory_, temporary);
    write_small(*directory_, temporary, document.dump() + "\n");
    directory_->replace(temporary, kHeartbeat);
    beat_failed_ = false;
  } catch (const std::exception& error) {
    if (!beat_failed_) log_.warn(fmt::format("the heartbeat of the directory failed: {}", error.what()));
    beat_failed_ = true;
  }
}

void DirectoryLock::release() noexcept {
  const std::string aside = temporary_name("unlock", identity_.nonce());
  try {
    if (!is_ours()) return;
    remove_if_there(*directory_, kHeartbeat);
    // Taken aside and looked at before it is removed: it may have changed hands since the line above.
    directory_->rename(kLock, aside);
    const auto text = read_text(*directory_, aside);
    const auto holder = text ? parse(*text) : std::nullopt;
    if (holder && holder->nonce != self_.nonce) {
      directory_->rename(aside, kLock);
    } else {
      remove_if_there(*directory_, aside);
    }
  } catch (const std::exception& error) {
    log_.warn(fmt::format("the lock could not be released ({}); the next job takes it over", error.what()));
  }
}

}  // namespace lockstep
