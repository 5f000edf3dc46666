#include <algorithm>
#include <cerrno>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <libdeflate.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/idx.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kMaxDimensions = 4;
constexpr std::size_t kMaxHeaderBytes = 4 + 4 * kMaxDimensions;
constexpr std::uint8_t kUnsignedByte = 0x08;
// DEFLATE spends at least two bits on a match of at most 258 bytes.
constexpr std::uint64_t kMaxInflation = 1032;
constexpr std::uint64_t kMaxCompressedBytes = std::uint64_t{16} << 30;

// To learn the header, the start of a compressed file is inflated into a buffer that is too small for the
// rest. The decoder stops at the first match (at most 258 bytes) or stored block (at most 65,535) that does
// not fit, so everything up to that distance from the buffer's end has been written by then.
constexpr std::size_t kPeekOutput = std::size_t{128} << 10;
constexpr std::size_t kPeekInput = std::size_t{256} << 10;
static_assert(kPeekOutput >= 65535 + kMaxHeaderBytes);

struct FreeDecompressor {
  void operator()(libdeflate_decompressor* decompressor) const { libdeflate_free_decompressor(decompressor); }
};
using Decompressor = std::unique_ptr<libdeflate_decompressor, FreeDecompressor>;

Decompressor make_decompressor() {
  Decompressor decompressor(libdeflate_alloc_decompressor());
  if (!decompressor) throw std::bad_alloc();
  return decompressor;
}

constexpr const char* kGetAgain = "get the file again from where it came, and compare its length";

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& problem, const char* remedy) {
  throw DataError(fmt::format("data file '{}': {}; {}", path.string(), problem, remedy));
}

struct Inflated {
  libdeflate_result result = LIBDEFLATE_SUCCESS;
  std::size_t bytes = 0;     ///< written by complete members
  std::size_t consumed = 0;  ///< of the input, by complete members
};

/// Inflates gzip members, one after the other, until `enough` bytes are there or the input ends.
Inflated inflate(std::span<const std::uint8_t> input, std::span<std::uint8_t> output, std::size_t enough) {
  const Decompressor decompressor = make_decompressor();
  Inflated done;
  while (done.consumed < input.size() && done.bytes < enough) {
    std::size_t read = 0;
    std::size_t written = 0;
    const auto rest = input.subspan(done.consumed);
    const auto room = output.subspan(done.bytes);
    done.result = libdeflate_gzip_decompress_ex(decompressor.get(), rest.data(), rest.size(), room.data(),
                                                room.size(), &read, &written);
    if (done.result != LIBDEFLATE_SUCCESS) return done;
    done.consumed += read;
    done.bytes += written;
  }
  return done;
}

bool is_gzip(std::span<const std::uint8_t> bytes) {
  return bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;
}

std::span<std::byte> as_bytes_of(std::span<std::uint8_t> values) {
  return std::as_writable_bytes(values);
}

std::unique_ptr<ReadableFile> open_data(FileSystem& files, const std::filesystem::path& path) {
  try {
    return files.open_file(path);
  } catch (const FileError& error) {
    if (error.code() != ENOENT && error.code() != ENOTDIR) throw;
    throw DataError(fmt::format("data file '{}' is missing; check the path", path.string()));
  }
}

}  // namespace

IdxFile::IdxFile(FileSystem& files, const std::filesystem::path& path)
    : path_(path), file_(open_data(files, path)) {
  const std::uint64_t size = file_->size();
  if (size == 0) fail(path_, "is empty", kGetAgain);
  std::vector<std::uint8_t> start(static_cast<std::size_t>(std::min<std::uint64_t>(size, kPeekInput)));
  start.resize(file_->read(0, as_bytes_of(start)));
  compressed_ = is_gzip(start);

  std::uint64_t at_most = size;
  if (compressed_) {
    if (size > kMaxCompressedBytes) {
      fail(path_,
           fmt::format("has {} bytes, and compressed files above {} are not read in one piece", size,
                       kMaxCompressedBytes),
           "store it without compression");
    }
    std::vector<std::uint8_t> output(kPeekOutput, 0);
    const Inflated peek = inflate(start, output, kMaxHeaderBytes);
    const bool complete = start.size() == size;
    if (peek.result == LIBDEFLATE_BAD_DATA && complete && peek.bytes == 0) {
      fail(path_, "is truncated or damaged (gzip cannot inflate it)", kGetAgain);
    }
    if (peek.result != LIBDEFLATE_INSUFFICIENT_SPACE && complete) output.resize(peek.bytes);
    start = std::move(output);
    at_most = size * kMaxInflation;
  }

  if (start.size() < 4) {
    fail(path_, fmt::format("has {} bytes of content (the header alone takes more)", start.size()),
         kGetAgain);
  }
  const std::size_t dimensions = start[3];
  if (start[0] != 0 || start[1] != 0 || start[2] != kUnsignedByte || dimensions == 0 ||
      dimensions > kMaxDimensions) {
    fail(path_,
         fmt::format(
             "starts with the magic number {:02x}{:02x}{:02x}{:02x} (an IDX file of unsigned bytes starts "
             "with 000008 and its number of dimensions, 01 to {:02x})",
             start[0], start[1], start[2], start[3], kMaxDimensions),
         "check that it is the file you meant");
  }
  if (start.size() < 4 + 4 * dimensions) {
    fail(path_,
         fmt::format("has {} bytes of content (its header takes {})", start.size(), 4 + 4 * dimensions),
         kGetAgain);
  }
  elements_ = 1;
  for (std::size_t i = 0; i < dimensions; ++i) {
    const std::uint8_t* digits = start.data() + 4 + 4 * i;
    const std::uint32_t extent = std::uint32_t{digits[0]} << 24 | std::uint32_t{digits[1]} << 16 |
                                 std::uint32_t{digits[2]} << 8 | digits[3];
    shape_.push_back(extent);
    if (extent != 0 && elements_ > std::numeric_limits<std::int64_t>::max() / extent) {
      fail(path_, fmt::format("claims the impossible shape [{}, ...]", fmt::join(shape_, ", ")), kGetAgain);
    }
    elements_ *= extent;
  }
  const bool fits = elements_ <= at_most && stored_bytes() <= at_most;
  if (!fits || (!compressed_ && stored_bytes() != size)) {
    fail(path_,
         fmt::format("its header claims shape [{}], {} bytes with the header (a file of {} bytes {} {})",
                     fmt::join(shape_, ", "), stored_bytes(), size,
                     compressed_ ? "can inflate to at most" : "holds", at_most),
         kGetAgain);
  }
}

void IdxFile::read(std::span<std::uint8_t> storage) const {
  if (storage.size() != stored_bytes()) {
    throw InternalError(
        fmt::format("IdxFile::read into {} bytes instead of {}", storage.size(), stored_bytes()));
  }
  if (!compressed_) {
    const std::size_t count = file_->read(0, as_bytes_of(storage));
    if (count != storage.size()) {
      fail(path_, fmt::format("ended after {} of {} bytes while it was read", count, storage.size()),
           kGetAgain);
    }
  } else {
    const auto size = static_cast<std::size_t>(file_->size());
    // Not a vector: setting the bytes to zero first would take as long as reading them.
    const auto buffer = std::make_unique_for_overwrite<std::uint8_t[]>(size);
    const std::span input(buffer.get(), size);
    const std::size_t count = file_->read(0, as_bytes_of(input));
    if (count != size) {
      fail(path_, fmt::format("ended after {} of {} bytes while it was read", count, size), kGetAgain);
    }
    const Inflated done = inflate(input, storage, std::numeric_limits<std::size_t>::max());
    const std::size_t rest = size - done.consumed;
    if (done.result == LIBDEFLATE_INSUFFICIENT_SPACE) {
      fail(path_, fmt::format("inflates to more than the {} bytes that its header claims", storage.size()),
           kGetAgain);
    }
    if (done.result != LIBDEFLATE_SUCCESS && done.bytes == storage.size()) {
      fail(path_, fmt::format("has {} bytes behind its content that are not gzip", rest), kGetAgain);
    }
    if (done.result != LIBDEFLATE_SUCCESS) {
      fail(path_, "is truncated or damaged (gzip cannot inflate it, or its checksum differs)", kGetAgain);
    }
    if (done.bytes != storage.size()) {
      fail(path_, fmt::format("inflates to {} bytes (its header claims {})", done.bytes, storage.size()),
           kGetAgain);
    }
  }
  // The header was read before; it must not have changed or been misread since.
  std::vector<std::uint8_t> expected{0, 0, kUnsignedByte, static_cast<std::uint8_t>(shape_.size())};
  for (const std::int64_t extent : shape_) {
    for (const int shift : {24, 16, 8, 0}) {
      expected.push_back(static_cast<std::uint8_t>(static_cast<std::uint64_t>(extent) >> shift));
    }
  }
  if (!std::equal(expected.begin(), expected.end(), storage.begin())) {
    fail(path_, "changed while it was read", "start again when nothing writes to it");
  }
}

IdxArray read_idx(FileSystem& files, const std::filesystem::path& path) {
  const IdxFile file(files, path);
  const auto bytes = static_cast<std::size_t>(file.stored_bytes());
  const std::shared_ptr<std::uint8_t[]> storage(new std::uint8_t[bytes]);
  file.read({storage.get(), bytes});
  return {file.shape(), file.values({storage.get(), bytes}), storage};
}

}  // namespace lockstep
