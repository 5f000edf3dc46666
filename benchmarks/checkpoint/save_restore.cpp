// What does a checkpoint cost? See benchmarks/README.md.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/page_buffer.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/checkpoint/saver.hpp>
#include <lockstep/mpi/communicator.hpp>
#include <lockstep/state/state.hpp>

using namespace lockstep;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// A model of `tensors` equal parameters with one optimizer slot: `bytes` in all.
struct Model {
  Model(std::size_t bytes, int tensors) {
    const auto elements = static_cast<std::int64_t>(bytes / 2 / sizeof(float)) / tensors;
    for (int i = 0; i < tensors; ++i) state.parameter("layer" + std::to_string(i) + "/weight", {elements});
    state.slot("velocity");
    PlainAllocator allocator;
    state.freeze(allocator);
    touch(1);
  }

  /// As an update would: every value is written.
  void touch(std::int64_t step) {
    for (const auto values : {state.parameters(), state.slot_values("velocity")}) {
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(step) + static_cast<float>(i % 1000);
    }
    state.set_global_step(step);
  }

  State state;
};

struct Machine {
  SystemClock clock;
  ThreadExecutor executor;
  SystemIdentity identity;
};

int open_or_die(const std::filesystem::path& path, int flags) {
  const int fd = ::open(path.c_str(), flags, 0640);
  if (fd < 0) {
    std::perror(path.c_str());
    std::exit(1);
  }
  return fd;
}

void expect(bool good, const char* what) {
  if (good) return;
  std::perror(what);
  std::exit(1);
}

/// The same bytes, written in one go and synced: what every durable file costs at least.
double write_and_sync(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const double start = now();
  const int fd = open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    expect(n > 0, "write");
    done += static_cast<std::size_t>(n);
  }
  expect(::fsync(fd) == 0, "fsync");
  ::close(fd);
  const double seconds = now() - start;
  std::filesystem::remove(path);
  return seconds;
}

void forget_cache(const std::filesystem::path& path) {
  const int fd = open_or_die(path, O_RDONLY);
  ::fsync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

/// Reads a file into memory that is new.
double read_file(const std::filesystem::path& path) {
  const double start = now();
  const int fd = open_or_die(path, O_RDONLY);
  const std::size_t size = std::filesystem::file_size(path);
  const auto fresh = std::make_unique_for_overwrite<std::byte[]>(size);
  for (std::size_t done = 0; done < size;) {
    const ssize_t n = ::read(fd, fresh.get() + done, size - done);
    expect(n > 0, "read");
    done += static_cast<std::size_t>(n);
  }
  ::close(fd);
  return now() - start;
}

struct Series {
  std::string what;
  std::vector<double> ours = {};
  std::vector<double> ratios = {};

  void add(double mine, double theirs) {
    ours.push_back(mine);
    ratios.push_back(mine / theirs);
  }
  void print() const {
    std::printf("  %-62s %8.1f ms   ratio %.2f\n", what.c_str(), median(ours) * 1e3, median(ratios));
  }
};

void measure(const std::filesystem::path& folder, std::size_t bytes, int tensors, int rounds) {
  Machine machine;
  Model model(bytes, tensors);
  const std::shared_ptr<Directory> directory = PosixFileSystem().create_directory(folder);
  const double laying_out = now();
  const auto make_saver = [&](bool verify) {
    return std::make_unique<Saver>(directory, model.state.entries(),
                                   SaverOptions{.max_to_keep = 1, .verify_after_write = verify},
                                   machine.clock, machine.executor, Log(), 0, machine.identity);
  };
  const auto plain = make_saver(false);
  const double laid_out = now() - laying_out;
  const auto verifying = make_saver(true);
  const std::size_t saved = plain->image_bytes();
  const PageBuffer from(saved);
  const PageBuffer to(saved);
  std::memset(from.data(), 1, saved);
  std::memset(to.data(), 2, saved);

  Series stall{"stall of a save / memcpy of the same bytes"};
  Series durable{"durable, without re-read / write + fsync"};
  Series durable_from_start{"the same, from before the stall"};
  Series verified{"durable, with re-read / write + fsync"};
  Series cold{"restore / cold read into new memory"};
  Series warm{"restore / read from the page cache into new memory"};
  std::vector<double> copies;
  std::vector<double> writes;
  std::int64_t step = 1;
  for (int round = -1; round < rounds; ++round) {
    double copy = now();
    std::memcpy(to.data(), from.data(), saved);
    copy = now() - copy;
    const double write = write_and_sync(folder / "plain", from.bytes());
    double seconds[2];
    double held[2];
    for (const bool verify : {false, true}) {
      Saver& saver = verify ? *verifying : *plain;
      model.touch(++step);
      saver.start(step);  // its buffers are warm
      saver.wait();
      const auto first = saver.take_result();
      model.touch(++step);
      const double start = now();
      saver.start(step);
      held[verify] = now() - start;
      saver.wait();
      const auto result = saver.take_result();
      expect(first && first->ok() && result && result->ok(), "save");
      seconds[verify] = result->seconds.count();
    }
    const auto file = folder / to_file_name(kDefaultBasename, {step, 0});
    const auto restore = [&] {
      const double start = now();
      const auto restored = restore_latest(Communicator::self(), directory.get(), model.state);
      expect(restored && restored->step == step, "restore");
      return now() - start;
    };
    forget_cache(file);
    const double cold_read = read_file(file);
    forget_cache(file);
    const double cold_restore = restore();
    read_file(file);
    const double warm_read = read_file(file);
    const double warm_restore = restore();
    if (round < 0) continue;
    copies.push_back(copy);
    writes.push_back(write);
    stall.add(held[0], copy);
    stall.add(held[1], copy);
    durable_from_start.add(seconds[0], write);
    durable.add(seconds[0] - held[0], write);
    verified.add(seconds[1] - held[1], write);
    cold.add(cold_restore, cold_read);
    warm.add(warm_restore, warm_read);
  }
  std::printf("%zu MiB in %d tensors: memcpy %.1f ms, write + fsync %.1f ms, laid out once in %.0f ms\n",
              saved >> 20, 2 * tensors, median(copies) * 1e3, median(writes) * 1e3, laid_out * 1e3);
  for (const Series* series : {&stall, &durable, &durable_from_start, &verified, &cold, &warm})
    series->print();
}

}  // namespace

int main(int argc, char** argv) {
  const std::filesystem::path folder = argc > 1 ? argv[1] : "lockstep-benchmark-checkpoints";
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 15;
  constexpr std::size_t kBytes = std::size_t{256} << 20;
  for (const int tensors : {10, 7500}) {
    std::filesystem::remove_all(folder);
    measure(folder, kBytes, tensors, rounds);
  }
  std::filesystem::remove_all(folder);
}
