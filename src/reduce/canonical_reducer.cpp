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

constexpr int kCollectTag = 101;
constexpr int kSpreadTag = 102;

// Slices are cut at multiples of this, so that the fixed blocks over which optimizers take norms lie in one
// slice.
constexpr std::size_t kSliceGrain = 4096;

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Part `index` of `parts` of `whole`, as even as can be in multiples of `grain`.
ElementRange part_of(ElementRange whole, int index, int parts, std::size_t grain) {
  const std::size_t grains = (whole.size() + grain - 1) / grain;
  const auto at = [&](int i) {
    const std::size_t grain_index = grains * static_cast<std::size_t>(i) / static_cast<std::size_t>(parts);
    return std::min(whole.first + grain_index * grain, whole.last);
  };
  return {at(index), at(index + 1)};
}

/// The ranks of a node know which of them is missing; those that wait for the node let them speak first.
Communicator more_patient(const Communicator& comm) {
  WaitPolicy policy = comm.policy();
  if (policy.limit > Seconds{0}) policy.limit += std::max(Seconds{1}, policy.limit / 10);
  return comm.with_policy(policy);
}

std::vector<TreeNode> nodes_of(const std::vector<FoldPlan::Partial>& partials) {
  std::vector<TreeNode> nodes;
  for (const auto& partial : partials) nodes.push_back(partial.node);
  return nodes;
}

}  // namespace

CanonicalReducer::CanonicalReducer(const Topology& topology, std::size_t elements, std::int64_t micro_batches)
    : topology_(topology),
      other_nodes_(more_patient(topology.column)),
      patient_node_(more_patient(topology.node)),
      micro_batches_(micro_batches),
      elements_(elements),
      padded_(round_up(elements + kMicroBatchValues, kArenaAlignment)),
      range_(owned_range(micro_batches, topology.my_position, topology.world.size())),
      fold_(fold_plan(micro_batches, range_)) {
  const Communicator& node = topology.node;
  // The node's first rank keeps the sum, even when it owns no micro-batch.
  buffers_ = std::max(fold_.buffers, node.rank() == 0 ? 1 : 0);
  const std::size_t control_bytes = round_up(sizeof(Control), 4096);
  const std::size_t buffer_bytes = round_up(padded_ * sizeof(float), 4096);
  window_ = node.share(control_bytes + static_cast<std::size_t>(buffers_) * buffer_bytes);

  // Everybody's plan follows from the position alone.
  std::vector<FoldPlan> folds;
  std::vector<TreeNode> node_nodes;
  for (int local = 0; local < node.size(); ++local) {
    const auto region = window_->region(local);
    controls_.push_back(reinterpret_cast<Control*>(region.data()));
    const int position = topology.node_starts[static_cast<std::size_t>(topology.my_node)] + local;
    const FoldPlan fold =
        fold_plan(micro_batches, owned_range(micro_batches, position, topology.world.size()));
    std::vector<float*> starts;
    for (std::size_t at = control_bytes; at + buffer_bytes <= region.size(); at += buffer_bytes) {
      starts.push_back(reinterpret_cast<float*>(region.data() + at));
    }
    buffer_starts_.push_back(std::move(starts));
    for (const auto& partial : fold.partials) {
      node_nodes.push_back(partial.node);
      node_sources_.push_back(buffer(local, partial.buffer));
    }
  }
  node_programs_ = combine_programs(micro_batches, node_nodes);
  for (const auto& program : node_programs_) {
    node_results_.push_back(node_sources_[static_cast<std::size_t>(program.sources.front())]);
  }
  sum_ = buffer(0, 0);

  const ElementRange whole{0, padded_};
  const int slices = topology.nodes == 1 ? node.size() : topology.columns;
  slice_ = node.rank() < slices ? part_of(whole, node.rank(), slices, kSliceGrain)
                                : ElementRange{padded_, padded_};
  for (const float* source : node_sources_) slice_sources_.push_back(source + slice_.first);
  if (topology.nodes == 1) return;

  std::vector<TreeNode> top_sources;
  for (int n = 0; n < topology.nodes; ++n) {
    std::vector<TreeNode> of_node;
    for (int local = 0; local < topology.node_sizes[static_cast<std::size_t>(n)]; ++local) {
      const int position = topology.node_starts[static_cast<std::size_t>(n)] + local;
      const auto nodes = nodes_of(
          fold_plan(micro_batches, owned_range(micro_batches, position, topology.world.size())).partials);
      of_node.insert(of_node.end(), nodes.begin(), nodes.end());
    }
    const auto programs = combine_programs(micro_batches, of_node);
    node_partials_.push_back(programs.size());
    for (const auto& program : programs) top_sources.push_back(program.node);
    parts_.push_back(part_of(slice_, n, topology.nodes, kArenaAlignment));
  }
  auto top = combine_programs(micro_batches, top_sources);
  if (top.size() != 1) throw InternalError("the partial sums of all nodes do not add up to one");
  top_program_ = std::move(top.front());

  const auto peers = static_cast<std::size_t>(topology.nodes);
  const auto me = static_cast<std::size_t>(topology.my_node);
  outbox_.resize(peers);
  inbox_.resize(peers);
  requests_.resize(2 * peers);
  for (std::size_t n = 0; n < peers; ++n) {
    // One at least: the box to myself holds the sum where it cannot be computed in place.
    outbox_[n].resize(sizeof(Tally) + std::max<std::size_t>(node_results_.size(), n == me ? 1 : 0) *
                                          parts_[n].size() * sizeof(float));
    inbox_[n].resize(sizeof(Tally) + node_partials_[n] * parts_[me].size() * sizeof(float));
  }
}

float* CanonicalReducer::buffer(int local_rank, int index) const {
  return buffer_starts_[static_cast<std::size_t>(local_rank)][static_cast<std::size_t>(index)];
}

/// Where a rank of this node is and what it was last seen doing.
std::string CanonicalReducer::whereabouts(int local_rank) const {
  const auto local = static_cast<std::size_t>(local_rank);
  const std::uint64_t begun = control(local_rank).begun.load(std::memory_order_relaxed);
  const auto owned =
      owned_range(micro_batches_,
                  topology_.node_starts[static_cast<std::size_t>(topology_.my_node)] + local_rank,
                  topology_.world.size())
          .size();
  std::string seen;
  if (control(local_rank).arrived.load(std::memory_order_relaxed) >= operation_) {
    seen = "in the update after the sum";
  } else if (begun == 0) {
    seen = "before the step's first micro-batch";
  } else {
    seen = fmt::format("in micro-batch {} of {}", begun, owned);
  }
  return fmt::format("rank {} on {} (last seen {})", topology_.node_ranks[local],
                     topology_.node_hosts[static_cast<std::size_t>(topology_.my_node)], seen);
}

template <class Word>
Seconds CanonicalReducer::wait_for_node(std::string_view what, Word word, std::uint64_t value) const {
  const int size = topology_.node.size();
  int next = 0;  // all before it have come
  return topology_.node.wait_until(
      what,
      [&] {
        while (next < size && (control(next).*word).load(std::memory_order_acquire) >= value) ++next;
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

/// For ranks that do not talk to other nodes: their node's first rank does.
Seconds CanonicalReducer::wait_for_tally() const {
  return patient_node_.wait_until(
      "the ballots of other nodes",
      [&] { return control(0).tallied.load(std::memory_order_acquire) >= operation_; },
      [&] { return whereabouts(0) + ", or a rank that it waits for"; });
}

Seconds CanonicalReducer::wait_for_node_at(Request& request, std::string_view what, int node) const {
  const auto index = static_cast<std::size_t>(node);
  return other_nodes_.wait_until(
      what, [&] { return other_nodes_.test(request); },
      [&] {
        return fmt::format("a rank of the node of rank {}, {}", topology_.node_leaders[index],
                           topology_.node_hosts[index]);
      });
}

void CanonicalReducer::release() {
  if (!reading_sum_) return;
  reading_sum_ = false;
  control(topology_.node.rank()).released.store(operation_, std::memory_order_release);
}

std::span<float> CanonicalReducer::begin_micro_batch() {
  if (next_micro_batch_ >= fold_.steps.size()) {
    throw InternalError("more micro-batches than this rank owns");
  }
  const int index = fold_.steps[next_micro_batch_].buffer;
  if (next_micro_batch_ == 0) {
    release();
    // The sum lies in this buffer.
    if (topology_.node.rank() == 0 && operation_ > 0) {
      wait_for_node("the others to have read the last sum", &Control::released, operation_);
    }
  }
  control(topology_.node.rank()).begun.store(next_micro_batch_ + 1, std::memory_order_relaxed);
  float* start = buffer(topology_.node.rank(), index);
  std::fill_n(start + elements_, kMicroBatchValues, 0.0F);
  return {start, elements_ + kMicroBatchValues};
}

void CanonicalReducer::end_micro_batch() {
  const int local = topology_.node.rank();
  for (const auto& step : fold_.steps[next_micro_batch_].adds) {
    lockstep::add({buffer(local, step.into), padded_}, {buffer(local, step.from), padded_});
  }
  ++next_micro_batch_;
}

Tally CanonicalReducer::tally_node() const {
  Tally total;
  for (int local = 0; local < topology_.node.size(); ++local)
    total.add(control(local).ballots[operation_ & 1]);
  return total;
}

Tally CanonicalReducer::exchange_ballots(const Tally& mine) {
  release();
  next_micro_batch_ = 0;
  ++operation_;
  Control& own = control(topology_.node.rank());
  Tally& ballot = own.ballots[operation_ & 1];
  ballot = mine;
  ballot.set_wait(waited_.count(), topology_.my_node);
  own.arrived.store(operation_, std::memory_order_release);
  waited_ = wait_for_node("all ranks to finish their micro-batches", &Control::arrived, operation_);
  own.begun.store(0, std::memory_order_relaxed);
  return tally_node();
}

Tally CanonicalReducer::reduce(Tally ballot) {
  ballot.set_elements(padded_);
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
    const Tally total =
        of_node.elements() > 0 ? reduce_between_nodes(of_node) : exchange_between_nodes(of_node);
    waits_.add(waited_);
    return total;
  }
  waits_.add(waited_);
  if (of_node.elements() > 0 && of_node.agrees() && !of_node.anyone_says(Says::error)) {
    run_program(node_programs_.front(), sum_);
  }
  return of_node;
}

/// Runs a program over the node's partial sums, for my slice of the elements.
void CanonicalReducer::run_program(const CombineProgram& program, float* result) {
  lockstep::run(program, slice_sources_, result + slice_.first, slice_.size());
}

/// Only the first rank of each node talks; the others read the total from it.
Tally CanonicalReducer::exchange_between_nodes(const Tally& of_node) {
  Control& first = control(0);
  if (topology_.node.rank() != 0) {
    waited_ += wait_for_tally();
    return first.totals[operation_ & 1];
  }
  const auto all = other_nodes_.all_gather(of_node);
  Tally total;
  for (const Tally& tally : all) total.add(tally);
  first.totals[operation_ & 1] = total;
  first.tallied.store(operation_, std::memory_order_release);
  return total;
}

Tally CanonicalReducer::reduce_between_nodes(const Tally& of_node) {
  const bool first_rank = topology_.node.rank() == 0;
  const bool exchanges = topology_.node.rank() < topology_.columns;
  const auto peers = static_cast<std::size_t>(topology_.nodes);
  const auto me = static_cast<std::size_t>(topology_.my_node);
  Tally tally = of_node;
  if (exchanges) {
    for (std::size_t p = 0; p < node_programs_.size(); ++p) run_program(node_programs_[p], node_results_[p]);
    // Collect: to each node its part of my node's partial sums, with the ballots of my node.
    const auto wait_all = [&](std::string_view what) {
      Seconds waited{0};
      for (std::size_t i = 0; i < requests_.size(); ++i) {
        waited += wait_for_node_at(requests_[i], what, static_cast<int>(i / 2));
      }
      return waited;
    };
    for (std::size_t n = 0; n < peers; ++n) {
      if (n == me) continue;
      std::byte* out = outbox_[n].data();
      std::memcpy(out, &of_node, sizeof of_node);
      out += sizeof of_node;
      for (const float* result : node_results_) {
        std::memcpy(out, result + parts_[n].first, parts_[n].size() * sizeof(float));
        out += parts_[n].size() * sizeof(float);
      }
      requests_[2 * n] = other_nodes_.receive(inbox_[n], static_cast<int>(n), kCollectTag);
      requests_[2 * n + 1] = other_nodes_.send(outbox_[n], static_cast<int>(n), kCollectTag);
    }
    waited_ += wait_all("partial sums of other nodes");

    tally = Tally();
    std::vector<const float*> partials;
    for (std::size_t n = 0; n < peers; ++n) {
      if (n == me) {
        tally.add(of_node);
        for (const float* result : node_results_) partials.push_back(result + parts_[me].first);
        continue;
      }
      Tally theirs;
      std::memcpy(&theirs, inbox_[n].data(), sizeof theirs);
      tally.add(theirs);
      const auto* values = reinterpret_cast<const float*>(inbox_[n].data() + sizeof theirs);
      for (std::size_t i = 0; i < node_partials_[n]; ++i) partials.push_back(values + i * parts_[me].size());
    }
    // Spread: my part of the sum to all nodes, straight into their slices.
    float* mine = sum_ + parts_[me].first;
    if (partials[static_cast<std::size_t>(top_program_.sources.front())] == mine) {
      lockstep::run(top_program_, partials, mine, parts_[me].size());
    } else {
      // The sum's memory may hold a source that is not the first: go through a buffer.
      auto* scratch = reinterpret_cast<float*>(outbox_[me].data() + sizeof(Tally));
      lockstep::run(top_program_, partials, scratch, parts_[me].size());
      std::copy_n(scratch, parts_[me].size(), mine);
    }
    for (std::size_t n = 0; n < peers; ++n) {
      if (n == me) continue;
      const auto bytes = [&](std::size_t part) {
        return std::as_writable_bytes(std::span(sum_ + parts_[part].first, parts_[part].size()));
      };
      requests_[2 * n] = other_nodes_.receive(bytes(n), static_cast<int>(n), kSpreadTag);
      requests_[2 * n + 1] = other_nodes_.send(bytes(me), static_cast<int>(n), kSpreadTag);
    }
    wait_all("sums of other nodes");
  }
  Control& first = control(0);
  if (first_rank) {
    first.totals[operation_ & 1] = tally;
    first.tallied.store(operation_, std::memory_order_release);
  } else if (!exchanges) {
    waited_ += wait_for_tally();
    tally = first.totals[operation_ & 1];
  }
  return tally;
}

void CanonicalReducer::finish() {
  control(topology_.node.rank()).finished.store(operation_, std::memory_order_release);
  wait_for_node("all ranks of the node to end the step", &Control::finished, operation_);
}

}  // namespace lockstep
