#pragma once

#include <memory>
#include <string_view>

#include <mpi.h>

#include <lockstep/mpi/transport.hpp>

#include "mpi_family.hpp"
#include "smpi.hpp"

namespace lockstep {

/// Throws DeadlineExceeded (a lost rank) or IoError with the operation and MPI's own text unless `code` is
/// success.
void check_mpi(int code, std::string_view operation);

/// Ranks as processes of an MPI job. Owns its communicator.
class MpiTransport final : public Transport {
 public:
  /// Takes over `comm`, which must not be one of MPI's own. `oversubscribed`: this node has more ranks than
  /// cores.
  /// `family`: shared by a transport and all that were split from it.
  MpiTransport(MPI_Comm comm, bool oversubscribed,
               std::shared_ptr<MpiFamily> family = std::make_shared<MpiFamily>());
  ~MpiTransport() override;
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }

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
  void abandon() noexcept override { family_->abandoned = true; }
  void let_go() noexcept override { *left_ = true; }
  [[noreturn]] void abort(int code, std::string_view reason) override;

 private:
  Request started(MPI_Request operation);

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
  bool oversubscribed_;
  std::shared_ptr<MpiFamily> family_;
  std::shared_ptr<bool> left_ = std::make_shared<bool>(false);  ///< shared by this transport and its memory
  [[no_unique_address]] SimulatedWaits simulated_waits_;
  MPI_Datatype value_type_ = MPI_DATATYPE_NULL;  ///< of all_reduce_value, made when first used
  MPI_Op value_op_ = MPI_OP_NULL;
};

/// Whether the ranks of `comm` on this node outnumber its cores. Collective over `comm`.
bool is_oversubscribed(MPI_Comm comm);

}  // namespace lockstep
