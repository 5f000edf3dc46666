#include "kept_memory.hpp"

#include <algorithm>
#include <functional>
#include <new>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/reduce/reducer.hpp>

#include "session_ground.hpp"

namespace lockstep {
namespace {

constexpr int kTag = 6;       // of the library's set-up messages
constexpr int kShardTag = 7;  // of the shards that nodes keep for each other
constexpr std::size_t kPieceBytes = std::size_t{16} << 20;
constexpr std::size_t kMaxMessageBytes = std::size_t{1} << 30;
constexpr std::size_t kBuffers = 1;  // which of the arenas holds them

/// Of this rank's own, beside what is in the arenas. The step is known from elsewhere.
bool may_be_private(const Entry& entry) {
  return !entry.path.starts_with("/config/") && entry.path != "/session/global_step";
}

bool lies_in(std::span<const float> arena, const Entry& entry) {
  const std::less<const std::byte*> before;
  const auto bytes = std::as_bytes(arena);
  return !bytes.empty() && !before(entry.data, bytes.data()) &&
         before(entry.data, bytes.data() + bytes.size());
}

/// In the order of KeptMemory.
std::vector<std::span<float>> arenas_of(State& state) {
  std::vector<std::span<float>> arenas = {state.parameters(), state.buffers()};
  for (const std::string& slot : state.slot_names()) arenas.push_back(state.slot_values(slot));
  return arenas;
}

std::span<float> part_of(std::span<float> values, ElementRange range) {
  return values.subspan(range.first, range.size());
}

}  // namespace

KeptMemory::KeptMemory(const SessionGround& ground, std::vector<Arena> arenas, ArenaAllocator& allocator,
                       bool second_copy)
    : arenas_(std::move(arenas)), all_(ground.start), state_(&ground.state) {
  const std::size_t elements = ground.state.parameter_elements();
  shards_ = {{0, elements}};
  for (const Entry& entry : ground.state.entries()) {
    has_private_ |= may_be_private(entry) && !in_an_arena(entry);
  }
  if (!ground.config.share_parameters) {
    own_ = std::make_unique<Progress>();
    progress_.push_back(own_.get());
  } else {
    const Topology& topology = *ground.topology;
    const Communicator& node = topology.node;
    me_ = node.rank();
    window_ = node.share(sizeof(Progress));
    new (window_->region(me_).data()) Progress;
    for (int rank = 0; rank < node.size(); ++rank) {
      progress_.push_back(reinterpret_cast<Progress*>(window_->region(rank).data()));
    }
    if (ground.config.shard_optimizer && topology.nodes > 1) plan_shards(ground, second_copy);
    node.barrier("all ranks of the node to say how far they are");
  }
  if (second_copy) make_second(allocator);
}

void KeptMemory::plan_shards(const SessionGround& ground, bool second_copy) {
  const Topology& topology = *ground.topology;
  const std::size_t elements = ground.state.parameter_elements();
  shards_.clear();
  for (int n = 0; n < topology.nodes; ++n) shards_.push_back(shard_of_node(topology, elements, n));
  nodes_ = topology.all_nodes;
  columns_ = topology.columns;
  my_node_ = static_cast<std::size_t>(topology.my_node);
  before_me_ = (my_node_ + shards_.size() - 1) % shards_.size();
  if (me_ >= columns_) return;
  mine_ = shard_of(topology, elements, topology.my_node, me_);
  copied_ = shard_of(topology, elements, static_cast<int>(before_me_), me_);
  for (int n = 0; n < topology.nodes; ++n) {
    if (shard_of(topology, elements, n, me_).size() == 0) idle_.push_back(n);
  }
  if (second_copy) column_ = topology.column;
}

void KeptMemory::make_second(ArenaAllocator& allocator) {
  const auto allocate = [&](std::size_t elements) {
    second_bytes_ += elements * sizeof(float);
    return allocator.allocate(elements);
  };
  const bool in_shards = shards_.size() > 1;
  for (std::size_t i = 0; i < arenas_.size(); ++i) {
    const bool whole = !in_shards || i == kBuffers;
    second_.push_back(allocate(whole ? arenas_[i].size() : shards_[my_node_].size()));
    if (!in_shards) continue;
    for (auto& places : copies_) places.push_back(whole ? Arena() : allocate(shards_[before_me_].size()));
  }
}

std::span<float> KeptMemory::arena_part(std::size_t arena, ElementRange range) const {
  return part_of(arenas_.at(arena).values(), range);
}

std::span<float> KeptMemory::second_part(std::size_t arena, ElementRange range) const {
  const std::size_t from = shards_.size() == 1 || arena == kBuffers ? 0 : shards_[my_node_].first;
  if (range.size() == 0) return {};
  return part_of(second_.at(arena).values(), {range.first - from, range.last - from});
}

/// Of the shard of the node before.
std::span<float> KeptMemory::copy_part(std::uint64_t update, std::size_t arena, ElementRange range) const {
  const std::size_t from = shards_[before_me_].first;
  if (range.size() == 0) return {};
  return part_of(copies_[update % 2].at(arena).values(), {range.first - from, range.last - from});
}

bool KeptMemory::in_an_arena(const Entry& entry) const {
  return std::ranges::any_of(arenas_, [&](const Arena& arena) { return lies_in(arena.values(), entry); });
}

/// Of this rank alone.
KeptMemory::Values KeptMemory::private_values(const State& state) const {
  Values values;
  for (const Entry& entry : state.entries()) {
    if (!may_be_private(entry) || in_an_arena(entry)) continue;
    values.emplace_back(entry.data, entry.data + entry.bytes());
  }
  return values;
}

void KeptMemory::begin(std::int64_t step) {
  // Ranks may have come to different counts in a session that failed.
  updates_ = completed_ = 0;
  Progress& mine = *progress_[static_cast<std::size_t>(me_)];
  mine.begun = mine.spoiled = mine.copy_spoiled = mine.copied[0] = mine.copied[1] = 0;
  step_ = step;
  unsettled_ = false;
  if (column_) pass_on_through(patient(*column_, all_->policy().limit.count()));
  // Nobody may find values of two beginnings.
  all_->barrier("all ranks to begin with the same values");
  valid_ = true;
}

/// What it writes to of an arena.
ElementRange KeptMemory::written(const Progress& progress, std::size_t arena) {
  return arena == kBuffers ? progress.buffers : progress.parameters;
}

void KeptMemory::before_update(ElementRange parameters, ElementRange buffers) {
  Progress& mine = *progress_[static_cast<std::size_t>(me_)];
  mine.parameters = parameters;
  mine.buffers = buffers;
  for (std::size_t i = 0; i < second_.size(); ++i) {
    const ElementRange range = written(mine, i);
    std::ranges::copy(arena_part(i, range), second_part(i, range).begin());
  }
  if (!second_.empty() && has_private_) before_ = private_values(*state_);
  unsettled_ = true;
  mine.begun.store(++updates_, std::memory_order_seq_cst);
}

void KeptMemory::spoil_update() {
  progress_[static_cast<std::size_t>(me_)]->spoiled.store(updates_, std::memory_order_seq_cst);
}

void KeptMemory::pass_on() {
  if (column_) pass_on_through(*column_);
}

void KeptMemory::pass_on_through(const Communicator& column) {
  const int nodes = column.size();
  const int behind = (column.rank() + 1) % nodes;
  const int before = (column.rank() + nodes - 1) % nodes;
  Progress& mine = *progress_[static_cast<std::size_t>(me_)];
  std::atomic<std::uint64_t>& copied = mine.copied[updates_ % 2];
  copied.store(0, std::memory_order_seq_cst);
  mine.mine = {updates_, mine.spoiled.load()};
  std::vector<Request> received;
  std::vector<Request> sent;
  const auto post = [&](std::span<const std::byte> out, std::span<std::byte> in) {
    for (std::size_t at = 0; at < in.size(); at += kMaxMessageBytes) {
      const std::size_t length = std::min(in.size() - at, kMaxMessageBytes);
      received.push_back(column.receive(in.subspan(at, length), before, kShardTag));
    }
    for (std::size_t at = 0; at < out.size(); at += kMaxMessageBytes) {
      const std::size_t length = std::min(out.size() - at, kMaxMessageBytes);
      sent.push_back(column.send(out.subspan(at, length), behind, kShardTag));
    }
  };
  post(std::as_bytes(std::span(&mine.mine, 1)), std::as_writable_bytes(std::span(&mine.theirs, 1)));
  for (std::size_t i = 0; i < arenas_.size(); ++i) {
    if (i == kBuffers) continue;
    post(std::as_bytes(arena_part(i, mine_)), std::as_writable_bytes(copy_part(updates_, i, copied_)));
  }
  const auto name = [&](int node) {
    return fmt::format("the node of rank {} ({})", nodes_.leader_of(node), nodes_.host_of(node));
  };
  for (Request& request : received) column.wait(request, "the second copy of a shard", name(before));
  for (Request& request : sent) column.wait(request, "a second copy to be taken", name(behind));
  if (mine.theirs.update != updates_) throw InternalError("a second copy is of another update");
  if (mine.theirs.spoiled != 0) mine.copy_spoiled.store(mine.theirs.spoiled, std::memory_order_seq_cst);
  copied.store(updates_ + 1, std::memory_order_seq_cst);
  // The others wait for a part of the parameters from who has one, and else for this.
  received.clear();
  sent.clear();
  for (const int idle : idle_) {
    for (int node = 0; node < nodes; ++node) {
      if (node == idle) continue;
      if (idle == column.rank()) sent.push_back(column.send({}, node, kShardTag));
      if (node == column.rank()) received.push_back(column.receive({}, idle, kShardTag));
    }
  }
  for (Request& request : received)
    column.wait(request, "second copies to be taken", "a node without a shard");
  for (Request& request : sent) column.wait(request, "others to hear of a second copy");
}

void KeptMemory::complete(std::int64_t step) {
  completed_ = updates_;
  step_ = step;
  unsettled_ = false;
}

void KeptMemory::let_go(const State& state) {
  all_.reset();
  column_.reset();
  last_ = private_values(state);
  state_ = nullptr;
}

/// Whether what a rank writes to holds the values after `update`, or can be brought there.
bool KeptMemory::can_be_at(std::uint64_t update, const Progress& progress) const {
  const std::uint64_t spoiled = progress.spoiled.load();
  if (spoiled != 0 && spoiled <= update) return false;
  const std::uint64_t begun = progress.begun.load();
  return begun == update || (begun == update + 1 && !second_.empty());
}

/// Up to which this rank has everything of its own.
std::optional<std::int64_t> KeptMemory::step() const {
  if (!valid_ || state_ != nullptr) return std::nullopt;
  // Of a step without an update: what hooks keep may be that of the step, or not.
  if (unsettled_ && has_private_ && updates_ == completed_) return std::nullopt;
  const bool good = std::ranges::all_of(
      progress_, [&](const Progress* progress) { return can_be_at(completed_, *progress); });
  return good ? std::optional(step_) : std::nullopt;
}

/// That of this node.
bool KeptMemory::has_shard(std::uint64_t update) const {
  return std::all_of(progress_.begin(), progress_.begin() + columns_,
                     [&](const Progress* progress) { return can_be_at(update, *progress); });
}

/// That of the node before.
bool KeptMemory::has_copy(std::uint64_t update) const {
  return std::all_of(progress_.begin(), progress_.begin() + columns_, [&](const Progress* progress) {
    const std::uint64_t spoiled = progress->copy_spoiled.load();
    return progress->copied[update % 2].load() == update + 1 && (spoiled == 0 || spoiled > update);
  });
}

std::optional<KeptValues> KeptMemory::find(const KeptMemory* memory, const Communicator& left) {
  struct Claim {
    std::int64_t step = -1;
    std::uint64_t completed = 0;
    std::int64_t node = 0;
    std::int64_t shards = 1;
  };
  Claim mine;
  if (memory != nullptr) {
    mine = {memory->step().value_or(-1), memory->completed_, static_cast<std::int64_t>(memory->my_node_),
            std::ssize(memory->shards_)};
  }
  const auto claims = left.all_gather(mine);
  const auto best = std::ranges::max_element(claims, {}, &Claim::step);
  if (best->step < 0) return std::nullopt;
  KeptValues values{best->step, best->completed, static_cast<int>(best - claims.begin()), {}, false};
  if (best->shards == 1) {
    values.parts = {{memory == nullptr ? ElementRange{} : memory->shards_.front(), values.source, false}};
    values.goes_back = left.rank() == values.source;
    return values;
  }
  struct Has {
    bool own = false;
    bool before = false;
  };
  Has have;
  if (memory != nullptr) {
    have = {memory->has_shard(values.update), memory->has_copy(values.update)};
  }
  const auto all = left.all_gather(have);
  for (std::int64_t n = 0; n < best->shards; ++n) {
    KeptValues::Part part{memory == nullptr ? ElementRange{} : memory->shards_[static_cast<std::size_t>(n)],
                          -1, false};
    for (std::size_t r = 0; r < all.size() && part.rank < 0; ++r) {
      if (all[r].own && claims[r].node == n) part.rank = static_cast<int>(r);
    }
    part.copied = part.rank < 0;
    for (std::size_t r = 0; r < all.size() && part.rank < 0; ++r) {
      if (all[r].before && claims[r].node == (n + 1) % best->shards) part.rank = static_cast<int>(r);
    }
    if (part.range.size() == 0) continue;
    if (part.rank < 0) return std::nullopt;
    values.parts.push_back(part);
  }
  const auto first = std::ranges::find(claims, mine.node, &Claim::node);
  values.goes_back = first - claims.begin() == left.rank();
  return values;
}

void KeptMemory::go_back(std::uint64_t update) {
  if (second_.empty()) return;
  for (Progress* progress : progress_) {
    if (progress->begun.load() != update + 1) continue;
    for (std::size_t i = 0; i < second_.size(); ++i) {
      const ElementRange range = written(*progress, i);
      std::ranges::copy(second_part(i, range), arena_part(i, range).begin());
    }
    progress->begun.store(update, std::memory_order_seq_cst);
  }
}

void KeptMemory::give(const KeptMemory* memory, const KeptValues& values, const Communicator& comm,
                      State& state) {
  const auto move = [&](int source, std::span<const std::byte> from, std::span<std::byte> into) {
    const bool gives = comm.rank() == source;
    if (!gives && !comm.is_chief()) return;
    if (gives && from.size() != into.size()) {
      throw InternalError("the state in memory is another one than this session's");
    }
    if (gives && comm.is_chief()) {
      std::ranges::copy(from, into.begin());
      return;
    }
    for (std::size_t at = 0; at < into.size(); at += kPieceBytes) {
      const std::size_t length = std::min(into.size() - at, kPieceBytes);
      Request request = gives ? comm.send(from.subspan(at, length), 0, kTag)
                              : comm.receive(into.subspan(at, length), source, kTag);
      comm.wait(request, "the values in memory to reach the chief", gives ? "the chief" : "who has them");
    }
  };
  const std::vector<std::span<float>> arenas = arenas_of(state);
  for (std::size_t i = 0; i < arenas.size(); ++i) {
    const std::span<const float> kept =
        memory == nullptr ? std::span<float>() : memory->arenas_.at(i).values();
    if (kept.size() != arenas[i].size()) {
      throw InternalError("the state in memory is another one than this session's");
    }
    if (i == kBuffers) {
      move(values.source, std::as_bytes(kept), std::as_writable_bytes(arenas[i]));
      continue;
    }
    for (const KeptValues::Part& part : values.parts) {
      std::span<const float> from;
      if (comm.rank() == part.rank) {
        from =
            part.copied ? memory->copy_part(values.update, i, part.range) : memory->arena_part(i, part.range);
      }
      move(part.rank, std::as_bytes(from), std::as_writable_bytes(part_of(arenas[i], part.range)));
    }
  }
  std::size_t next = 0;
  for (const Entry& entry : state.entries()) {
    const bool beside =
        std::ranges::none_of(arenas, [&](std::span<float> arena) { return lies_in(arena, entry); });
    if (!may_be_private(entry) || !beside) continue;
    std::span<const std::byte> from;
    if (comm.rank() == values.source) {
      from = (memory->unsettled_ ? memory->before_ : memory->last_).at(next);
    }
    ++next;
    move(values.source, from, {entry.data, entry.bytes()});
  }
  if (comm.is_chief()) state.set_global_step(values.step);
}

}  // namespace lockstep
