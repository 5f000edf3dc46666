// Jumps to another stack are no longjmp out of a frame that has ended, for which its checks take them.
#undef _FORTIFY_SOURCE

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include <cxxabi.h>
#include <fmt/format.h>
#include <ucontext.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/self_transport.hpp>
#include <lockstep/mpi/simulated_world.hpp>

// gcc tells of the address sanitizer by a macro, clang by a feature test.
#if defined(__SANITIZE_ADDRESS__)
#define LOCKSTEP_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LOCKSTEP_ADDRESS_SANITIZER
#endif
#endif

#if defined(LOCKSTEP_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif

namespace lockstep {
namespace {

constexpr std::size_t kStackBytes = std::size_t{1} << 20;

// When every rank has waited this many turns in its present wait, none of them will ever go on.
constexpr std::uint64_t kTurnsToDeadlock = 2000;

/// The exception state that the C++ runtime keeps per thread. Ranks share a thread here, so each needs its
/// own, or a rank that waits inside a catch block would unwind another rank's exception.
struct ExceptionState {
  void* caught = nullptr;
  unsigned int uncaught = 0;
};

void swap_exception_state(ExceptionState& mine) {
  auto* current = reinterpret_cast<ExceptionState*>(abi::__cxa_get_globals());
  std::swap(*current, mine);
}

using Stack = std::unique_ptr<char[]>;

/// Those of earlier worlds: their pages were touched already.
std::vector<Stack>& spare_stacks() {
  thread_local std::vector<Stack> stacks;
  return stacks;
}

Stack take_stack() {
  auto& spare = spare_stacks();
  if (spare.empty()) return std::make_unique_for_overwrite<char[]>(kStackBytes);
  Stack stack = std::move(spare.back());
  spare.pop_back();
  return stack;
}

class Scheduler {
 public:
  Scheduler(int ranks, std::uint64_t seed, std::function<Turn(int)> turn)
      : random_(seed), ranks_(static_cast<std::size_t>(ranks)), turn_(std::move(turn)) {}
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  ~Scheduler() {
#if !defined(LOCKSTEP_ADDRESS_SANITIZER)  // which remembers what frames that never ended had on a stack
    for (Rank& rank : ranks_) {
      if (rank.stack) spare_stacks().push_back(std::move(rank.stack));
    }
#endif
  }

  void run(const std::function<void(int)>& body) {
    body_ = &body;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      Rank& rank = ranks_[i];
      rank.stack = take_stack();
      getcontext(&rank.context);
      rank.context.uc_stack.ss_sp = rank.stack.get();
      rank.context.uc_stack.ss_size = kStackBytes;
      rank.context.uc_link = &scheduler_;
      const auto self = reinterpret_cast<std::uintptr_t>(this);
      // makecontext passes ints only: the pointer goes in two halves.
      makecontext(&rank.context, reinterpret_cast<void (*)()>(&Scheduler::enter), 3,
                  static_cast<unsigned>(self >> 32), static_cast<unsigned>(self & 0xffffffffU),
                  static_cast<unsigned>(i));
      alive_.push_back(i);
    }
    while (!alive_.empty()) {
      const std::size_t pick = (draw() >> 32) * alive_.size() >> 32;
      resume(alive_[pick]);
      if (ranks_[alive_[pick]].ended) alive_.erase(alive_.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    for (Rank& rank : ranks_) {
      if (rank.failure) std::rethrow_exception(rank.failure);
    }
  }

  /// Called by a rank that waits, with the number of turns it has waited: lets another one run.
  void yield(std::uint64_t turn) {
    Rank& rank = ranks_[current_];
    rank.turn = turn;
    if (turn_) {
      do {
        pause(rank);
      } while (!may_go_on());
      return;
    }
    if (turn >= kTurnsToDeadlock && std::all_of(alive_.begin(), alive_.end(), [this](std::size_t i) {
          return ranks_[i].turn >= kTurnsToDeadlock;
        })) {
      throw InternalError(fmt::format("simulated rank {} waits, as do all others: none can go on", current_));
    }
    pause(rank);
  }

  /// Before each operation of the rank that runs.
  void begin_operation() {
    if (!turn_) return;
    while (!may_go_on()) pause(ranks_[current_]);
  }

 private:
  struct Rank {
    Stack stack;
    ucontext_t context{};
    std::jmp_buf jump{};
    bool entered = false;
    ExceptionState exceptions;
    std::exception_ptr failure;
    void* fake_stack = nullptr;
    std::uint64_t turn = 0;
    bool ended = false;
  };

  /// splitmix64: there is one for every turn.
  std::uint64_t draw() {
    random_ += 0x9e3779b97f4a7c15;
    std::uint64_t z = random_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  bool may_go_on() const {
    const Turn turn = turn_(static_cast<int>(current_));
    if (turn == Turn::lose) {
      throw DeadlineExceeded(fmt::format("simulated rank {} has lost the others", current_));
    }
    return turn == Turn::go_on;
  }

  void pause(Rank& rank) {
    swap_exception_state(rank.exceptions);
    leave(rank);
    swap_exception_state(rank.exceptions);
  }

  static void enter(unsigned high, unsigned low, unsigned index) {
    auto* self = reinterpret_cast<Scheduler*>((static_cast<std::uintptr_t>(high) << 32) | low);
    self->body(index);
  }

  void body(std::size_t index) {
    finish_switch(nullptr, &scheduler_stack_, &scheduler_stack_size_);
    Rank& rank = ranks_[index];
    try {
      (*body_)(static_cast<int>(index));
    } catch (...) {
      rank.failure = std::current_exception();
    }
    rank.ended = true;
    leave(rank);
  }

  // The first time a rank runs, makecontext's way; after that with jumps, since swapcontext asks the kernel
  // for the signal mask, which was a quarter of the time of simulated jobs. The address sanitizer follows
  // the former alone.
#if defined(LOCKSTEP_ADDRESS_SANITIZER)
  void resume(std::size_t index) {
    current_ = index;
    Rank& rank = ranks_[index];
    void* fake_stack = nullptr;
    start_switch(&fake_stack, rank.stack.get(), kStackBytes);
    swapcontext(&scheduler_, &rank.context);
    finish_switch(fake_stack, nullptr, nullptr);
  }

  void leave(Rank& rank) {
    start_switch(rank.ended ? nullptr : &rank.fake_stack, scheduler_stack_, scheduler_stack_size_);
    swapcontext(&rank.context, &scheduler_);
    finish_switch(rank.fake_stack, &scheduler_stack_, &scheduler_stack_size_);
  }
#else
  void resume(std::size_t index) {
    current_ = index;
    Rank& rank = ranks_[index];
    if (_setjmp(scheduler_jump_) != 0) return;
    if (rank.entered) _longjmp(rank.jump, 1);
    rank.entered = true;
    setcontext(&rank.context);
  }

  void leave(Rank& rank) {
    if (_setjmp(rank.jump) == 0) _longjmp(scheduler_jump_, 1);
  }
#endif

  // The address sanitizer must be told of every change of stack.
#if defined(LOCKSTEP_ADDRESS_SANITIZER)
  static void start_switch(void** fake_stack, const void* bottom, std::size_t size) {
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
  }
  static void finish_switch(void* fake_stack, const void** bottom, std::size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
  }
#else
  static void start_switch(void**, const void*, std::size_t) {}
  static void finish_switch(void*, const void**, std::size_t*) {}
#endif

  std::uint64_t random_;
  std::vector<Rank> ranks_;
  std::function<Turn(int)> turn_;
  std::vector<std::size_t> alive_;
  std::size_t current_ = 0;
  const std::function<void(int)>* body_ = nullptr;
  ucontext_t scheduler_{};
  [[maybe_unused]] std::jmp_buf scheduler_jump_{};
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_size_ = 0;
};

/// What the ranks of one simulated communicator share.
struct Group {
  struct Message {
    std::vector<std::byte> bytes;
  };
  struct Collective {
    std::vector<std::vector<std::byte>> contributions;  // one a rank
    int arrived = 0;
    int left = 0;
  };

  Group(Scheduler& owner, std::vector<int> node_of_rank)
      : scheduler(&owner), nodes(std::move(node_of_rank)), sequence(nodes.size(), 0) {}

  Scheduler* scheduler;
  std::vector<int> nodes;                                         // node of each rank
  std::map<std::tuple<int, int, int>, std::deque<Message>> mail;  // (source, destination, tag)
  std::map<std::uint64_t, Collective> collectives;                // by sequence number
  std::vector<std::uint64_t> sequence;                            // next collective of each rank
  std::map<std::uint64_t, std::map<int, std::shared_ptr<Group>>> splits;
  std::map<std::uint64_t, std::vector<std::shared_ptr<std::byte[]>>> windows;
};

class SimulatedMemory final : public SharedMemory {
 public:
  SimulatedMemory(std::vector<std::shared_ptr<std::byte[]>> regions, std::vector<std::size_t> sizes)
      : regions_(std::move(regions)), sizes_(std::move(sizes)) {}
  std::span<std::byte> region(int rank) const override {
    const auto i = static_cast<std::size_t>(rank);
    return {regions_[i].get(), sizes_[i]};
  }

 private:
  std::vector<std::shared_ptr<std::byte[]>> regions_;
  std::vector<std::size_t> sizes_;
};

class SimulatedTransport final : public Transport {
 public:
  SimulatedTransport(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(group_->nodes.size()); }

  Request send(std::span<const std::byte> bytes, int destination, int tag) override {
    group_->scheduler->begin_operation();
    group_->mail[{rank_, destination, tag}].push_back({{bytes.begin(), bytes.end()}});
    return {};
  }

  Request receive(std::span<std::byte> bytes, int source, int tag) override {
    group_->scheduler->begin_operation();
    return pending([this, bytes, source, tag] {
      auto& queue = group_->mail[{source, rank_, tag}];
      if (queue.empty()) return false;
      if (queue.front().bytes.size() > bytes.size()) {
        throw InternalError(fmt::format("rank {} receives {} bytes from {} (tag {}), which sent {}", rank_,
                                        bytes.size(), source, tag, queue.front().bytes.size()));
      }
      std::copy(queue.front().bytes.begin(), queue.front().bytes.end(), bytes.begin());
      queue.pop_front();
      return true;
    });
  }

  bool has_message(int source, int tag) override { return !group_->mail[{source, rank_, tag}].empty(); }

  Request broadcast(std::span<std::byte> bytes, int root) override {
    const std::uint64_t number = join(rank_ == root ? bytes : std::span<std::byte>{});
    return pending([this, bytes, root, number] {
      Group::Collective& collective = group_->collectives.at(number);
      const auto& sent = collective.contributions[static_cast<std::size_t>(root)];
      if (rank_ != root) {
        if (sent.empty()) return false;
        check_length(sent.size(), bytes.size(), "broadcast");
        std::copy(sent.begin(), sent.end(), bytes.begin());
      }
      leave(number);
      return true;
    });
  }

  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    const std::uint64_t number = join(mine);
    return pending([this, all, number] {
      Group::Collective& collective = group_->collectives.at(number);
      if (collective.arrived < size()) return false;
      auto out = all.begin();
      for (const auto& part : collective.contributions) {
        check_length(part.size(), all.size() / static_cast<std::size_t>(size()), "all_gather");
        out = std::copy(part.begin(), part.end(), out);
      }
      leave(number);
      return true;
    });
  }

  Request all_reduce_sum(std::span<float> values) override {
    const std::uint64_t number = join(std::as_bytes(values));
    return pending([this, values, number] {
      Group::Collective& collective = group_->collectives.at(number);
      if (collective.arrived < size()) return false;
      std::fill(values.begin(), values.end(), 0.0F);
      std::vector<float> part(values.size());
      for (const auto& bytes : collective.contributions) {
        check_length(bytes.size(), values.size_bytes(), "all_reduce_sum");
        if (!bytes.empty()) std::memcpy(part.data(), bytes.data(), bytes.size());
        for (std::size_t i = 0; i < part.size(); ++i) values[i] += part[i];
      }
      leave(number);
      return true;
    });
  }

  Request all_reduce_value(std::span<std::byte> value, Combine combine) override {
    const std::uint64_t number = join(value);
    return pending([this, value, combine, number] {
      Group::Collective& collective = group_->collectives.at(number);
      if (collective.arrived < size()) return false;
      std::vector<std::byte> total = collective.contributions.back();
      check_length(total.size(), value.size(), "all_reduce_value");
      for (std::size_t i = collective.contributions.size() - 1; i-- > 0;) {
        check_length(collective.contributions[i].size(), value.size(), "all_reduce_value");
        combine(collective.contributions[i].data(), total.data());
      }
      std::copy(total.begin(), total.end(), value.begin());
      leave(number);
      return true;
    });
  }

  bool test(Request& request) override {
    if (request.done) return true;
    const auto found = pending_.find(request.handle[0]);
    if (found == pending_.end()) throw InternalError("a request was tested after it was done");
    if (!found->second()) return false;
    pending_.erase(found);
    request.done = true;
    return true;
  }

  std::shared_ptr<Transport> split(int color, int key) override {
    struct Choice {
      int color;
      int key;
    };
    const Choice mine{color, key};
    std::vector<Choice> all(group_->nodes.size());
    const std::uint64_t number = group_->sequence[static_cast<std::size_t>(rank_)];
    finish(all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all))));
    std::vector<int> members;
    for (int r = 0; r < size(); ++r) {
      if (all[static_cast<std::size_t>(r)].color == color) members.push_back(r);
    }
    std::stable_sort(members.begin(), members.end(), [&](int left, int right) {
      return all[static_cast<std::size_t>(left)].key < all[static_cast<std::size_t>(right)].key;
    });
    auto& group = group_->splits[number][color];
    if (!group) {
      std::vector<int> nodes;
      for (const int r : members) nodes.push_back(group_->nodes[static_cast<std::size_t>(r)]);
      group = std::make_shared<Group>(*group_->scheduler, std::move(nodes));
    }
    const auto mine_at = std::find(members.begin(), members.end(), rank_) - members.begin();
    return std::make_shared<SimulatedTransport>(group, static_cast<int>(mine_at));
  }

  std::shared_ptr<Transport> split_by_node() override {
    return split(group_->nodes[static_cast<std::size_t>(rank_)], rank_);
  }

  std::unique_ptr<SharedMemory> share(std::size_t bytes, FirstTouch) override {
    const std::uint64_t number = group_->sequence[static_cast<std::size_t>(rank_)];
    auto& regions = group_->windows[number];
    regions.resize(group_->nodes.size());
    regions[static_cast<std::size_t>(rank_)] = zeroed_pages(bytes);
    std::vector<std::size_t> sizes(group_->nodes.size());
    finish(all_gather(std::as_bytes(std::span(&bytes, 1)), std::as_writable_bytes(std::span(sizes))));
    return std::make_unique<SimulatedMemory>(group_->windows.at(number), sizes);
  }

  bool relax(std::uint64_t turn) override {
    group_->scheduler->yield(turn);
    return false;  // time is the clock's alone
  }

  [[noreturn]] void abort(int code, std::string_view reason) override {
    throw InternalError(fmt::format("simulated rank {} aborted the job with {}: {}", rank_, code, reason));
  }

 private:
  Request pending(std::function<bool()> complete) {
    Request request;
    request.done = false;
    request.handle[0] = next_request_++;
    pending_.emplace(request.handle[0], std::move(complete));
    return request;
  }

  void finish(Request request) {
    for (std::uint64_t turn = 0; !test(request); ++turn) group_->scheduler->yield(turn);
  }

  std::uint64_t join(std::span<const std::byte> mine) {
    group_->scheduler->begin_operation();
    const std::uint64_t number = group_->sequence[static_cast<std::size_t>(rank_)]++;
    Group::Collective& collective = group_->collectives[number];
    collective.contributions.resize(group_->nodes.size());
    collective.contributions[static_cast<std::size_t>(rank_)].assign(mine.begin(), mine.end());
    ++collective.arrived;
    return number;
  }

  void leave(std::uint64_t number) {
    if (++group_->collectives.at(number).left == size()) group_->collectives.erase(number);
  }

  void check_length(std::size_t theirs, std::size_t mine, std::string_view operation) const {
    if (theirs == mine) return;
    throw InternalError(
        fmt::format("rank {} is in {} with {} bytes, another rank with {}", rank_, operation, mine, theirs));
  }

  std::shared_ptr<Group> group_;
  int rank_;
  std::uint64_t next_request_ = 0;
  std::map<std::uint64_t, std::function<bool()>> pending_;
};

}  // namespace

void SimulatedWorld::run(const std::function<void(const Communicator&)>& body, WaitPolicy policy) const {
  Scheduler scheduler(ranks, seed, turn);
  std::vector<int> nodes;
  for (int r = 0; r < ranks; ++r) nodes.push_back(ranks_per_node <= 0 ? 0 : r / ranks_per_node);
  const auto group = std::make_shared<Group>(scheduler, nodes);
  scheduler.run(
      [&](int rank) { body(Communicator(std::make_shared<SimulatedTransport>(group, rank), policy)); });
}

}  // namespace lockstep
