#include <algorithm>
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

/// Waits that have the limit itself speak first: they know more.
Seconds more_patient(Seconds limit) {
  return 1.25 * limit + Seconds{5};
}

}  // namespace

PeerWatch::PeerWatch(const Communicator& comm, Executor& executor, ProcessIdentity& process, Options options)
    : options_(std::move(options)), host_(process.host()) {
  struct Place {
    Digest scope;  // equal where ranks can see each other, whatever they call their host
    std::int64_t pid;
    std::uint64_t start_time;
    int rank;
  };
  const std::string scope = ProcessWatch::scope();
  const Place mine{digest_of(std::as_bytes(std::span(scope))), process.pid(),
                   process.start_time(process.pid()).value_or(0), comm.rank()};
  // Those that can see each other share memory; no rank needs a list of all others.
  for (const Place& place : comm.split_by_node().all_gather(mine)) {
    if (place.rank == comm.rank() || place.scope != mine.scope) continue;
    peers_.push_back({place.rank, {place.pid, place.start_time}, 0});
  }
  // The nearest above this rank first.
  std::ranges::sort(peers_, {},
                    [&](const Peer& peer) { return (peer.rank - comm.rank() + comm.size()) % comm.size(); });
  std::vector<ProcessWatch::Process> processes;
  for (const Peer& peer : peers_) processes.push_back(peer.process);
  if (peers_.empty()) return;
  watch_ = std::make_unique<ProcessWatch>(processes);
  if (!options_.lost) options_.lost = end_process;
  thread_ = executor.every("peer watch", kPeriod, [this] {
    if (!options_.kills) look_for_dead();
    if (options_.hang_limit > Seconds{0}) look_for_stopped();
  });
}

std::string PeerWatch::name(const Peer& peer) const {
  return fmt::format("rank {} (pid {} on {})", peer.rank, peer.process.pid, host_);
}

void PeerWatch::look_for_dead() {
  if (told_) return;
  const auto ended = watch_->ended();
  if (!ended) return;
  told_ = true;
  options_.lost(fmt::format("{} has died; this job ends: launch it again to go on from the newest checkpoint",
                            name(peers_[*ended])));
}

/// Behind those that are stopped the next one is looked at, too: whoever looks at it is one of them.
void PeerWatch::look_for_stopped() {
  const Seconds limit = more_patient(options_.hang_limit);
  for (Peer& peer : peers_) {
    const auto state = ProcessWatch::state(peer.process);
    if (state == ProcessWatch::State::ended) continue;
    if (state == ProcessWatch::State::there) {
      peer.stopped = 0;
      return;
    }
    // Looks, not a clock: while this process is stopped itself, no time counts.
    ++peer.stopped;
    if (told_ || peer.stopped * kPeriod < limit) continue;
    if (options_.kills) {
      peer.stopped = 0;
      options_.lost(fmt::format("{} has not answered for {:.1f} s and is killed: it was stopped (SIGSTOP)",
                                name(peer), limit.count()));
      ProcessWatch::kill(peer.process);
    } else {
      told_ = true;
      options_.lost(
          fmt::format("{} has been stopped (SIGSTOP) for {:.1f} s; this job ends: launch it again to "
                      "go on from the newest checkpoint",
                      name(peer), limit.count()));
    }
  }
}

}  // namespace lockstep
