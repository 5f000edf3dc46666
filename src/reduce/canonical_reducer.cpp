#include "canonical_reducer.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/state/arena.hpp>

namespace lockstep {
namespace {

// Slices are cut at multiples of this, so that the fixed blocks over which optimizers take norms lie in one
// slice.
constexpr std::size_t kSliceGrain = 4096;

// Where all partial sums of a node are together so small, every rank adds them all up: that takes less time
// than to wait for each other again.
constexpr std::size_t kSmallBytes = std::size_t{64} << 10;

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The ranks of a node know which of them is missing; those that wait for the node let them speak first.
Communicator more_patient(const Communicator& comm) {
  WaitPolicy policy = comm.policy();
  if (policy.limit > Seconds{0}) policy.limit += std::max(Seconds{1}, policy.limit / 10);
  return comm.with_policy(policy);
}

}  // namespace

CanonicalReducer::CanonicalReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches,
                                   const ReducerOptions& options)
    : topology_(topology),
      local_(topology.node.rank()),
      patient_node_(more_patient(topology.node)),
      micro_batches_(micro_batches),
      elements_(elements),
      values_(options.values),
      padded_(round_up(elements + options.values, kArenaAlignment)),
      range_(owned_range(micro_batches, topology.my_position, topology.world.size())),
      fold_(fold_plan(micro_batches, range_)),
      folded_from_(elements) {
  const Communicator& node = topology.node;
  // The node's first rank keeps the sum, even when it owns no micro-batch.
  buffers_ = std::max(fold_.buffers, node.rank() == 0 ? 1 : 0);
  const std::size_t control_bytes = round_up(sizeof(Control), 4096);
  const std::size_t buffer_bytes = round_up(padded_ * sizeof(float), 4096);
  // Everybody's plan follows from the position alone.
  std::vector<FoldPlan> folds;
  std::vector<TreeNode> node_nodes;
  for (int local = 0; local < node.size(); ++local) {
    const int position = topology.all_nodes.start_of(topology.my_node) + local;
    folds.push_back(fold_plan(micro_batches, owned_range(micro_batches, position, topology.world.size())));
    for (const auto& partial : folds.back().partials) node_nodes.push_back(partial.node);
  }
  small_ =
      topology.nodes == 1 && node.size() > 1 && node_nodes.size() * padded_ * sizeof(float) <= kSmallBytes;
  turn_ = small_ ? buffer_bytes / sizeof(float) : 0;
  const std::size_t turns = small_ ? 2 : 1;
  const std::size_t of_sum = small_ ? 1 : 0;
  window_ = node.share(control_bytes + (static_cast<std::size_t>(buffers_) * turns + of_sum) * buffer_bytes);
  for (int local = 0; local < node.size(); ++local) {
    const auto region = window_->region(local);
    controls_.push_back(reinterpret_cast<Control*>(region.data()));
    std::vector<float*> starts;
    for (std::size_t at = control_bytes; at + turns * buffer_bytes <= region.size();
         at += turns * buffer_bytes) {
      starts.push_back(reinterpret_cast<float*>(region.data() + at));
    }
    buffer_starts_.push_back(std::move(starts));
    for (const auto& partial : folds[static_cast<std::size_t>(local)].partials) {
      node_sources_.push_back(buffer(local, partial.buffer));
    }
  }
  node_programs_ = combine_programs(micro_batches, node_nodes);
  for (const auto& program : node_programs_) {
    node_results_.push_back(node_sources_[static_cast<std::size_t>(program.sources.front())]);
  }
  sum_ = buffer(0, 0);
  if (small_) {
    std::byte* behind = window_->region(node.rank()).data() + control_bytes;
    sum_ = reinterpret_cast<float*>(behind + static_cast<std::size_t>(buffers_) * turns * buffer_bytes);
  }

  range_sources_.resize(node_sources_.size());
  plan_ = plan_exchange(topology, elements, options);
  parameters_ = options.parameters;
  before_spread_ = options.before_spread;
  if (topology.nodes == 1) {
    slice_ = part_of({0, padded_}, node.rank(), node.size(), kSliceGrain);
    return;
  }
  if (!plan_.shard) {
    slice_ = part_of({0, elements_}, node.rank(), node.size(), kSliceGrain);
  } else if (node.rank() < topology.columns) {
    slice_ = shard_of(topology, elements_, topology.my_node, node.rank());
  }
  if (node.rank() < topology.columns) {
    exchange_ = std::make_unique<NodeExchange>(topology, more_patient(topology.column), micro_batches,
                                               elements_, values_, node_results_, sum_, plan_);
  }
}

float* CanonicalReducer::buffer(int local_rank, int index) const {
  return buffer_starts_[static_cast<std::size_t>(local_rank)][static_cast<std::size_t>(index)];
}

/// Where a rank of this node is and what it was last seen doing.
std::string CanonicalReducer::whereabouts(int local_rank) const {
  const auto local = static_cast<std::size_t>(local_rank);
  const std::uint64_t begun = control(local_rank).begun.load(std::memory_order_relaxed);
  const auto owned = owned_range(micro_batches_, topology_.all_nodes.start_of(topology_.my_node) + local_rank,
                                 topology_.world.size())
                         .size();
  std::string seen;
  if (control(local_rank).arrived.load(std::memory_order_relaxed) >= operation_) {
    seen = "in the update after the sum";
  } else if (begun == 0) {
    seen = "before the step's first micro-batch";
  } else {
    seen = fmt::format("in micro-batch {} of {}", begun, owned);
    const std::uint64_t ready = control(local_rank).ready.load(std::memory_order_relaxed);
    if (ready > ready_word(0)) {
      seen += fmt::format(", {} of {} buckets ready", ready - ready_word(0), plan_.buckets.size());
    }
  }
  return fmt::format("rank {} on {} (last seen {})", topology_.node_ranks[local],
                     topology_.all_nodes.host_of(topology_.my_node), seen);
}

template <class Word>
Seconds CanonicalReducer::wait_for_node(const Communicator& node, std::string_view what, Word word,
                                        std::uint64_t value) {
  const int size = node_size();
  int next = 0;  // all before it have come
  return node.wait_until(
      what,
      [&] {
        while (next < size && (control(next).*word).load(std::memory_order_acquire) >= value) ++next;
        if (next < size) progress();
        return next == size;
      },
      [&] {
        std::string missing;
        for (int local = next; local < size; ++local) {
          if ((control(local).*word).load(std::memory_order_acquire) >= value) continue;
          missing += (missing.empty() ? "" : ", ") + whereabouts(local);
        }
        return missing;
      });
}

void CanonicalReducer::release() {
  if (!reading_sum_) return;
  reading_sum_ = false;
  control(local_).released.store(operation_, std::memory_order_release);
}

std::span<float> CanonicalReducer::begin_micro_batch() {
  if (next_micro_batch_ >= fold_.steps.size()) {
    throw InternalError("more micro-batches than this rank owns");
  }
  const int index = fold_.steps[next_micro_batch_].buffer;
  if (next_micro_batch_ == 0) {
    release();
    // The sum lies in this buffer.
    if (local_ == 0 && operation_ > 0 && !small_) {
      wait_for_node(topology_.node, "the others to have read the last sum", &Control::released, operation_);
    }
  }
  control(local_).begun.store(next_micro_batch_ + 1, std::memory_order_relaxed);
  float* start = buffer(local_, index) + turn_of(operation_ + 1);
  std::fill_n(start + elements_, values_, 0.0F);
  return {start, elements_ + values_};
}

/// Adds a range of the micro-batch that was written last to the partial sums.
void CanonicalReducer::fold(ElementRange range) {
  const std::size_t first = turn_of(operation_ + 1) + range.first;
  for (const auto& step : fold_.steps[next_micro_batch_].adds) {
    lockstep::add({buffer(local_, step.into) + first, range.size()},
                  {buffer(local_, step.from) + first, range.size()});
  }
}

void CanonicalReducer::gradient_ready(std::size_t offset) {
  if (topology_.nodes == 1 || plan_.doubling || next_micro_batch_ + 1 != fold_.steps.size()) return;
  std::size_t ready = ready_;
  while (ready + 1 < plan_.buckets.size() && plan_.buckets[ready].first >= offset) ++ready;
  if (ready > ready_) {
    const std::size_t from = plan_.buckets[ready - 1].first;
    fold({from, folded_from_});
    folded_from_ = from;
    say_ready(ready);
  }
  progress();
}

void CanonicalReducer::end_micro_batch() {
  const bool last = next_micro_batch_ + 1 == fold_.steps.size();
  if (last && ready_ > 0) {
    fold({0, folded_from_});
    fold({elements_, padded_});
  } else {
    fold({0, padded_});
  }
  ++next_micro_batch_;
}

void CanonicalReducer::say_ready(std::size_t buckets) {
  ready_ = buckets;
  control(local_).ready.store(ready_word(buckets), std::memory_order_release);
}

/// Adds up the node's partial sums of my part of the next bucket, and lets it leave unless it is the last.
void CanonicalReducer::start_next_bucket() {
  for (const ElementRange& piece : exchange_->pieces(started_)) {
    for (std::size_t p = 0; p < node_programs_.size(); ++p) {
      run_program(node_programs_[p], node_results_[p], piece);
    }
  }
  if (started_ + 1 < plan_.buckets.size()) exchange_->start(started_);
  ++started_;
}

/// Lets buckets leave that are there on all ranks of the node, and moves on what has left.
void CanonicalReducer::progress() {
  if (!exchange_ || plan_.doubling) return;
  while (started_ + 1 < plan_.buckets.size()) {
    for (int local = 0; local < node_size(); ++local) {
      if (control(local).ready.load(std::memory_order_acquire) < ready_word(started_ + 1)) {
        exchange_->poll();
        return;
      }
    }
    start_next_bucket();
  }
  exchange_->poll();
}

Tally CanonicalReducer::tally_node() const {
  Tally total;
  for (int local = 0; local < node_size(); ++local) total.add(control(local).ballots[operation_ & 1]);
  return total;
}

Tally CanonicalReducer::exchange_ballots(Tally& ballot) {
  release();
  next_micro_batch_ = 0;
  ++operation_;
  Control& own = control(local_);
  ballot.set_wait(waited_.count(), topology_.my_node);
  own.ballots[operation_ & 1] = ballot;
  own.arrived.store(operation_, std::memory_order_release);
  waited_ =
      wait_for_node(topology_.node, "all ranks to finish their micro-batches", &Control::arrived, operation_);
  own.begun.store(0, std::memory_order_relaxed);
  return tally_node();
}

Tally CanonicalReducer::reduce(Tally ballot) {
  ballot.set_elements(padded_);
  // All of it, or whatever lies there if this rank has failed: the others' buckets must not wait for it.
  if (topology_.nodes > 1) say_ready(plan_.buckets.size());
  return complete(exchange_ballots(ballot));
}

Tally CanonicalReducer::exchange(Tally ballot) {
  ballot.set_elements(0);
  return complete(exchange_ballots(ballot));
}

/// What follows is chosen by what the ranks of the node say, not by what this rank called: a rank that failed
/// between steps sends a ballot alone while the others reduce, and still has to do its part of the exchange
/// between nodes.
Tally CanonicalReducer::complete(const Tally& of_node) {
  reading_sum_ = true;
  if (topology_.nodes > 1) {
    const Tally total = complete_between_nodes(of_node);
    waits_.add(waited_);
    return total;
  }
  waits_.add(waited_);
  if (of_node.elements() > 0 && of_node.agrees() && !of_node.anyone_says(Says::error)) {
    run_program(node_programs_.front(), sum_, small_ ? ElementRange{0, padded_} : slice_);
  }
  return of_node;
}

/// Runs a program over a range of the node's partial sums.
void CanonicalReducer::run_program(const CombineProgram& program, float* result, ElementRange range) {
  for (const int source : program.sources) {
    const auto i = static_cast<std::size_t>(source);
    range_sources_[i] = node_sources_[i] + turn_of(operation_) + range.first;
  }
  lockstep::run(program, range_sources_, result + range.first, range.size());
}

Tally CanonicalReducer::complete_between_nodes(const Tally& of_node) {
  Control& own = control(local_);
  if (exchange_) {
    if (of_node.elements() > 0) {
      while (started_ < plan_.buckets.size()) start_next_bucket();
      if (local_ == 0) {
        for (std::size_t p = 0; p < node_programs_.size(); ++p) {
          run_program(node_programs_[p], node_results_[p], {elements_, padded_});
        }
      }
    }
    own.totals[operation_ & 1] = exchange_->complete(of_node);
    waited_ += exchange_->waited();
  }
  completed_ = operation_;
  started_ = 0;
  ready_ = 0;
  folded_from_ = elements_;
  own.summed.store(operation_, std::memory_order_release);
  // The optimizer's slices are other ones than the parts of the buckets; ranks that do not exchange get the
  // tally from the first.
  const Seconds waited =
      wait_for_node(patient_node_, "the sums of other nodes", &Control::summed, operation_);
  if (!exchange_) waited_ += waited;
  return control(0).totals[operation_ & 1];
}

void CanonicalReducer::gather(std::span<float> arena) {
  if (!plan_.shard || topology_.nodes == 1) return;
  if (exchange_) exchange_->gather_shards(arena);
  topology_.node.barrier("the slices of other nodes");
}

std::string CanonicalReducer::describe() const {
  std::string way;
  if (topology_.nodes > 1) {
    way = fmt::format(" and between {} nodes", topology_.nodes);
    if (plan_.doubling) {
      way += " in rounds";
    } else {
      std::size_t largest = 0;
      for (const ElementRange& bucket : plan_.buckets) largest = std::max(largest, bucket.size());
      way += fmt::format(" in {} bucket{} of up to {} KiB", plan_.buckets.size(),
                         plan_.buckets.size() == 1 ? "" : "s", (largest * sizeof(float) + 1023) / 1024);
    }
    if (plan_.halving) way += ", by halving";
    if (!plan_.residual.empty()) way += ", rounded to bf16";
    if (plan_.shard) way += ", each rank its shard";
  }
  return fmt::format("canonical sum inside {}{}; {} gradient arenas ({:.1f} MiB with messages) a rank",
                     topology_.nodes == 1 ? "a node" : "nodes", way, buffers_,
                     static_cast<double>(bytes()) / (1 << 20));
}

void CanonicalReducer::gather_nodes(std::span<const std::span<float>> arenas) {
  if (topology_.nodes == 1) return;
  if (local_ == 0) exchange_->gather_nodes(arenas);
  topology_.node.barrier("what other nodes keep");
}

std::size_t CanonicalReducer::bytes() const {
  const auto buffers = static_cast<std::size_t>(buffers_) * (small_ ? 2 : 1) + (small_ ? 1 : 0);
  return buffers * padded_ * sizeof(float) + (exchange_ ? exchange_->bytes() : 0);
}

void CanonicalReducer::complete_sum() {
  if (!small_) finish();
}

bool CanonicalReducer::anyone_finished() const {
  for (int local = 0; local < node_size(); ++local) {
    if (control(local).updated.load(std::memory_order_acquire) >= operation_) return true;
  }
  return false;
}

void CanonicalReducer::finish() {
  control(local_).updated.store(operation_, std::memory_order_release);
  if (exchange_) exchange_->keep_residual();
  if (plan_.shard && exchange_) {
    if (before_spread_) before_spread_();
    exchange_->spread_shards(parameters_);
  }
  control(local_).finished.store(operation_, std::memory_order_release);
  wait_for_node(topology_.node, "all ranks of the node to end the step", &Control::finished, operation_);
}

}  // namespace lockstep
