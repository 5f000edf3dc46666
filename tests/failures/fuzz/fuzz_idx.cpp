// Any bytes as a file of images or labels, plain or compressed.

#include <memory>
#include <string>

#include <lockstep/base/error.hpp>
#include <lockstep/data/idx.hpp>

#include "bytes_file.hpp"

namespace {

class OneFile final : public lockstep::FileSystem {
 public:
  explicit OneFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::unique_ptr<lockstep::Directory> open_directory(const std::filesystem::path&) override {
    return nullptr;
  }
  std::unique_ptr<lockstep::Directory> create_directory(const std::filesystem::path&) override {
    return nullptr;
  }
  std::unique_ptr<lockstep::ReadableFile> open_file(const std::filesystem::path&) override {
    return std::make_unique<lockstep::test::BytesFile>(bytes_);
  }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  OneFile files(std::as_bytes(std::span(data, size)));
  try {
    const lockstep::IdxArray array = lockstep::read_idx(files, "input");
    std::uint64_t elements = 1;
    for (const std::int64_t extent : array.shape) elements *= static_cast<std::uint64_t>(extent);
    if (elements != array.values.size()) std::abort();
    volatile std::uint8_t sum = 0;
    for (const std::uint8_t value : array.values) sum = static_cast<std::uint8_t>(sum + value);
  } catch (const lockstep::DataError&) {
    // Refused.
  }
  return 0;
}
