#include <cstdio>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/mpi/peer_watch.hpp>

namespace lockstep {
namespace {

constexpr Seconds kPeriod{0.25};

void end_process(const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  std::fflush(stderr);
  std::_Exit(static_cast<int>(ExitCode::try_again));
}

}  // namespace

PeerWatch::PeerWatch(const Communicator& comm, Executor& executor, ProcessIdentity& process, Lost lost)
    : host_(process.host()) {
  struct Peer {
    Digest scope;  // equal where ranks can see each other, whatever they call their host
    std::int64_t pid;
    std::uint64_t start_time;
  };
  const std::string scope = ProcessWatch::scope();
  const Peer mine{digest_of(std::as_bytes(std::span(scope))), process.pid(),
                  process.start_time(process.pid()).value_or(0)};
  const auto peers = comm.all_gather(mine);
  for (int rank = 0; rank < comm.size(); ++rank) {
    const Peer& peer = peers[static_cast<std::size_t>(rank)];
    if (rank == comm.rank() || peer.scope != mine.scope) continue;
    ranks_.push_back(rank);
    processes_.push_back({peer.pid, peer.start_time});
  }
  if (ranks_.empty()) return;
  watch_ = std::make_unique<ProcessWatch>(processes_);
  if (!lost) lost = end_process;
  thread_ = executor.every("peer watch", kPeriod, [this, lost = std::move(lost)] {
    if (told_) return;
    const auto ended = watch_->ended();
    if (!ended) return;
    told_ = true;
    lost(fmt::format(
        "rank {} (pid {} on {}) has died; this job ends: launch it again to go on from the newest "
        "checkpoint",
        ranks_[*ended], processes_[*ended].pid, host_));
  });
}

}  // namespace lockstep
