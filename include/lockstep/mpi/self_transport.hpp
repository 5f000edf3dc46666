#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include <lockstep/mpi/transport.hpp>

namespace lockstep {

/// One rank by itself, without MPI: serial programs and unit tests need no launcher. Everything completes at
/// once.
class SelfTransport final : public Transport {
 public:
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 1; }

  Request send(std::span<const std::byte> bytes, int destination, int tag) override;
  Request receive(std::span<std::byte> bytes, int source, int tag) override;
  bool has_message(int source, int tag) override;
  Request broadcast(std::span<std::byte> bytes, int root) override;
  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  Request all_reduce_sum(std::span<float> values) override;
  Request all_reduce_value(std::span<std::byte> value, Combine combine) override;
  bool test(Request& request) override;
  std::shared_ptr<Transport> split(int color, int key) override;
  std::shared_ptr<Transport> split_by_node() override;
  std::unique_ptr<SharedMemory> share(std::size_t bytes, FirstTouch touch) override;
  bool relax(std::uint64_t turn) override;
  [[noreturn]] void abort(int code, std::string_view reason) override;

 private:
  std::map<int, std::deque<std::vector<std::byte>>> to_myself_;  // by tag
};

/// `bytes` of zeroed memory aligned to a page, for windows that need no other process.
std::shared_ptr<std::byte[]> zeroed_pages(std::size_t bytes);

}  // namespace lockstep
