#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <libdeflate.h>

#include <lockstep/base/files.hpp>

namespace lockstep::testing {

using Bytes = std::vector<std::uint8_t>;

/// Files for reading, kept in memory, so that a test can try thousands of damaged ones.
class MemoryFiles final : public FileSystem {
 public:
  std::map<std::string, Bytes> files;

  std::unique_ptr<Directory> open_directory(const std::filesystem::path& path) override {
    throw FileError("open directory", path, ENOENT);
  }
  std::unique_ptr<Directory> create_directory(const std::filesystem::path& path) override {
    throw FileError("create directory", path, EROFS);
  }
  std::unique_ptr<ReadableFile> open_file(const std::filesystem::path& path) override {
    const auto found = files.find(path.string());
    if (found == files.end()) throw FileError("open", path, ENOENT);
    return std::make_unique<File>(found->second);
  }

 private:
  class File final : public ReadableFile {
   public:
    explicit File(Bytes bytes) : bytes_(std::move(bytes)) {}
    std::uint64_t size() const override { return bytes_.size(); }
    std::size_t read(std::uint64_t offset, std::span<std::byte> out) override {
      const auto start = std::min<std::size_t>(offset, bytes_.size());
      const std::size_t count = std::min(out.size(), bytes_.size() - start);
      std::copy_n(std::as_bytes(std::span(bytes_)).begin() + static_cast<std::ptrdiff_t>(start), count,
                  out.begin());
      return count;
    }

   private:
    Bytes bytes_;
  };
};

/// An IDX file of unsigned bytes.
inline Bytes make_idx(const std::vector<std::uint32_t>& shape, const Bytes& values) {
  Bytes bytes{0, 0, 8, static_cast<std::uint8_t>(shape.size())};
  for (const std::uint32_t extent : shape) {
    for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<std::uint8_t>(extent >> shift));
  }
  bytes.insert(bytes.end(), values.begin(), values.end());
  return bytes;
}

/// One gzip member; level 0 stores without compressing.
inline Bytes gzip(std::span<const std::uint8_t> bytes, int level = 6) {
  const std::unique_ptr<libdeflate_compressor, void (*)(libdeflate_compressor*)> compressor(
      libdeflate_alloc_compressor(level), libdeflate_free_compressor);
  Bytes out(libdeflate_gzip_compress_bound(compressor.get(), bytes.size()));
  out.resize(libdeflate_gzip_compress(compressor.get(), bytes.data(), bytes.size(), out.data(), out.size()));
  return out;
}

/// Values without much of a pattern.
inline Bytes noise(std::size_t count, std::uint32_t seed) {
  Bytes bytes(count);
  for (auto& byte : bytes) {
    seed = seed * 1664525 + 1013904223;
    byte = static_cast<std::uint8_t>(seed >> 24);
  }
  return bytes;
}

}  // namespace lockstep::testing
