// Damages a checkpoint of 64 kB in every small way, and reads it.
//
//   damage [--size full] [--first]
//
// Every single bit, every length that is too short, words of zeros and of ones, pages and sectors that are
// zero, ones, or exchanged. What the reader accepts must be exactly what was saved; it must not crash, and
// its process must not grow by more than the file and 64 MiB.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <sys/resource.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/random.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/reader.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/state/state.hpp>

#include "job.hpp"

namespace lockstep::test {
namespace {

constexpr std::int64_t kStep = 42;
constexpr const char* kName = "ckpt-00000042.h5";

/// A file in memory, so that half a million of them can be read in seconds.
class Bytes final : public ReadableFile {
 public:
  explicit Bytes(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::uint64_t size() const override { return bytes_.size(); }
  std::size_t read(std::uint64_t offset, std::span<std::byte> into) override {
    if (offset >= bytes_.size()) return 0;
    const auto from = bytes_.subspan(static_cast<std::size_t>(offset));
    const std::size_t count = std::min(into.size(), from.size());
    std::memcpy(into.data(), from.data(), count);
    return count;
  }

 private:
  std::span<const std::byte> bytes_;
};

struct Saved {
  std::vector<std::byte> file;
  Digest digest;
};

Saved make_checkpoint() {
  State state;
  constexpr std::int64_t kSide = 86;  // two arenas of that, and the file has 64 kB
  state.parameter("dense/weight", {kSide, kSide});
  state.parameter("dense/bias", {kSide});
  state.slot("velocity");
  state.setting("model", "damage");
  PlainAllocator allocator;
  state.freeze(allocator);
  Random(1, Purpose::test).fill_uniform(state.parameters());
  state.set_global_step(kStep);
  CheckpointImage image(state.entries());
  image.snapshot();
  Saved saved{{image.bytes().begin(), image.bytes().end()}, content_digest(state.entries())};
  const auto trailer = build_trailer(saved.file, {kStep, 3, 1.7e9}, image.index());
  saved.file.insert(saved.file.end(), trailer.begin(), trailer.end());
  return saved;
}

class Damager {
 public:
  Damager(int worker, int workers) : worker_(worker), workers_(workers) {}

  Totals run(bool full) {
    constexpr std::size_t kAtLeast = 64'000;
    if (!harmless(saved_.file) || saved_.file.size() < kAtLeast) tell("no damage", 0);
    totals_.points = 0;
    bits();
    truncations();
    words();
    // Sectors and pages, as disks and kernels lose them.
    for (const std::size_t unit : {std::size_t{512}, std::size_t{4096}}) blocks(unit);
    if (full) pairs_of_bits();
    check_memory();
    return totals_;
  }

 private:
  bool mine() { return number_++ % workers_ == worker_ && !is_enough(); }

  /// True when the reader accepts it and gets what was saved.
  bool harmless(std::span<const std::byte> file) {
    Bytes bytes(file);
    const CheckpointFile read(bytes, kName);
    return read.step() == kStep && read.digest() == saved_.digest;
  }

  void read(std::span<const std::byte> file, const char* how, std::size_t where) {
    ++totals_.points;
    constexpr long kOften = 4096;
    if (totals_.points % kOften == 0) check_memory();
    try {
      // The format covers every byte of a file, so that there is no harmless damage, either.
      totals_.other[0] += harmless(file) ? 1 : 0;
      tell(how, where);
    } catch (const DataError&) {
      // Found.
    } catch (const std::exception& error) {
      tell(error.what(), where);
    }
  }

  void tell(const char* how, std::size_t where) {
    ++totals_.problems;
    told_problem();
    std::printf("%s at %zu is not found\n", how, where);
  }

  /// The last first: most is looked at in the trailer.
  void bits() {
    for (std::size_t i = saved_.file.size() * 8; i-- > 0;) {
      if (!mine()) continue;
      damaged_[i / 8] ^= std::byte{1} << (i % 8);
      read(damaged_, "a flipped bit", i);
      damaged_[i / 8] = saved_.file[i / 8];
    }
  }

  void truncations() {
    for (std::size_t length = 0; length < saved_.file.size(); ++length) {
      if (mine()) read(std::span(saved_.file).first(length), "the end", length);
    }
  }

  void words() {
    for (const std::size_t width : {std::size_t{2}, std::size_t{4}, std::size_t{8}}) {
      for (std::size_t at = 0; at + width <= saved_.file.size(); at += width) {
        for (const std::byte fill : {std::byte{0}, std::byte{0xff}}) {
          if (!mine()) continue;
          std::fill_n(damaged_.begin() + static_cast<std::ptrdiff_t>(at), width, fill);
          if (damaged_ != saved_.file) read(damaged_, "a word", at);
          restore(at, width);
        }
      }
    }
  }

  void blocks(std::size_t unit) {
    const std::size_t count = (saved_.file.size() + unit - 1) / unit;
    const auto size_of = [&](std::size_t i) { return std::min(unit, saved_.file.size() - i * unit); };
    for (std::size_t i = 0; i < count; ++i) {
      for (const std::byte fill : {std::byte{0}, std::byte{0xff}}) {
        if (!mine()) continue;
        std::fill_n(damaged_.begin() + static_cast<std::ptrdiff_t>(i * unit), size_of(i), fill);
        if (damaged_ != saved_.file) read(damaged_, "a block", i * unit);
        restore(i * unit, size_of(i));
      }
      for (std::size_t j = i + 1; j < count; ++j) {
        if (size_of(j) != unit || !mine()) continue;
        std::swap_ranges(damaged_.begin() + static_cast<std::ptrdiff_t>(i * unit),
                         damaged_.begin() + static_cast<std::ptrdiff_t>((i + 1) * unit),
                         damaged_.begin() + static_cast<std::ptrdiff_t>(j * unit));
        if (damaged_ != saved_.file) read(damaged_, "an exchange of blocks", i * unit);
        restore(i * unit, unit);
        restore(j * unit, unit);
      }
    }
  }

  void pairs_of_bits() {
    const auto bits = static_cast<std::uint32_t>(saved_.file.size() * 8);
    constexpr std::uint32_t kPairs = 500'000;
    for (std::uint32_t i = 0; i < kPairs; ++i) {
      if (!mine()) continue;
      const Random random(i, Purpose::test);
      for (const std::uint32_t bit : {random.below(0, bits), random.below(1, bits)}) {
        damaged_[bit / 8] ^= std::byte{1} << (bit % 8);
      }
      if (damaged_ != saved_.file) read(damaged_, "a pair of bits", i);
      for (const std::uint32_t bit : {random.below(0, bits), random.below(1, bits)}) restore(bit / 8, 1);
    }
  }

  void restore(std::size_t at, std::size_t bytes) {
    std::copy_n(saved_.file.begin() + static_cast<std::ptrdiff_t>(at), bytes,
                damaged_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  void check_memory() {
    struct rusage usage {};
    ::getrusage(RUSAGE_SELF, &usage);
    constexpr long kKiB = 1024;
    const long grown = usage.ru_maxrss - start_;
    const long allowed = static_cast<long>(saved_.file.size()) / kKiB + 64 * kKiB;
    totals_.other[1] = grown;
    if (grown <= allowed || std::exchange(told_of_memory_, true)) return;
    ++totals_.problems;
    told_problem();
    std::printf("reading took %ld KiB; at most %ld are allowed\n", grown, allowed);
  }

  static long memory_now() {
    struct rusage usage {};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  }

  int worker_;
  int workers_;
  long number_ = 0;
  Saved saved_ = make_checkpoint();
  std::vector<std::byte> damaged_ = saved_.file;
  long start_ = memory_now();
  bool told_of_memory_ = false;
  Totals totals_;
};

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) {
  using namespace lockstep::test;
  may_end_at_first(argc, argv);
  const bool full = is_full(argc, argv);
  Totals totals = on_all_cores([&](int worker, int workers, const std::filesystem::path&) {
    return Damager(worker, workers).run(full);
  });
  std::printf("%ld harmless; readers grew by %ld KiB in all\n", totals.other[0], totals.other[1]);
  return report(totals, 600'000);
}
