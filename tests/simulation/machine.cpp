#include "machine.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <exception>
#include <utility>

#include <fmt/format.h>

#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/names.hpp>

namespace lockstep::test {
namespace {

constexpr double kTick = 2e-6;    // seconds that a look at a clock takes
constexpr double kOversleep = 8;  // times what was asked for, at most

void redo(const Disk::Change& change, Names& names) {
  if (!change.from.empty()) names.erase(change.from);
  if (change.after) {
    names[change.name] = change.after;
  } else {
    names.erase(change.name);
  }
}

void undo(const Disk::Change& change, Names& names) {
  if (change.before) {
    names[change.name] = change.before;
  } else {
    names.erase(change.name);
  }
  if (!change.from.empty()) names[change.from] = change.after;
}

}  // namespace

std::uint64_t Draw::bits() {
  state_ += 0x9e3779b97f4a7c15;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

double Draw::uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
}

void Process::die(int code) {
  if (!alive) return;
  alive = false;
  exit_code = code;
  machine->note(fmt::format("rank {} (pid {}) is gone with {}", rank, pid, code));
}

void Disk::change(const Process& by, const std::string& name, std::shared_ptr<Inode> inode,
                  const std::string& from) {
  const auto found = names.find(name);
  Change change{by.machine->time, by.host, name, found == names.end() ? nullptr : found->second,
                std::move(inode), from};
  redo(change, names);
  unsynced.push_back(change);
  recent.push_back(std::move(change));
}

void Disk::cut_power(Draw& draw) {
  const std::size_t survive = draw.below(unsynced.size() + 1);
  for (std::size_t i = 0; i < survive; ++i) redo(unsynced[i], durable_names);
  unsynced.clear();
  recent.clear();
  names.clear();
  for (auto& [name, inode] : durable_names) {
    auto after = std::make_shared<Inode>(*inode);
    // Of what was not synced anything may be there, or its length with zeros.
    const std::size_t loose = after->data.size() - after->durable;
    if (loose > 0) {
      const std::size_t kept = draw.below(loose + 1);
      if (draw.chance(0.5)) {
        after->data.resize(after->durable + kept);
      } else {
        std::fill(after->data.begin() + static_cast<std::ptrdiff_t>(after->durable + kept), after->data.end(),
                  std::byte{0});
      }
    }
    after->durable = after->data.size();
    after->step = -2;
    names[name] = std::move(after);
  }
  durable_names = names;
}

Process& Machine::start_process(const std::string& host, int rank) {
  auto process = std::make_unique<Process>();
  process->machine = this;
  process->rank = rank;
  process->host = host;
  process->pid = next_pid_++;
  processes.push_back(std::move(process));
  return *processes.back();
}

void Machine::note(const std::string& text) {
  if (verbose_) std::printf("%12.6f %s\n", time, text.c_str());
}

void Machine::broken(const std::string& text) {
  note("BROKEN: " + text);
  if (problem.empty()) problem = text;
}

std::int64_t Machine::newest(const Names& names, bool synced) {
  std::int64_t newest = -1;
  for (const auto& [name, inode] : names) {
    const auto parsed = parse_file_name(kDefaultBasename, name);
    if (!parsed || (synced && inode->durable != inode->data.size())) continue;
    if (inode->step == -2) inode->step = step_of(inode->data);
    if (inode->step == parsed->step) newest = std::max(newest, parsed->step);
  }
  return newest;
}

void Machine::check_owner(const Process& by, std::string_view operation, const std::string& name) {
  const auto lock = disk.names.find(kLockFileName);
  const std::string_view text = lock == disk.names.end() ? std::string_view() : text_of(*lock->second);
  if (text.find(fmt::format("\"pid\": {},", by.pid)) != std::string_view::npos) return;
  broken(fmt::format("R6: pid {} did '{} {}' and does not own the directory", by.pid, operation, name));
}

void Machine::check_disk(std::string_view operation, const std::string& name) {
  if (acknowledged < 0) return;
  // A power cut may come at any time, and take all that is not synced, or keep the names.
  for (const Names* names : {&disk.durable_names, &disk.names}) {
    if (newest(*names, true) >= acknowledged) continue;
    broken(fmt::format("R1, R2: after '{} {}' a power cut would lose step {}, which was acknowledged",
                       operation, name, acknowledged));
  }
}

// ---- files

namespace {

class SimDirectory final : public Directory {
 public:
  explicit SimDirectory(Process& process) : process_(process), machine_(*process.machine) {}

  const std::filesystem::path& path() const override {
    static const std::filesystem::path path = "run";
    return path;
  }

  std::unique_ptr<WritableFile> create(const std::string& name) override {
    const bool last = mutate("create", name);
    if (disk().names.contains(name)) throw FileError("create", name, EEXIST);
    auto inode = std::make_shared<Inode>();
    disk().change(process_, name, inode);
    end(last, "create", name);
    return std::make_unique<Writable>(*this, std::move(inode), name);
  }

  std::unique_ptr<ReadableFile> open(const std::string& name) override {
    alive("open", name);
    return std::make_unique<Readable>(*this, find("open", name));
  }

  bool exists(const std::string& name) override {
    alive("look for", name);
    return disk().names.contains(name);
  }

  std::vector<DirectoryEntry> list() override {
    alive("list", "");
    Names seen;
    const Names* names = &disk().names;
    if (machine_.stale_listings) {
      // What other hosts changed of late may not be seen yet.
      const double seen_until = machine_.time - machine_.draw.uniform(0, 60);
      seen = disk().names;
      for (auto change = disk().recent.rbegin(); change != disk().recent.rend(); ++change) {
        if (change->time <= seen_until) break;
        if (change->host == process_.host) continue;
        undo(*change, seen);
      }
      names = &seen;
    }
    std::vector<DirectoryEntry> entries;
    for (const auto& [name, inode] : *names) entries.push_back({name, inode->data.size(), true});
    return entries;
  }

  void replace(const std::string& from, const std::string& to) override { move(from, to, true); }
  void rename(const std::string& from, const std::string& to) override { move(from, to, false); }

  void remove(const std::string& name) override {
    const bool last = mutate("remove", name);
    find("remove", name);
    disk().change(process_, name, nullptr);
    end(last, "remove", name);
  }

  void sync() override {
    const bool last = mutate("sync", "");
    if (last && machine_.draw.chance(0.5)) end(last, "sync", "");  // before it did anything
    disk().durable_names = disk().names;
    disk().unsynced.clear();
    end(last, "sync", "");
  }

  std::uint64_t available_bytes() override {
    alive("ask for space", "");
    return std::uint64_t{1} << 40;
  }

 private:
  friend class Writable;
  friend class Readable;

  class Writable final : public WritableFile {
   public:
    Writable(SimDirectory& directory, std::shared_ptr<Inode> inode, std::string name)
        : process_(directory.process_), inode_(std::move(inode)), name_(std::move(name)) {}

    void write(std::span<const std::byte> bytes) override {
      SimDirectory directory(process_);
      bool last = false;
      try {
        last = directory.mutate("write", name_);
      } catch (const FileError&) {
        if (process_.alive) append(bytes.first(bytes.size() / 2));
        throw;
      }
      append(last ? bytes.first(process_.machine->draw.below(bytes.size() + 1)) : bytes);
      directory.end(last, "write", name_);
    }

    void sync() override {
      SimDirectory directory(process_);
      const bool last = directory.mutate("fsync", name_);
      inode_->durable = inode_->data.size();
      directory.end(last, "fsync", name_);
    }

    void close() override { SimDirectory(process_).alive("close", name_); }

   private:
    void append(std::span<const std::byte> bytes) {
      inode_->data.insert(inode_->data.end(), bytes.begin(), bytes.end());
      inode_->step = -2;
    }
    Process& process_;
    std::shared_ptr<Inode> inode_;
    std::string name_;
  };

  class Readable final : public ReadableFile {
   public:
    Readable(SimDirectory& directory, std::shared_ptr<Inode> inode)
        : process_(directory.process_), inode_(std::move(inode)) {}
    std::uint64_t size() const override { return inode_->data.size(); }
    std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) override {
      SimDirectory(process_).alive("read", "");
      if (offset >= inode_->data.size()) return 0;
      const std::size_t count =
          std::min(bytes.size(), inode_->data.size() - static_cast<std::size_t>(offset));
      std::copy_n(inode_->data.begin() + static_cast<std::ptrdiff_t>(offset), count, bytes.begin());
      return count;
    }

   private:
    Process& process_;
    std::shared_ptr<Inode> inode_;
  };

  Disk& disk() const { return machine_.disk; }

  void alive(std::string_view operation, const std::string& name) const {
    machine_.time += machine_.draw.chance(0.01) ? 1e-2 : 1e-5;
    if (!process_.alive) throw FileError(operation, name, EIO);
  }

  /// Whether this operation is the last that the process does. Throws when it fails.
  bool mutate(std::string_view operation, const std::string& name) {
    alive(operation, name);
    const long number = ++process_.operations;
    if (number >= process_.fail_from && number < process_.fail_until) {
      machine_.note(fmt::format("rank {}: {} {} fails", process_.rank, operation, name));
      throw FileError(operation, name, process_.fail_code);
    }
    machine_.note(fmt::format("rank {}: {} {}", process_.rank, operation, name));
    return number == process_.die_at;
  }

  void end(bool last, std::string_view operation, const std::string& name) {
    if (operation == "sync") machine_.check_disk(operation, name);
    if ((operation == "rename" || operation == "remove") && parse_file_name(kDefaultBasename, name)) {
      machine_.check_owner(process_, operation, name);
      machine_.check_disk(operation, name);
    }
    if (!last) return;
    process_.die(137);
    throw FileError(operation, name, EIO);
  }

  void move(const std::string& from, const std::string& to, bool replace) {
    const bool last = mutate("rename", from + " to " + to);
    const auto inode = find("rename", from);
    if (!replace && disk().names.contains(to)) throw FileError("rename to " + to, from, EEXIST);
    if (last && machine_.draw.chance(0.5)) end(last, "rename", "");
    disk().change(process_, to, inode, from);
    end(last, "rename", parse_file_name(kDefaultBasename, from) ? from : to);
  }

  std::shared_ptr<Inode> find(const char* operation, const std::string& name) const {
    const auto found = disk().names.find(name);
    if (found == disk().names.end()) throw FileError(operation, name, ENOENT);
    return found->second;
  }

  Process& process_;
  Machine& machine_;
};

class SimFileSystem final : public FileSystem {
 public:
  explicit SimFileSystem(Process& process) : process_(process) {}
  std::unique_ptr<Directory> open_directory(const std::filesystem::path&) override {
    return std::make_unique<SimDirectory>(process_);
  }
  std::unique_ptr<Directory> create_directory(const std::filesystem::path&) override {
    return std::make_unique<SimDirectory>(process_);
  }
  std::unique_ptr<ReadableFile> open_file(const std::filesystem::path& path) override {
    return SimDirectory(process_).open(path.filename().string());
  }

 private:
  Process& process_;
};

}  // namespace

std::shared_ptr<FileSystem> make_files(Process& process) {
  return std::make_shared<SimFileSystem>(process);
}

// ---- time, identity, signals

namespace {

class SimClock final : public Clock {
 public:
  explicit SimClock(Process& process) : process_(process) {}
  Seconds now() const override {
    process_.machine->time += kTick;
    return Seconds{process_.machine->time * (1 + process_.drift) + 50.0 * process_.rank};
  }
  double wall_seconds() const override {
    return 1.7e9 + process_.machine->time * (1 + process_.drift) + process_.skew;
  }
  void sleep(Seconds duration) override {
    Machine& machine = *process_.machine;
    machine.time += duration.count() * machine.draw.uniform(1, kOversleep);
    for (const auto& other : machine.processes) {
      if (other->alive && other->asleep_until <= machine.time) run_beside(*other);
    }
  }

 private:
  Process& process_;
};

class SimIdentity final : public ProcessIdentity {
 public:
  SimIdentity(Process& process, std::string job, std::int64_t restarts)
      : process_(process), job_(std::move(job)), restarts_(restarts) {}
  std::string host() const override { return process_.host; }
  std::string boot_id() const override { return "boot"; }
  std::int64_t pid() const override { return process_.pid; }
  std::optional<std::uint64_t> start_time(std::int64_t pid) const override {
    for (const auto& other : process_.machine->processes) {
      if (other->pid == pid && other->alive && other->host == process_.host)
        return static_cast<std::uint64_t>(pid);
    }
    return std::nullopt;
  }
  std::string job_id() const override { return job_; }
  std::int64_t job_restarts() const override { return restarts_; }
  std::uint64_t nonce() override { return process_.machine->draw.bits(); }

 private:
  Process& process_;
  std::string job_;
  std::int64_t restarts_;
};

class SimSignals final : public Signals {
 public:
  explicit SimSignals(Process& process) : process_(process) {}
  std::optional<int> received() const noexcept override { return process_.signal; }

 private:
  Process& process_;
};

}  // namespace

std::shared_ptr<Clock> make_clock(Process& process) {
  return std::make_shared<SimClock>(process);
}
std::shared_ptr<ProcessIdentity> make_identity(Process& process, std::string job, std::int64_t restarts) {
  return std::make_shared<SimIdentity>(process, std::move(job), restarts);
}
std::shared_ptr<Signals> make_signals(Process& process) {
  return std::make_shared<SimSignals>(process);
}

// ---- what runs beside

class SimWorker final : public Worker {
 public:
  SimWorker(Process& process, bool deferred) : process_(process), deferred_(deferred) {
    process_.workers.push_back(this);
  }
  ~SimWorker() override {
    while (run_one()) {
    }
    std::erase(process_.workers, this);
  }
  void post(std::function<void()> task) override {
    tasks_.push_back(std::move(task));
    if (!deferred_) run_one();
  }
  void wait() override {
    while (run_one()) {
    }
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }
  bool idle() const override { return tasks_.empty(); }

  bool run_one() {
    if (running_ || tasks_.empty()) return false;
    const auto task = std::move(tasks_.front());
    tasks_.pop_front();
    if (!process_.alive) return true;
    running_ = true;
    try {
      task();
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
    }
    running_ = false;
    return true;
  }

 private:
  Process& process_;
  bool deferred_;
  bool running_ = false;
  std::deque<std::function<void()>> tasks_;
  std::exception_ptr failure_;
};

class SimPeriodic final : public Periodic {
 public:
  SimPeriodic(Process& process, double interval, std::function<void()> task)
      : process_(process),
        interval_(interval),
        task_(std::move(task)),
        next_(process.machine->time + interval) {
    process_.periodics.push_back(this);
  }
  ~SimPeriodic() override { std::erase(process_.periodics, this); }

  void run_if_due() {
    if (process_.machine->time < next_) return;
    next_ = process_.machine->time + interval_;
    task_();
  }

 private:
  Process& process_;
  double interval_;
  std::function<void()> task_;
  double next_;
};

namespace {

class SimExecutor final : public Executor {
 public:
  SimExecutor(Process& process, bool deferred) : process_(process), deferred_(deferred) {}
  std::unique_ptr<Worker> start(const std::string&) override {
    return std::make_unique<SimWorker>(process_, deferred_);
  }
  std::unique_ptr<Periodic> every(const std::string&, Seconds interval, std::function<void()> task) override {
    return std::make_unique<SimPeriodic>(process_, interval.count(), std::move(task));
  }

 private:
  Process& process_;
  bool deferred_;
};

}  // namespace

std::shared_ptr<Executor> make_executor(Process& process, bool deferred) {
  return std::make_shared<SimExecutor>(process, deferred);
}

void run_beside(Process& process) {
  for (std::size_t i = 0; i < process.periodics.size(); ++i) process.periodics[i]->run_if_due();
  for (std::size_t i = 0; i < process.workers.size(); ++i) process.workers[i]->run_one();
}

}  // namespace lockstep::test
