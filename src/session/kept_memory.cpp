#include "kept_memory.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <utility>

#include <lockstep/base/error.hpp>

#include "session_ground.hpp"

namespace lockstep {
namespace {

constexpr int kTag = 6;  // of the library's set-up messages
constexpr std::size_t kPieceBytes = std::size_t{16} << 20;
constexpr std::size_t kBuffers = 1;  // which of the arenas holds them

bool is_setting(const Entry& entry) {
  return entry.path.starts_with("/config/");
}

}  // namespace

KeptMemory::KeptMemory(const SessionGround& ground, std::vector<Arena> arenas, ArenaAllocator& allocator,
                       bool second_copy)
    : arenas_(std::move(arenas)), state_(&ground.state) {
  for (Entry& entry : ground.state.entries()) {
    if (is_setting(entry)) continue;
    if (!in_an_arena(entry)) {
      // The step is known from elsewhere.
      has_private_ |= entry.path != "/session/global_step";
      entry.data = nullptr;
    }
    entries_.push_back(std::move(entry));
  }
  if (second_copy) {
    for (std::size_t i = 0; i < arenas_.size(); ++i) second_.push_back(allocator.allocate(arenas_[i].size()));
  }
  if (!ground.config.share_parameters) {
    own_ = std::make_unique<Progress>();
    progress_.push_back(own_.get());
    return;
  }
  const Communicator& node = ground.topology->node;
  me_ = node.rank();
  window_ = node.share(sizeof(Progress));
  new (window_->region(me_).data()) Progress;
  for (int rank = 0; rank < node.size(); ++rank) {
    progress_.push_back(reinterpret_cast<Progress*>(window_->region(rank).data()));
  }
  node.barrier("all ranks of the node to say how far they are");
}

bool KeptMemory::in_an_arena(const Entry& entry) const {
  const std::less<const std::byte*> before;
  return std::ranges::any_of(arenas_, [&](const Arena& arena) {
    const auto bytes = std::as_bytes(arena.values());
    return !bytes.empty() && !before(entry.data, bytes.data()) &&
           before(entry.data, bytes.data() + bytes.size());
  });
}

/// Of this rank alone.
KeptMemory::Values KeptMemory::private_values(const State& state) const {
  Values values;
  std::size_t i = 0;
  for (const Entry& entry : state.entries()) {
    if (is_setting(entry)) continue;
    if (entries_[i++].data == nullptr) values.emplace_back(entry.data, entry.data + entry.bytes());
  }
  return values;
}

void KeptMemory::begin(std::int64_t step) {
  completed_ = updates_;
  step_ = step;
  unsettled_ = false;
  valid_ = true;
}

void KeptMemory::copy(const std::vector<Arena>& from, const std::vector<Arena>& to,
                      const Progress& of) const {
  for (std::size_t i = 0; i < from.size(); ++i) {
    const ElementRange range = i == kBuffers ? of.buffers : of.parameters;
    std::ranges::copy(from[i].values().subspan(range.first, range.size()),
                      to[i].values().subspan(range.first, range.size()).begin());
  }
}

void KeptMemory::before_update(ElementRange parameters, ElementRange buffers) {
  Progress& mine = *progress_[static_cast<std::size_t>(me_)];
  mine.parameters = parameters;
  mine.buffers = buffers;
  if (!second_.empty()) {
    copy(arenas_, second_, mine);
    if (has_private_) before_ = private_values(*state_);
  }
  unsettled_ = true;
  mine.begun.store(++updates_, std::memory_order_seq_cst);
}

void KeptMemory::spoil_update() {
  progress_[static_cast<std::size_t>(me_)]->spoiled.store(updates_, std::memory_order_seq_cst);
}

void KeptMemory::complete(std::int64_t step) {
  completed_ = updates_;
  step_ = step;
  unsettled_ = false;
}

void KeptMemory::let_go(const State& state) {
  last_ = private_values(state);
  state_ = nullptr;
}

std::optional<std::int64_t> KeptMemory::step() const {
  if (!valid_ || state_ != nullptr) return std::nullopt;
  // Of a step without an update: what hooks keep may be that of the step, or not.
  if (unsettled_ && has_private_ && updates_ == completed_) return std::nullopt;
  for (const Progress* progress : progress_) {
    const std::uint64_t spoiled = progress->spoiled.load();
    if (spoiled != 0 && spoiled <= completed_) return std::nullopt;
    // Or it has begun the next: there is no other before this rank has completed that one.
    if (progress->begun.load() != completed_ && second_.empty()) return std::nullopt;
  }
  return step_;
}

void KeptMemory::go_back() {
  for (Progress* progress : progress_) {
    if (progress->begun.load() == completed_) continue;
    copy(second_, arenas_, *progress);
    progress->begun.store(completed_, std::memory_order_seq_cst);
  }
}

/// Of each entry.
std::vector<std::span<const std::byte>> KeptMemory::values() const {
  const Values& own = unsettled_ ? before_ : last_;
  std::size_t next = 0;
  std::vector<std::span<const std::byte>> values;
  for (const Entry& entry : entries_) {
    if (entry.data != nullptr) {
      values.emplace_back(entry.data, entry.bytes());
    } else if (unsettled_ && !has_private_) {
      values.emplace_back();  // the step, which is known
    } else {
      values.emplace_back(own.at(next++));
    }
  }
  return values;
}

void KeptMemory::give(const KeptMemory* memory, const Communicator& comm, int source, State& state,
                      std::int64_t step) {
  const bool gives = comm.rank() == source;
  if (!gives && !comm.is_chief()) return;
  std::vector<std::span<const std::byte>> values;
  if (gives) values = memory->values();
  std::size_t i = 0;
  for (const Entry& entry : state.entries()) {
    if (is_setting(entry)) continue;
    const std::span into(entry.data, entry.bytes());
    const std::span from = gives ? values.at(i++) : std::span<const std::byte>();
    if (entry.path == "/session/global_step") continue;
    if (gives && from.size() != into.size()) {
      throw InternalError("the state in memory is another one than this session's");
    }
    if (gives && comm.is_chief()) {
      std::ranges::copy(from, into.begin());
      continue;
    }
    for (std::size_t at = 0; at < into.size(); at += kPieceBytes) {
      const std::size_t length = std::min(into.size() - at, kPieceBytes);
      Request request = gives ? comm.send(from.subspan(at, length), 0, kTag)
                              : comm.receive(into.subspan(at, length), source, kTag);
      comm.wait(request, "the values in memory to reach the chief", gives ? "the chief" : "who has them");
    }
  }
  if (comm.is_chief()) state.set_global_step(step);
}

}  // namespace lockstep
