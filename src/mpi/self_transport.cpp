#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/self_transport.hpp>

namespace lockstep {
namespace {

class PrivateMemory final : public SharedMemory {
 public:
  explicit PrivateMemory(std::size_t bytes) : memory_(zeroed_pages(bytes)), bytes_(bytes) {}
  std::span<std::byte> region(int) const override { return {memory_.get(), bytes_}; }

 private:
  std::shared_ptr<std::byte[]> memory_;
  std::size_t bytes_;
};

}  // namespace

std::shared_ptr<std::byte[]> zeroed_pages(std::size_t bytes) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const std::size_t page = bytes >= kHugePage ? kHugePage : 4096;
  const std::size_t rounded = (bytes + page - 1) / page * page;
  void* memory = std::aligned_alloc(page, rounded == 0 ? page : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, rounded);
  return {static_cast<std::byte*>(memory), [](std::byte* pages) { std::free(pages); }};
}

Request SelfTransport::send(std::span<const std::byte> bytes, int, int tag) {
  to_myself_[tag].emplace_back(bytes.begin(), bytes.end());
  return {};
}

Request SelfTransport::receive(std::span<std::byte> bytes, int, int tag) {
  auto& queue = to_myself_[tag];
  if (queue.empty()) throw InternalError("a single rank receives what it has not sent");
  std::memcpy(bytes.data(), queue.front().data(), std::min(bytes.size(), queue.front().size()));
  queue.pop_front();
  return {};
}

bool SelfTransport::has_message(int, int tag) {
  return !to_myself_[tag].empty();
}

Request SelfTransport::broadcast(std::span<std::byte>, int) {
  return {};
}

Request SelfTransport::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  std::memcpy(all.data(), mine.data(), mine.size());
  return {};
}

Request SelfTransport::all_reduce_sum(std::span<float>) {
  return {};
}
Request SelfTransport::all_reduce_value(std::span<std::byte>, Combine) {
  return {};
}
bool SelfTransport::test(Request&) {
  return true;
}
std::shared_ptr<Transport> SelfTransport::split(int, int) {
  return std::make_shared<SelfTransport>();
}
std::shared_ptr<Transport> SelfTransport::split_by_node() {
  return std::make_shared<SelfTransport>();
}
std::unique_ptr<SharedMemory> SelfTransport::share(std::size_t bytes, FirstTouch) {
  return std::make_unique<PrivateMemory>(bytes);
}
bool SelfTransport::relax(std::uint64_t) {
  return false;
}

void SelfTransport::abort(int code, std::string_view reason) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(reason.size()), reason.data());
  std::_Exit(code);
}

}  // namespace lockstep
