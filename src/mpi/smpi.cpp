#include "smpi.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include <simgrid/actor.h>

#include <lockstep/mpi/self_transport.hpp>

#include "mpi_transport.hpp"

namespace lockstep {

namespace {

class ProcessMemory final : public SharedMemory {
 public:
  ProcessMemory(MPI_Comm comm, int rank, int size, std::size_t bytes) {
    struct Piece {
      const std::shared_ptr<std::byte[]>* memory;
      std::size_t bytes;
    };
    const std::shared_ptr<std::byte[]> mine = zeroed_pages(bytes);
    std::vector<Piece> pieces(static_cast<std::size_t>(size));
    pieces[static_cast<std::size_t>(rank)] = {&mine, bytes};
    check_mpi(MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, pieces.data(), sizeof(Piece), MPI_BYTE, comm),
              "MPI_Allgather");
    for (const Piece& piece : pieces) {
      memory_.push_back(*piece.memory);
      sizes_.push_back(piece.bytes);
    }
    check_mpi(MPI_Barrier(comm), "MPI_Barrier");  // `mine` is looked at until all have come
  }

  std::span<std::byte> region(int rank) const override {
    const auto i = static_cast<std::size_t>(rank);
    return {memory_[i].get(), sizes_[i]};
  }

 private:
  std::vector<std::shared_ptr<std::byte[]>> memory_;
  std::vector<std::size_t> sizes_;
};

}  // namespace

Request SimulatedWaits::begin(MPI_Request operation) {
  Request request;
  std::memcpy(&request.handle[0], &operation, sizeof operation);
  request.handle[1] = ++begun_;
  request.done = false;
  return request;
}

bool SimulatedWaits::test(Request& request) {
  const std::uint64_t number = request.handle[1];
  int done = done_.erase(number) > 0 ? 1 : 0;
  if (done == 0) {
    MPI_Request raw;
    std::memcpy(&raw, &request.handle[0], sizeof raw);
    check_mpi(MPI_Test(&raw, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done == 0) {
      tested_.emplace(number, raw);
    } else {
      tested_.erase(number);
    }
  }
  request.done = done != 0;
  return request.done;
}

void SimulatedWaits::relax(std::uint64_t turn) {
  if (tested_.empty()) {
    constexpr double kFirst = 0.2e-6;
    constexpr double kGrowth = 1.03;
    constexpr double kMost = 1;
    sg_actor_sleep_for(std::min(kFirst * std::pow(kGrowth, static_cast<double>(turn)), kMost));
    return;
  }
  std::vector<std::uint64_t> numbers;
  std::vector<MPI_Request> operations;
  for (const auto& [number, operation] : tested_) {
    numbers.push_back(number);
    operations.push_back(operation);
  }
  int index = 0;
  check_mpi(MPI_Waitany(static_cast<int>(operations.size()), operations.data(), &index, MPI_STATUS_IGNORE),
            "MPI_Waitany");
  done_.insert(numbers.at(static_cast<std::size_t>(index)));
  // What is waited for next may be something else.
  tested_.clear();
}

std::unique_ptr<SharedMemory> share_in_process(MPI_Comm comm, int rank, int size, std::size_t bytes) {
  return std::make_unique<ProcessMemory>(comm, rank, size, bytes);
}

}  // namespace lockstep
