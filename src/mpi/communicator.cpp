#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/mpi/self_transport.hpp>

namespace lockstep {
namespace {

// Tags below this are the library's own set-up messages; the reduction has tags of its own above.
constexpr int kArrivedTag = 1;
constexpr int kReleasedTag = 2;

// MPI counts are ints; pieces of this size keep far from the limit and bound the memory MPI may want.
constexpr std::size_t kPiece = std::size_t{256} << 20;

struct Outcome {
  std::int32_t code = 0;
  std::uint32_t length = 0;
};

std::string describe(const std::exception_ptr& failure, ExitCode& code) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    code = exit_code_of(error);
    return error.what();
  } catch (...) {
    code = ExitCode::internal;
    return "an exception of an unknown type";
  }
}

}  // namespace

Communicator::Communicator(std::shared_ptr<Transport> transport, WaitPolicy policy)
    : transport_(std::move(transport)), policy_(std::move(policy)) {}

Communicator Communicator::self(WaitPolicy policy) {
  return Communicator(std::make_shared<SelfTransport>(), std::move(policy));
}

Seconds Communicator::wait_slowly(std::string_view what, const std::function<bool()>& ready,
                                  const std::function<std::string()>& missing) const {
  // Reading the clock costs more than a turn of spinning; this many turns last some tens of microseconds.
  constexpr std::uint64_t kTurnsPerClock = 256;
  const Seconds start = policy_.clock->now();
  Seconds notice = policy_.notice;
  for (std::uint64_t turn = 0; !ready(); ++turn) {
    transport_->relax(turn);
    if (turn % kTurnsPerClock != kTurnsPerClock - 1) continue;
    const Seconds waited = policy_.clock->now() - start;
    if (policy_.limit.count() > 0 && waited >= policy_.limit) {
      throw DeadlineExceeded(
          fmt::format("rank {} waited {:.1f} s (the limit) for {}; missing: {}; look at their host and log, "
                      "and launch again "
                      "to go on from the newest checkpoint",
                      rank(), waited.count(), what, missing()));
    }
    if (waited >= notice) {
      policy_.log.warn(fmt::format("rank {} has waited {:.0f} s for {}; missing: {}", rank(), waited.count(),
                                   what, missing()));
      notice = 2 * waited;
    }
  }
  return policy_.clock->now() - start;
}

Seconds Communicator::wait(Request& request, std::string_view what, std::string_view partner) const {
  return wait_until(
      what, [&] { return transport_->test(request); }, [&] { return std::string(partner); });
}

void Communicator::barrier(std::string_view what) const {
  std::byte token{};
  if (!is_chief()) {
    Request arrived = send(std::span(&token, 1), 0, kArrivedTag);
    std::byte release{};
    Request released = receive(std::span(&release, 1), 0, kReleasedTag);
    const auto chief = [] { return std::string("rank 0, or a rank that it waits for"); };
    wait_until(
        what, [&] { return transport_->test(arrived); }, chief);
    wait_until(
        what, [&] { return transport_->test(released); }, chief);
    return;
  }
  const auto others = static_cast<std::size_t>(size() - 1);
  std::vector<std::byte> tokens(others);
  std::vector<Request> requests;
  for (std::size_t i = 0; i < others; ++i) {
    requests.push_back(receive(std::span(&tokens[i], 1), static_cast<int>(i) + 1, kArrivedTag));
  }
  const auto all_done = [&] {
    bool all = true;
    for (Request& request : requests) all = transport_->test(request) && all;
    return all;
  };
  wait_until(what, all_done, [&] {
    std::vector<int> missing;
    for (std::size_t i = 0; i < others; ++i) {
      if (!requests[i].done) missing.push_back(static_cast<int>(i) + 1);
    }
    return (missing.size() == 1 ? "rank " : "ranks ") + to_string_ranks(missing);
  });
  for (std::size_t i = 0; i < others; ++i) {
    requests[i] = send(std::span(&tokens[i], 1), static_cast<int>(i) + 1, kReleasedTag);
  }
  wait_until(what, all_done, [] { return std::string("the release of the barrier"); });
}

void Communicator::broadcast(std::span<std::byte> bytes, int root, std::string_view what) const {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPiece));
    Request request = transport_->broadcast(piece, root);
    wait(request, what, rank() == root ? "ranks that take part" : fmt::format("rank {}", root));
    bytes = bytes.subspan(piece.size());
  }
}

std::string Communicator::broadcast_text(const std::string& text, int root) const {
  std::uint64_t length = text.size();
  broadcast_values(std::span(&length, 1), root);
  std::string result = rank() == root ? text : std::string(length, '\0');
  broadcast(std::as_writable_bytes(std::span(result)), root);
  return result;
}

void Communicator::all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) const {
  Request request = transport_->all_gather(mine, all);
  wait(request, "a gather");
}

std::vector<std::string> Communicator::all_gather_text(const std::string& text) const {
  const auto lengths = all_gather<std::uint64_t>(text.size());
  const std::uint64_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::vector<std::string> texts(static_cast<std::size_t>(size()));
  if (longest == 0) return texts;
  std::string padded = text;
  padded.resize(longest);
  std::string all(longest * static_cast<std::size_t>(size()), '\0');
  all_gather_bytes(std::as_bytes(std::span(padded)), std::as_writable_bytes(std::span(all)));
  for (std::size_t i = 0; i < texts.size(); ++i) texts[i] = all.substr(i * longest, lengths[i]);
  return texts;
}

Communicator Communicator::split(int color, int key) const {
  return Communicator(transport_->split(color, key), policy_);
}

Communicator Communicator::split_by_node(int at_most) const {
  const Communicator node(transport_->split_by_node(), policy_);
  if (at_most <= 0 || at_most >= node.size()) return node;
  return node.split(node.rank() / at_most, node.rank());
}

void Communicator::abort(ExitCode code, std::string_view reason) const {
  transport_->abort(static_cast<int>(code), reason);
  std::abort();  // never reached
}

std::string to_string_ranks(std::span<const int> ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (!text.empty()) text += ", ";
    text += std::to_string(ranks[i]);
    if (end - i > 1) text += (end - i == 2 ? ", " : "-") + std::to_string(ranks[end - 1]);
    i = end;
  }
  return text;
}

void on_chief(const Communicator& comm, std::string_view what, const std::function<void()>& work) {
  Outcome outcome;
  std::string message;
  std::exception_ptr own;
  if (comm.is_chief()) {
    try {
      work();
    } catch (...) {
      own = std::current_exception();
      ExitCode code = ExitCode::done;
      message = describe(own, code);
      outcome.code = static_cast<std::int32_t>(code);
    }
    outcome.length = static_cast<std::uint32_t>(message.size());
  }
  comm.broadcast(std::as_writable_bytes(std::span(&outcome, 1)), 0, what);
  if (outcome.code == 0) return;
  message.resize(outcome.length);
  comm.broadcast_values(std::span(message));
  if (own) std::rethrow_exception(own);  // with all its facts
  throw_error(static_cast<ExitCode>(outcome.code), message);
}

void throw_together(const Communicator& comm, const std::exception_ptr& failure) {
  Outcome mine;
  std::string message;
  if (failure) {
    ExitCode code = ExitCode::done;
    message = describe(failure, code);
    mine.code = static_cast<std::int32_t>(code);
    mine.length = static_cast<std::uint32_t>(message.size());
  }
  const auto outcomes = comm.all_gather(mine);
  const auto first =
      std::find_if(outcomes.begin(), outcomes.end(), [](const Outcome& o) { return o.code != 0; });
  if (first == outcomes.end()) return;
  const int root = static_cast<int>(first - outcomes.begin());
  message.resize(first->length);
  comm.broadcast_values(std::span(message), root);
  if (root == comm.rank()) std::rethrow_exception(failure);
  throw_error(static_cast<ExitCode>(first->code),
              root == 0 ? message : fmt::format("rank {}: {}", root, message));
}

}  // namespace lockstep
