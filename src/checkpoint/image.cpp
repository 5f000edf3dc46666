#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

#include <fmt/format.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/image.hpp>
#include <lockstep/checkpoint/trailer.hpp>

#include "hdf5_support.hpp"

namespace lockstep {
namespace {

template <class Id>
Id check(Id result, std::string_view what) {
  if (result < 0) throw InternalError(fmt::format("laying out a checkpoint: HDF5 cannot {}", what));
  return result;
}

/// The folders of a file, opened or created on the way to a path.
class Folders {
 public:
  explicit Folders(hid_t file)
      : properties_(check(H5Pcreate(H5P_GROUP_CREATE), "make properties"), H5Pclose), file_(file) {
    check(H5Pset_obj_track_times(properties_.get(), false), "leave out times");
  }

  hid_t parent_of(const std::string& path) {
    const auto slash = path.rfind('/');
    if (slash == 0 || slash == std::string::npos) return file_;
    const std::string folder = path.substr(0, slash);
    if (const auto found = open_.find(folder); found != open_.end()) return found->second.get();
    const hid_t parent = parent_of(folder);
    Hdf5Handle made(H5Gcreate2(parent, folder.substr(folder.rfind('/') + 1).c_str(), H5P_DEFAULT,
                               properties_.get(), H5P_DEFAULT),
                    H5Gclose);
    if (!made.valid()) {
      throw UsageError(fmt::format("'{}' is both a tensor and a folder of '{}'; rename one", folder, path));
    }
    return open_.emplace(folder, std::move(made)).first->second.get();
  }

 private:
  Hdf5Handle properties_;
  std::map<std::string, Hdf5Handle> open_;
  hid_t file_;
};

Hdf5Handle make_type(const Entry& entry) {
  if (entry.type != ElementType::text) {
    return {check(H5Tcopy(stored_number_type(entry.type)), "copy a type"), H5Tclose};
  }
  Hdf5Handle type(check(H5Tcopy(H5T_C_S1), "copy a type"), H5Tclose);
  check(H5Tset_size(type.get(), entry.bytes()), "set the length of a text");
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "set the end of a text");
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "set the encoding of a text");
  return type;
}

Hdf5Handle make_space(const Entry& entry) {
  if (entry.type == ElementType::text || entry.shape.empty()) {
    return {check(H5Screate(H5S_SCALAR), "make a shape"), H5Sclose};
  }
  const std::vector<hsize_t> dimensions(entry.shape.begin(), entry.shape.end());
  return {check(H5Screate_simple(static_cast<int>(dimensions.size()), dimensions.data(), nullptr),
                "make a shape"),
          H5Sclose};
}

// Copying and looking for what is not finite is one pass: training waits for it, and memory is what limits
// it. The copy goes past the caches, as memcpy's does for large sizes: a tensor alone is seldom large, the
// whole is.

constexpr std::uint32_t kExponent32 = 0x7f800000;
constexpr std::uint32_t kExponent64 = 0x7ff00000;  // of the upper half

/// Copies words of 32 bits; true when none has all bits of its exponent set. An exponent of 0 stands for
/// words that have none.
bool copy_words(const std::byte* from, std::byte* to, std::size_t words, std::uint32_t even_exponent,
                std::uint32_t odd_exponent) noexcept {
  std::uint32_t bad = 0;
  std::size_t i = 0;
#if defined(__SSE2__)
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(__m128i) == 0) {
    const __m128i exponent = _mm_set_epi32(static_cast<int>(odd_exponent), static_cast<int>(even_exponent),
                                           static_cast<int>(odd_exponent), static_cast<int>(even_exponent));
    // A word without an exponent is compared with what it cannot be.
    const __m128i none = _mm_cmpeq_epi32(exponent, _mm_setzero_si128());
    __m128i found = _mm_setzero_si128();
    const auto copy = [&](std::size_t at) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at * 4));
      found = _mm_or_si128(found, _mm_cmpeq_epi32(_mm_and_si128(value, exponent), exponent));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at * 4), value);
    };
    for (; i + 16 <= words; i += 16) {
      copy(i);
      copy(i + 4);
      copy(i + 8);
      copy(i + 12);
    }
    bad = static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_andnot_si128(none, found)));
  }
#endif
  for (; i < words; ++i) {
    std::uint32_t word;
    std::memcpy(&word, from + i * 4, 4);
    const std::uint32_t exponent = i % 2 == 0 ? even_exponent : odd_exponent;
    bad |= static_cast<std::uint32_t>(exponent != 0 && (word & exponent) == exponent);
    std::memcpy(to + i * 4, &word, 4);
  }
  return bad == 0;
}

/// Copies an entry; false when it has a number that is not finite.
bool copy_numbers(ElementType type, const std::byte* from, std::byte* to, std::size_t bytes) noexcept {
  switch (type) {
    case ElementType::f32:
      return copy_words(from, to, bytes / 4, kExponent32, kExponent32);
    case ElementType::f64:
      return copy_words(from, to, bytes / 4, 0, kExponent64);
    case ElementType::i32:
    case ElementType::i64:
    case ElementType::u8:
    case ElementType::text:
      break;
  }
  std::memcpy(to, from, bytes);
  return true;
}

void store_fence() noexcept {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace

CheckpointImage::CheckpointImage(std::vector<Entry> entries) : entries_(std::move(entries)) {
  const QuietHdf5 quiet;
  std::size_t data_bytes = 0;
  for (const Entry& entry : entries_) {
    if (entry.bytes() == 0 || !entry.path.starts_with('/')) {
      throw UsageError(
          fmt::format("'{}' of shape {} cannot be kept in a checkpoint; it needs a path and at least "
                      "one element",
                      entry.path, to_string(entry.shape)));
    }
    data_bytes += entry.bytes();
  }

  Hdf5Handle access(check(H5Pcreate(H5P_FILE_ACCESS), "make properties"), H5Pclose);
  // In memory alone. It grows in few steps: each may move everything.
  constexpr std::size_t kIncrement = 64 << 10;
  check(H5Pset_fapl_core(access.get(), kIncrement + data_bytes / 8, 0), "work in memory");
  // The old superblock: with the newer ones HDF5 1.10 hands out images whose superblock has a stale checksum.
  check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_EARLIEST, H5F_LIBVER_V18), "choose the format");
  // Values start on cache lines, which makes the copies of a snapshot faster.
  constexpr hsize_t kAlignFrom = 1024;
  constexpr hsize_t kAlignment = 64;
  check(H5Pset_alignment(access.get(), kAlignFrom, kAlignment), "align values");
  Hdf5Handle file(check(H5Fcreate("checkpoint-in-memory", H5F_ACC_TRUNC, H5P_DEFAULT, access.get()),
                        "make a file in memory"),
                  H5Fclose);

  Hdf5Handle properties(check(H5Pcreate(H5P_DATASET_CREATE), "make properties"), H5Pclose);
  check(H5Pset_layout(properties.get(), H5D_CONTIGUOUS), "choose a layout");
  check(H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY), "allocate early");
  check(H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER), "leave out fill values");
  check(H5Pset_obj_track_times(properties.get(), false), "leave out times");

  {
    Folders folders(file.get());
    offsets_.reserve(entries_.size());
    for (const Entry& entry : entries_) {
      const Hdf5Handle type = make_type(entry);
      const Hdf5Handle space = make_space(entry);
      const std::string leaf = entry.path.substr(entry.path.rfind('/') + 1);
      const Hdf5Handle dataset(H5Dcreate2(folders.parent_of(entry.path), leaf.c_str(), type.get(),
                                          space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                               H5Dclose);
      if (!dataset.valid()) {
        throw UsageError(fmt::format(
            "'{}' cannot be kept in a checkpoint: the name is taken by another tensor or a folder",
            entry.path));
      }
      const haddr_t offset = H5Dget_offset(dataset.get());
      if (offset == HADDR_UNDEF) {
        throw InternalError(fmt::format("laying out a checkpoint: HDF5 gave no place to '{}'", entry.path));
      }
      offsets_.push_back(static_cast<std::size_t>(offset));
    }
  }

  check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "flush to memory");
  const ssize_t size = check(H5Fget_file_image(file.get(), nullptr, 0), "tell the size");
  bytes_ = PageBuffer(static_cast<std::size_t>(size));
  check(H5Fget_file_image(file.get(), bytes_.data(), bytes_.size()), "hand out the bytes");
  std::vector<Extent> extents;
  extents.reserve(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (offsets_[i] > bytes_.size() || entries_[i].bytes() > bytes_.size() - offsets_[i]) {
      throw InternalError(fmt::format("laying out a checkpoint: '{}' is outside of it", entries_[i].path));
    }
    extents.push_back({entries_[i].path, entries_[i].type, entries_[i].shape, offsets_[i]});
  }
  index_ = build_index(extents);
}

const Entry* CheckpointImage::snapshot() noexcept {
  const Entry* bad = nullptr;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const bool good = copy_numbers(entry.type, entry.data, bytes_.data() + offsets_[i], entry.bytes());
    // What hooks keep may well be infinite: the best of nothing yet.
    if (!good && bad == nullptr && !entry.path.starts_with(kHooksFolder)) bad = &entry;
  }
  // What was written past the caches must be there before another thread is told of it.
  store_fence();
  return bad;
}

}  // namespace lockstep
