#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include <lockstep/mpi/communicator.hpp>
#include <lockstep/mpi/fold_ranks.hpp>
#include <lockstep/mpi/self_transport.hpp>

namespace lockstep {
namespace {

// Tags below this are the library's own set-up messages; the reduction has tags of its own above.
constexpr int kArrivedTag = 1;
constexpr int kReleasedTag = 2;
constexpr int kWhoTag = 3;  // and 4, in every other barrier
constexpr int kHereTag = 5;

// MPI counts are ints; pieces of this size keep far from the limit and bound the memory MPI may want.
constexpr std::size_t kPiece = std::size_t{256} << 20;

struct Outcome {
  std::int32_t code = 0;
  std::uint32_t length = 0;
  std::int32_t rank = 0;
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

/// Throws what another rank has thrown.
[[noreturn]] void throw_agreed(ExitCode code, const std::string& message) {
  try {
    throw_error(code, message);
  } catch (...) {
    note_agreed(std::current_exception());
    throw;
  }
}

}  // namespace

Communicator::Communicator(std::shared_ptr<Transport> transport, WaitPolicy policy)
    : transport_(std::move(transport)), policy_(std::move(policy)) {}

Communicator Communicator::self(WaitPolicy policy) {
  return Communicator(std::make_shared<SelfTransport>(), std::move(policy));
}

Seconds Communicator::wait_slowly(std::string_view what, const std::function<bool()>& ready,
                                  const std::function<std::string()>& missing, Seconds start) const {
  // While it spins, reading the clock costs more than a turn; this many turns last some microseconds.
  constexpr std::uint64_t kTurnsPerClock = 256;
  Seconds notice = policy_.notice;
  for (const Seconds waited = policy_.clock->now() - start; notice.count() > 0 && notice <= waited;)
    notice *= 2;
  for (std::uint64_t turn = 0; !ready(); ++turn) {
    bool gave_way = false;
    try {
      gave_way = transport_->relax(turn);
    } catch (const DeadlineExceeded&) {
      // A rank that is lost may have done its part before.
      if (!ready()) throw;
      break;
    }
    if (!gave_way && turn % kTurnsPerClock != kTurnsPerClock - 1) continue;
    const Seconds waited = policy_.clock->now() - start;
    if (policy_.limit.count() > 0 && waited >= policy_.limit) {
      transport_->abandon();
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

/// One rank's part in a barrier: ranks collect each other in a binomial tree below the chief. Only when the
/// chief has waited for a while does it ask all ranks directly who is there, once, so that it can name those
/// that are missing; the release then says so, and everybody answers before leaving.
struct Communicator::Barrier {
  explicit Barrier(const Communicator& communicator) : comm(communicator) {
    const int rank = comm.rank();
    const int lowest_bit = rank == 0 ? comm.size() : rank & -rank;
    parent = rank - lowest_bit;
    for (int bit = 1; bit < lowest_bit && rank + bit < comm.size(); bit *= 2) children.push_back(rank + bit);
    from_children.resize(children.size());
    for (std::size_t i = 0; i < children.size(); ++i) {
      arrived.push_back(comm.receive(std::span(&from_children[i], 1), children[i], kArrivedTag));
    }
  }

  bool test_all(std::vector<Request>& requests) const {
    bool all = true;
    for (Request& request : requests) all = comm.test(request) && all;
    return all;
  }

  /// The chief asks who is there, once.
  void ask() {
    asked = std::byte{1};
    from_all.resize(static_cast<std::size_t>(comm.size()) - 1);
    for (int rank = 1; rank < comm.size(); ++rank) {
      sent.push_back(comm.send(std::span(&token, 1), rank, who_tag));
      answers.push_back(
          comm.receive(std::span(&from_all[static_cast<std::size_t>(rank) - 1], 1), rank, kHereTag));
    }
  }

  /// A worker answers, once.
  void answer() {
    answered = true;
    question = comm.receive(std::span(&asking, 1), 0, who_tag);
    sent.push_back(comm.send(std::span(&token, 1), 0, kHereTag));
  }

  bool all_arrived() {
    if (comm.is_chief()) {
      if (asked == std::byte{0} && comm.policy().clock->now() - start >= patience) ask();
      test_all(answers);
    } else if (!answered && comm.has_message(0, who_tag)) {
      answer();
    }
    return test_all(arrived);
  }

  /// On the chief: those that have not answered, but for those that somebody vouches for.
  std::string missing() {
    std::vector<int> ranks;
    for (std::size_t i = 0; i < children.size(); ++i) {
      if (arrived[i].done) continue;
      const int end = std::min(2 * children[i], comm.size());
      for (int rank = children[i]; rank < end; ++rank) {
        if (answers.empty() || !answers[static_cast<std::size_t>(rank) - 1].done) ranks.push_back(rank);
      }
    }
    return (ranks.size() == 1 ? "rank " : "ranks ") + to_string_ranks(ranks);
  }

  const Communicator& comm;
  // A rank that was not yet released may see the question of the barrier after this one, and no later one.
  int who_tag = kWhoTag + static_cast<int>(++*comm.barriers_ % 2);
  Seconds start = comm.policy().clock->now();
  Seconds patience = comm.policy().limit.count() > 0 ? std::min(comm.policy().notice, comm.policy().limit) / 2
                                                     : comm.policy().notice / 2;
  int parent = 0;
  std::vector<int> children;  ///< each collects the ranks up to twice its number, or the end
  std::vector<std::byte> from_children;
  std::vector<Request> arrived;
  std::vector<std::byte> from_all;
  std::vector<Request> answers;
  std::vector<Request> sent;
  Request question;
  std::byte token{};
  std::byte asking{};
  std::byte asked{};  ///< known to a worker once it is released
  bool answered = false;
};

void Communicator::barrier(std::string_view what) const {
  if (size() == 1) return;
  auto barrier = std::make_unique<Barrier>(*this);
  const auto wait = [&](auto&& ready, auto&& missing) {
    if (!ready()) wait_slowly(what, std::ref(ready), std::ref(missing), barrier->start);
  };
  const auto of_worker = [] { return std::string("rank 0, or a rank that it waits for"); };
  try {
    if (is_chief()) {
      wait([&] { return barrier->all_arrived(); }, [&] { return barrier->missing(); });
    } else {
      wait([&] { return barrier->all_arrived(); }, of_worker);
      barrier->sent.push_back(send(std::span(&barrier->token, 1), barrier->parent, kArrivedTag));
      Request released = receive(std::span(&barrier->asked, 1), barrier->parent, kReleasedTag);
      wait(
          [&] {
            barrier->all_arrived();
            return test(released);
          },
          of_worker);
    }
    for (const int child : barrier->children) {
      barrier->sent.push_back(send(std::span(&barrier->asked, 1), child, kReleasedTag));
    }
    if (barrier->asked != std::byte{0} && !is_chief() && !barrier->answered) barrier->answer();
    wait(
        [&] {
          return barrier->test_all(barrier->answers) && barrier->test_all(barrier->sent) &&
                 test(barrier->question);
        },
        [] { return std::string("the release of the barrier"); });
  } catch (const DeadlineExceeded&) {
    static_cast<void>(barrier.release());  // messages under way may still be written into it
    throw;
  }
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

void Communicator::all_reduce_sum(std::span<float> values, std::vector<Request>& requests) const {
  while (!values.empty()) {
    const auto piece = values.first(std::min(values.size(), kPiece / sizeof(float)));
    requests.push_back(transport_->all_reduce_sum(piece));
    values = values.subspan(piece.size());
  }
}

void Communicator::all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) const {
  barrier("a gather");  // knows how to find out who is missing
  Request request = transport_->all_gather(mine, all);
  wait(request, "a gather", "a rank that had come to it");
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
  if (own) {
    note_agreed(own);
    std::rethrow_exception(own);  // with all its facts
  }
  throw_agreed(static_cast<ExitCode>(outcome.code), message);
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
  mine.rank = comm.rank();
  const Outcome first =
      fold_ranks(comm, "all ranks to say how they fared", mine,
                 [](const Outcome& left, const Outcome& right) { return left.code != 0 ? left : right; });
  if (first.code == 0) return;
  const int root = first.rank;
  message.resize(first.length);
  comm.broadcast_values(std::span(message), root);
  if (root == comm.rank()) {
    note_agreed(failure);
    std::rethrow_exception(failure);
  }
  throw_agreed(static_cast<ExitCode>(first.code),
               root == 0 ? message : fmt::format("rank {}: {}", root, message));
}

}  // namespace lockstep
