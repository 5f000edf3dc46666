#include <algorithm>
#include <array>
#include <exception>
#include <string>

#include <mpi.h>

#include <lockstep/mpi/environment.hpp>
#include <lockstep/mpi/interop.hpp>

#include "blocking_call.hpp"
#include "fault_tolerance.hpp"
#include "mpi_transport.hpp"
#include "smpi.hpp"

namespace lockstep {
namespace {

Communicator duplicate_of(MPI_Comm comm, std::shared_ptr<MpiFamily> family, WaitPolicy policy) {
  MPI_Comm duplicate = MPI_COMM_NULL;
  {
    const BlockingCall call("all ranks to make a communicator");
    check_mpi(MPI_Comm_dup(comm, &duplicate), "MPI_Comm_dup");
  }
  return Communicator(
      std::make_shared<MpiTransport>(duplicate, is_oversubscribed(duplicate), std::move(family)),
      std::move(policy));
}

}  // namespace

Environment::Environment(int* argc, char*** argv) : exceptions_at_start_(std::uncaught_exceptions()) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) return;
  int provided = 0;
  const BlockingCall call("MPI to start on all ranks", BlockingCall::Kind::start);
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  finalize_ = true;
  // SMPI says that it has no threads, which is true inside the simulation.
  if (provided < MPI_THREAD_FUNNELED && !kRanksAreSimulated) {
    throw EnvironmentError(
        "the MPI library does not support MPI_THREAD_FUNNELED, which background writing needs; use one that "
        "was built "
        "with thread support");
  }
}

Environment::~Environment() {
  const bool abandoned = std::ranges::any_of(families_, [](const auto& world) { return world->abandoned; });
  if (!finalize_ || abandoned || std::uncaught_exceptions() != exceptions_at_start_) return;
  // Where a rank has died, Open MPI 5 sometimes waits for it here, for minutes, and not all ranks need know
  // of a death that came when all had agreed to end.
  if (survives_losses()) return;
  const BlockingCall call("MPI to end on all ranks");
  MPI_Finalize();
}

Communicator Environment::world(WaitPolicy policy) const {
  families_.push_back(std::make_shared<MpiFamily>());
  // Else the first error ends the process.
  if (survives_losses()) MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  Communicator world = duplicate_of(MPI_COMM_WORLD, families_.back(), std::move(policy));
  if (survives_losses()) families_.back()->roll = std::make_unique<RollCall>(families_.back()->root);
  return world;
}

bool Environment::has_lost() const noexcept {
  return !families_.empty() && lockstep::has_lost(families_.back()->root);
}

bool Environment::survives_losses() noexcept {
  return lockstep::survives_losses();
}

bool Environment::agree_to_end(bool well, Seconds patience, const Tell& tell) const {
  if (!survives_losses()) return well;
  MpiFamily& family = *families_.back();
  if (!well && family.root != MPI_COMM_NULL) revoke(family.root);
  family.roll->answer();
  if (!well) family.roll->await(patience, tell);
  const bool all = family.roll->agree(well);
  family.lost = !all;
  // Who is missing was found and is left out.
  if (!all) family.abandoned = false;
  return all;
}

Communicator Environment::survivors(Seconds patience, const Tell& tell, const WaitPolicy& policy) const {
  for (;;) {
    const RollCall& before = *families_.back()->roll;
    MPI_Comm const left = before.without_lost();
    // From here on whoever is left belongs to the new world, whatever fails.
    families_.push_back(std::make_shared<MpiFamily>());
    families_.back()->roll = std::make_unique<RollCall>(before, left);
    try {
      return duplicate_of(left, families_.back(), policy);
    } catch (const DeadlineExceeded&) {
      agree_to_end(false, patience, tell);  // one more
    }
  }
}

std::string Environment::library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string full(text.data(), static_cast<std::size_t>(length));
  return full.substr(0, full.find(','));
}

Communicator from_mpi(MPI_Comm comm, WaitPolicy policy) {
  return duplicate_of(comm, std::make_shared<MpiFamily>(), std::move(policy));
}

}  // namespace lockstep
