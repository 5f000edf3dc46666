#include "node_exchange.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/state/arena.hpp>

#include "bfloat16.hpp"

namespace lockstep {
namespace {

// Tags of the reduction; those below are the communicator's own.
constexpr int kMeasureTag = 101;
constexpr int kRoundTag = 102;
constexpr int kShardTag = 103;
constexpr int kBucketTag = 104;  // and two more for every bucket: collect, spread

// Parts are cut at multiples of this, so that the fixed blocks over which optimizers take norms lie in one.
constexpr std::size_t kGrain = 4096;

// MPI promises tags up to 32,767.
constexpr std::size_t kMaxBuckets = 8192;

// Buckets under way at once, beside the last.
constexpr std::size_t kInFlight = 4;

// The last bucket is one message to each node; all others are cut into messages of so much at most.
constexpr std::size_t kMaxBucketElements = std::size_t{1} << 24;
constexpr std::size_t kMaxMessageBytes = std::size_t{1} << 30;

bool sums(const Tally& tally) {
  return tally.elements() > 0 && tally.agrees();
}

std::span<const std::byte> bytes_of(const float* values, ElementRange range) {
  return std::as_bytes(std::span(values + range.first, range.size()));
}
std::span<std::byte> bytes_in(float* values, ElementRange range) {
  return std::as_writable_bytes(std::span(values + range.first, range.size()));
}

float* values_in(std::vector<std::byte>& message) {
  return reinterpret_cast<float*>(message.data() + sizeof(Tally));
}
static_assert(sizeof(Tally) % alignof(float) == 0);

// So much of a rounded sum is worked on at once: it stays in the cache.
constexpr std::size_t kBlock = 4096;

bool any_node(std::size_t) {
  return true;
}

/// What one message costs between nodes.
struct Link {
  double latency = 20e-6;
  double overhead = 60e-6;  ///< of a large message, for which MPI asks before it sends
  double seconds_per_byte = 1e-9;
  double seconds_per_byte_added = 0.3e-9;  ///< copied and added up, in the cache
};

/// Every node sends to one far away at once, as in a reduction. Collective over the column.
Link measure(const Topology& topology) {
  const Communicator& column = topology.column;
  constexpr int kRepeats = 4;
  constexpr std::size_t kSmall = 8;
  constexpr std::size_t kMedium = std::size_t{1} << 17;  // MPI asks before it sends so much
  constexpr std::size_t kLarge = 6 * kMedium;
  const int distance = std::max(1, column.size() / 2);
  const int next = (column.rank() + distance) % column.size();
  const int previous = (column.rank() + column.size() - distance) % column.size();
  std::vector<std::byte> out(kLarge);
  std::vector<std::byte> in(kLarge);
  const auto& clock = *column.policy().clock;
  const auto name_of = [&](int node) {
    return fmt::format("rank {} on {}", topology.all_nodes.leader_of(node), topology.all_nodes.host_of(node));
  };
  const std::string giver = name_of(previous);
  const std::string taker = name_of(next);
  const auto best = [&](std::size_t bytes) {
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kRepeats; ++i) {
      const Seconds start = clock.now();
      Request received = column.receive(std::span(in).first(bytes), previous, kMeasureTag);
      Request sent = column.send(std::span(out).first(bytes), next, kMeasureTag);
      column.wait(received, "the network to be measured", giver);
      column.wait(sent, "the network to be measured", taker);
      least = std::min(least, (clock.now() - start).count());
    }
    return least;
  };
  const double small = best(kSmall);
  const double medium = best(kMedium);
  const double large = best(kLarge);
  if (!(small > 0) || !(medium > small) || !(large > medium)) return {};  // a clock that stands still
  const double seconds_per_byte = (large - medium) / static_cast<double>(kLarge - kMedium);
  // At least the question, the answer and what was asked for.
  const double overhead = std::max(3 * small, medium - seconds_per_byte * static_cast<double>(kMedium));
  std::vector<float> from(kMedium / sizeof(float));
  std::vector<float> into(from.size());
  std::vector<float> copy(from.size());
  double added = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRepeats; ++i) {
    const Seconds start = clock.now();
    std::ranges::copy(from, copy.begin());
    add(into, copy);
    added = std::min(added, (clock.now() - start).count());
  }
  return {small, overhead, seconds_per_byte, added / static_cast<double>(kMedium)};
}

}  // namespace

ElementRange part_of(ElementRange whole, int index, int parts, std::size_t grain) {
  const std::size_t grains = (whole.size() + grain - 1) / grain;
  const auto at = [&](int i) {
    const std::size_t grain_index = grains * static_cast<std::size_t>(i) / static_cast<std::size_t>(parts);
    return std::min(whole.first + grain_index * grain, whole.last);
  };
  return {at(index), at(index + 1)};
}

ElementRange shard_of_node(const Topology& topology, std::size_t elements, int node) {
  return part_of({0, elements}, node, topology.nodes, kGrain);
}

ElementRange shard_of(const Topology& topology, std::size_t elements, int node, int column) {
  return part_of(shard_of_node(topology, elements, node), column, topology.columns, kGrain);
}

ExchangePlan plan_exchange(const Topology& topology, std::size_t elements, const ReducerOptions& options) {
  ExchangePlan plan;
  plan.shard = options.shard;
  plan.residual = options.residual;
  if (topology.nodes == 1) {
    plan.buckets = {{0, elements}};
    return plan;
  }
  // Who rounds what follows from how buckets are cut, so those have one size.
  constexpr std::size_t kRoundedBucket = std::size_t{1} << 20;
  const bool rounded = !options.residual.empty();
  const std::size_t chosen_bytes = rounded ? kRoundedBucket : options.bucket_bytes;
  const double bytes = static_cast<double>(elements * sizeof(float));
  const double nodes = topology.nodes;
  const double share = bytes / topology.columns;
  const bool automatic = options.exchange == ReducerOptions::Exchange::automatic;
  // Whatever the network is like.
  constexpr double kSurelyDoubling = 4096;
  const bool surely_doubling = automatic && share <= kSurelyDoubling && !plan.shard;
  Link link;
  if (!rounded && !surely_doubling && (chosen_bytes == 0 || automatic)) {
    if (topology.node.rank() == 0) link = measure(topology);
    topology.world.broadcast_values(std::span(&link, 1));
  }
  if (automatic) {
    const double rounds =
        std::ceil(std::log2(nodes)) + (std::has_single_bit(static_cast<unsigned>(topology.nodes)) ? 0 : 1);
    const double doubling =
        rounds *
        (link.latency + share * (link.seconds_per_byte * topology.columns + link.seconds_per_byte_added));
    const double in_buckets = 2 * link.latency + 2 * (nodes - 1) * 0.2 * link.latency +
                              2 * (nodes - 1) / nodes * bytes * link.seconds_per_byte;
    constexpr double kMaxDoubling = 1 << 20;
    // Of more nodes than a few each rank would hear from each other one, in messages that get smaller.
    constexpr int kFew = 16;
    constexpr double kBucket = 1 << 20;
    const double transfer = 2 * bytes * link.seconds_per_byte;
    const double messages = 2 * (nodes - 1) * 0.2 * link.latency * std::max(1.0, share / kBucket);
    const double halving = 2 * rounds * link.latency * std::max(1.0, share / (4 * kBucket)) +
                           2 * share * link.seconds_per_byte_added +
                           transfer * (std::has_single_bit(static_cast<unsigned>(topology.nodes)) ? 1 : 2);
    plan.halving = topology.nodes > kFew && halving < transfer + messages;
    plan.doubling =
        surely_doubling || (share <= kMaxDoubling && doubling < (plan.halving ? halving : in_buckets));
  } else {
    plan.doubling = options.exchange == ReducerOptions::Exchange::doubling;
    plan.halving = options.exchange == ReducerOptions::Exchange::halving;
  }
  plan.doubling = plan.doubling && !plan.shard && !rounded;
  plan.halving = plan.halving && !plan.doubling && !plan.shard && !rounded;
  if (plan.doubling || elements == 0) {
    plan.buckets = {{0, elements}};
    return plan;
  }
  // What is sent after backward has ended is one bucket; each one costs two messages, to collect and to
  // spread. The sum elements / bucket * 2 overhead + bucket * seconds_per_byte is least at the root. Where
  // nothing overlaps, buckets shall not cost much beside what they carry.
  double bucket_bytes = static_cast<double>(chosen_bytes);
  if (chosen_bytes == 0) {
    constexpr double kMostOverhead = 0.15;
    constexpr double kLeast = 65536;
    constexpr double kNeverTooMuch = 1 << 20;
    // Of the arena, so that what is under way takes little memory.
    constexpr double kBuckets = 16;
    constexpr double kBucketsOfFew = 8;
    const double most =
        std::max(bytes / kBuckets,
                 bytes <= 2 * kNeverTooMuch ? kNeverTooMuch : std::min(kNeverTooMuch, bytes / kBucketsOfFew));
    // As bytes.
    const double overhead = plan.halving
                                ? 2 * std::ceil(std::log2(nodes)) * link.latency / link.seconds_per_byte
                                : 2 * link.overhead / link.seconds_per_byte;
    bucket_bytes = std::max({kLeast, std::sqrt(bytes * overhead), overhead / kMostOverhead});
    bucket_bytes = std::min(bucket_bytes, most);
  }
  auto size = static_cast<std::size_t>(std::min(bucket_bytes, bytes)) / sizeof(float);
  size = std::max(size, elements / kMaxBuckets + 1);
  size = std::clamp((size + kGrain - 1) / kGrain * kGrain, kGrain, kMaxBucketElements);
  for (std::size_t last = elements; last > 0;) {
    const std::size_t first = last > size ? (last - 1) / size * size : 0;
    plan.buckets.push_back({first, last});
    last = first;
  }
  if (plan.buckets.size() > kMaxBuckets) throw InternalError("an arena has too many buckets");
  return plan;
}

NodeExchange::NodeExchange(const Topology& topology, Communicator column, std::int64_t micro_batches,
                           std::size_t elements, std::size_t values, std::vector<float*> partials, float* sum,
                           const ExchangePlan& plan)
    : column_(std::move(column)),
      topology_(topology),
      me_(static_cast<std::size_t>(topology.my_node)),
      elements_(elements),
      values_(topology.node.rank() == 0 ? values : 0),
      shard_(plan.shard),
      partials_(std::move(partials)),
      sum_(sum),
      residual_(plan.residual) {
  const int my_column = topology.node.rank();
  const auto nodes = static_cast<std::size_t>(topology.nodes);
  const bool in_rounds = plan.doubling || plan.halving;
  if (!in_rounds) {
    // Every node is a partner.
    std::vector<TreeNode> all;
    for (int n = 0; n < topology.nodes; ++n) {
      const auto of_node = cover(micro_batches, owned_by(micro_batches, n, n + 1));
      all.insert(all.end(), of_node.begin(), of_node.end());
      partials_of_.push_back(of_node.size());
      shards_.push_back(shard_of(topology, elements, n, my_column));
    }
    auto top = combine_programs(micro_batches, all);
    if (top.size() != 1) throw InternalError("the partial sums of all nodes do not add up to one");
    top_program_ = std::move(top.front());
    sources_.resize(all.size());
  }

  for (const ElementRange& range : plan.buckets) {
    Bucket bucket;
    const ElementRange mine = part_of(range, my_column, topology.columns, kArenaAlignment);
    if (in_rounds) {
      bucket.pieces = {mine};
      buckets_.push_back(std::move(bucket));
      continue;
    }
    for (int n = 0; n < topology.nodes; ++n) {
      if (shard_) {
        const ElementRange& shard = shards_[static_cast<std::size_t>(n)];
        const std::size_t first = std::clamp(shard.first, range.first, range.last);
        bucket.pieces.push_back({first, std::clamp(shard.last, first, range.last)});
      } else {
        bucket.pieces.push_back(part_of(mine, n, topology.nodes, kArenaAlignment));
      }
    }
    buckets_.push_back(std::move(bucket));
  }
  in_flight_ = std::min(kInFlight, buckets_.size() - 1);
  if (in_rounds) {
    halving_ = plan.halving;
    plan_rounds(micro_batches);
    return;
  }
  outbox_.resize(nodes);
  inbox_.resize(nodes);
  const Bucket& last = buckets_.back();
  for (std::size_t n = 0; n < nodes; ++n) {
    if (n == me_) continue;
    outbox_[n].resize(message_bytes(partials_.size(), last.pieces[n].size()));
    inbox_[n].resize(message_bytes(partials_of_[n], last.pieces[me_].size()));
  }
  std::size_t largest = 0;  // piece of mine
  for (const Bucket& bucket : buckets_) {
    if (&bucket != &last) largest = std::max(largest, bucket.pieces[me_].size());
  }
  inboxes_.resize(in_flight_);
  if (!residual_.empty()) {
    block_.resize(kBlock);
    rounded_.resize(inboxes_.size() + 1);
    for (RoundedBoxes& boxes : rounded_) {
      boxes.inbox.resize(nodes);
      boxes.outbox.resize(nodes);
    }
    for (std::size_t index = 0; index < buckets_.size(); ++index) {
      const auto& pieces = buckets_[index].pieces;
      const auto fit = [](Halves& halves, std::size_t size) { halves.resize(std::max(halves.size(), size)); };
      for (std::size_t n = 0; n < nodes; ++n) {
        if (n == me_) continue;
        if (&buckets_[index] != &last) fit(boxes(index).inbox[n], pieces[me_].size());
        fit(boxes(index).outbox[n], pieces[n].size());
      }
      fit(boxes(index).sum, pieces[me_].size());
    }
    plan_residuals();
    return;
  }
  for (Inbox& inbox : inboxes_) {
    inbox.resize(nodes);
    for (std::size_t n = 0; n < nodes; ++n) {
      if (n != me_) inbox[n].resize(partials_of_[n] * largest);
    }
  }
}

/// Where pieces that this node rounds keep what it costs, until `keep_residual`.
void NodeExchange::plan_residuals() {
  const auto rounds = [&](std::size_t n) { return n == me_ ? !shard_ : !partials_.empty(); };
  std::size_t elements = 0;
  for (const Bucket& bucket : buckets_) {
    for (std::size_t n = 0; n < bucket.pieces.size(); ++n) {
      if (rounds(n)) elements += bucket.pieces[n].size();
    }
  }
  next_residual_.resize(elements);
  auto rest = std::span(next_residual_);
  for (Bucket& bucket : buckets_) {
    for (std::size_t n = 0; n < bucket.pieces.size(); ++n) {
      const std::size_t size = rounds(n) ? bucket.pieces[n].size() : 0;
      bucket.next_residuals.push_back(rest.first(size));
      rest = rest.subspan(size);
    }
  }
}

void NodeExchange::keep_residual() {
  for (const Bucket& bucket : buckets_) {
    for (std::size_t n = 0; n < bucket.next_residuals.size(); ++n) {
      std::ranges::copy(bucket.next_residuals[n], residual_.begin() + bucket.pieces[n].first);
    }
  }
}

/// A ballot in front, then the values of all partial sums, then their elements, or those of their sum,
/// rounded.
std::size_t NodeExchange::message_bytes(std::size_t partials, std::size_t elements) const {
  const std::size_t of_elements = residual_.empty() ? partials * elements * sizeof(float)
                                  : partials > 0    ? elements * sizeof(std::uint16_t)
                                                    : 0;
  return sizeof(Tally) + partials * values_ * sizeof(float) + of_elements;
}

float* NodeExchange::elements_in(std::vector<std::byte>& message, std::size_t partials) const {
  return values_in(message) + partials * values_;
}

std::span<std::uint16_t> NodeExchange::halves_in(std::vector<std::byte>& message, std::size_t partials,
                                                 std::size_t elements) const {
  return {reinterpret_cast<std::uint16_t*>(elements_in(message, partials)), elements};
}

MicroBatchRange NodeExchange::owned_by(std::int64_t micro_batches, int first, int last) const {
  const auto position = [&](int node) { return topology_.all_nodes.start_of(node); };
  const int ranks = topology_.world.size();
  const int end = last == topology_.nodes ? ranks : position(last);
  return {owned_range(micro_batches, position(first), ranks).first,
          owned_range(micro_batches, end - 1, ranks).last};
}

/// Neighbours swap, then pairs of neighbours, and so on. Where the nodes are no power of two, some give all
/// they have to their right neighbour at first and get the sum from it in the end.
void NodeExchange::plan_rounds(std::int64_t micro_batches) {
  const int nodes = topology_.nodes;
  const int me = topology_.my_node;
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(nodes)));
  const int rest = nodes - power;
  // What nodes first ... last - 1 hold when they have swapped all they have.
  const auto held = [&](int first, int last) {
    return cover(micro_batches, owned_by(micro_batches, first, last));
  };
  std::size_t most = 1;
  const auto add_round = [&](int partner, bool sends, bool receives, const std::vector<TreeNode>& mine,
                             const std::vector<TreeNode>& theirs, bool replaces = false) {
    Round round;
    round.partner = partner;
    round.sends = sends;
    round.receives = receives;
    round.replaces = replaces;
    round.theirs_first = partner < me;
    round.theirs = receives ? theirs.size() : 0;
    if (receives && !replaces) {
      std::vector<TreeNode> both = round.theirs_first ? theirs : mine;
      const auto& more = round.theirs_first ? mine : theirs;
      both.insert(both.end(), more.begin(), more.end());
      round.programs = combine_programs(micro_batches, both);
    }
    most = std::max({most, round.theirs, round.programs.size(), mine.size()});
    rounds_.push_back(std::move(round));
  };
  const bool paired = me < 2 * rest;
  const bool gives = paired && me % 2 == 0;
  const int neighbour = me ^ 1;
  if (paired) add_round(neighbour, gives, !gives, held(me, me + 1), held(neighbour, neighbour + 1));
  // Seats are the nodes that swap: the right ones of pairs, then those that have none.
  const auto first_of = [&](int seat) { return seat + std::min(seat, rest); };
  const auto node_at = [&](int seat) { return first_of(seat + 1) - 1; };
  const int my_seat = paired ? me / 2 : me - rest;
  for (int distance = 1; !gives && distance < power; distance *= 2) {
    const auto of_group = [&](int seat) {
      const int first = seat / distance * distance;
      return held(first_of(first), first_of(first + distance));
    };
    const int partner = my_seat ^ distance;
    add_round(node_at(partner), true, true, of_group(my_seat), of_group(partner));
  }
  const auto sum = held(0, nodes);
  if (paired && !gives) add_round(neighbour, true, false, sum, sum);
  if (gives) add_round(neighbour, false, true, held(me, me + 1), sum, true);
  if (halving_) {
    make_lanes(most);
    return;
  }
  const std::size_t elements = buckets_.front().pieces.front().size();
  outbox_.emplace_back(message_bytes(most, elements));
  inbox_.emplace_back(message_bytes(most, elements));
  held_.resize(most * (values_ + elements));
  next_.resize(held_.size());
  sources_.resize(2 * most);
}

void NodeExchange::post_send(std::span<const std::byte> bytes, int node, int tag,
                             std::vector<Request>& requests) {
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kMaxMessageBytes));
    requests.push_back(column_.send(part, node, tag));
    bytes = bytes.subspan(part.size());
  }
}

void NodeExchange::post_receive(std::span<std::byte> bytes, int node, int tag,
                                std::vector<Request>& requests) {
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kMaxMessageBytes));
    requests.push_back(column_.receive(part, node, tag));
    bytes = bytes.subspan(part.size());
  }
}

bool NodeExchange::all_done(Bucket& bucket) {
  while (bucket.done < bucket.requests.size() && column_.test(bucket.requests[bucket.done])) ++bucket.done;
  return bucket.done == bucket.requests.size();
}

bool NodeExchange::all_done(std::vector<Request>& requests) {
  bool done = true;
  for (Request& request : requests) done = column_.test(request) && done;
  return done;
}

/// `misses(n)` says whether something of node n has not come.
template <class Ready, class Misses>
Seconds NodeExchange::wait_until(std::string_view what, Ready ready, Misses misses) {
  return column_.wait_until(what, ready, [&] {
    std::string missing;
    for (std::size_t n = 0; n < static_cast<std::size_t>(topology_.nodes); ++n) {
      if (n == me_ || !misses(n)) continue;
      const auto node = static_cast<int>(n);
      missing += fmt::format("{}a rank of the node of rank {}, {}", missing.empty() ? "" : ", or ",
                             topology_.all_nodes.leader_of(node), topology_.all_nodes.host_of(node));
    }
    if (buckets_.back().state != Bucket::State::idle) {
      missing += fmt::format(" (bucket {} of {})", settled_ + 1, buckets_.size());
    }
    return missing;
  });
}

void NodeExchange::start(std::size_t index) {
  started_ = index + 1;
  poll();
}

void NodeExchange::post(std::size_t index) {
  if (halving_) {
    begin_halving(index);
    return;
  }
  Bucket& bucket = buckets_[index];
  const int tag = kBucketTag + 2 * static_cast<int>(index);
  const ElementRange mine = bucket.pieces[me_];
  for (std::size_t n = 0; n < partials_of_.size(); ++n) {
    if (n == me_) continue;
    const int node = static_cast<int>(n);
    if (!residual_.empty()) {
      RoundedBoxes& of_bucket = boxes(index);
      if (partials_of_[n] > 0) {
        const auto received = std::span(of_bucket.inbox[n]).first(mine.size());
        post_receive(std::as_writable_bytes(received), node, tag, bucket.requests);
      }
      if (partials_.empty()) continue;
      const auto sent = std::span(of_bucket.outbox[n]).first(bucket.pieces[n].size());
      round_part(index, n, sent);
      post_send(std::as_bytes(sent), node, tag, bucket.requests);
      continue;
    }
    float* inbox = inboxes_[index % inboxes_.size()][n].data();
    for (std::size_t p = 0; p < partials_of_[n]; ++p) {
      post_receive(bytes_in(inbox, {p * mine.size(), (p + 1) * mine.size()}), node, tag, bucket.requests);
    }
    for (const float* partial : partials_) {
      post_send(bytes_of(partial, bucket.pieces[n]), node, tag, bucket.requests);
    }
  }
  bucket.state = Bucket::State::collecting;
}

void NodeExchange::poll() {
  for (std::size_t index = settled_; index < posted_; ++index) advance(index);
  while (settled_ < posted_ && buckets_[settled_].state == Bucket::State::done) ++settled_;
  while (posted_ < started_ && posted_ - settled_ < in_flight_) post(posted_++);
}

void NodeExchange::advance(std::size_t index) {
  using State = Bucket::State;
  Bucket& bucket = buckets_[index];
  if (halving_) {
    while ((bucket.state == State::collecting || bucket.state == State::spreading) && all_done(bucket)) {
      bucket.requests.clear();
      bucket.done = 0;
      end_step(index);
    }
    return;
  }
  if (bucket.state == State::collecting && all_done(bucket)) {
    bucket.requests.clear();
    bucket.done = 0;
    if (!residual_.empty()) {
      combine_rounded(index);
    } else {
      std::size_t next = 0;
      for (std::size_t n = 0; n < partials_of_.size(); ++n) {
        const float* inbox = n == me_ ? nullptr : inboxes_[index % inboxes_.size()][n].data();
        for (std::size_t p = 0; p < partials_of_[n]; ++p) {
          sources_[next++] =
              n == me_ ? partials_[p] + bucket.pieces[me_].first : inbox + p * bucket.pieces[me_].size();
        }
      }
      combine(bucket);
    }
    spread(index);
  }
  if (bucket.state == State::spreading && all_done(bucket)) {
    bucket.requests.clear();
    bucket.done = 0;
    bucket.state = State::done;
    if (!residual_.empty() && !shard_) unpack_sums(index);
  }
}

/// Adds `sources_` up into the sum's memory.
void NodeExchange::combine(const Bucket& bucket) {
  const ElementRange mine = bucket.pieces[me_];
  lockstep::run(top_program_, sources_, sum_ + mine.first, mine.size());
}

void NodeExchange::spread(std::size_t index) {
  Bucket& bucket = buckets_[index];
  const int tag = kBucketTag + 2 * static_cast<int>(index) + 1;
  bucket.state = Bucket::State::spreading;
  if (shard_) return;
  const ElementRange mine = bucket.pieces[me_];
  for (std::size_t n = 0; n < partials_of_.size(); ++n) {
    if (n == me_) continue;
    const ElementRange theirs = bucket.pieces[n];
    if (!residual_.empty()) {
      RoundedBoxes& of_bucket = boxes(index);
      const auto received = std::span(of_bucket.outbox[n]).first(theirs.size());
      const auto sent = std::span(of_bucket.sum).first(mine.size());
      post_receive(std::as_writable_bytes(received), static_cast<int>(n), tag, bucket.requests);
      post_send(std::as_bytes(sent), static_cast<int>(n), tag, bucket.requests);
    } else {
      post_receive(bytes_in(sum_, theirs), static_cast<int>(n), tag, bucket.requests);
      post_send(bytes_of(sum_, mine), static_cast<int>(n), tag, bucket.requests);
    }
  }
}

NodeExchange::RoundedBoxes& NodeExchange::boxes(std::size_t index) {
  return index + 1 == buckets_.size() ? rounded_.back() : rounded_[index % inboxes_.size()];
}

/// What the partial sums of this node add up to, one after the other, at some elements; at most kBlock.
std::span<const float> NodeExchange::node_sum(std::size_t first, std::size_t count) {
  if (partials_.size() == 1) return {partials_.front() + first, count};
  const auto block = std::span(block_).first(count);
  std::copy_n(partials_.front() + first, count, block.begin());
  for (std::size_t p = 1; p < partials_.size(); ++p) add(block, {partials_[p] + first, count});
  return block;
}

/// My sum of another node's piece, as it is sent.
void NodeExchange::round_part(std::size_t index, std::size_t node, std::span<std::uint16_t> halves) {
  const ElementRange piece = buckets_[index].pieces[node];
  const auto next = buckets_[index].next_residuals[node];
  for (std::size_t at = 0; at < piece.size(); at += kBlock) {
    const std::size_t count = std::min(kBlock, piece.size() - at);
    round_with_feedback(node_sum(piece.first + at, count), residual_.subspan(piece.first + at, count),
                        halves.subspan(at, count), next.subspan(at, count));
  }
}

/// The sum of my piece over the nodes in their order, rounded unless it stays here.
void NodeExchange::combine_rounded(std::size_t index) {
  const ElementRange mine = buckets_[index].pieces[me_];
  RoundedBoxes& of_bucket = boxes(index);
  const bool is_last = index + 1 == buckets_.size();
  const auto inbox = [&](std::size_t n) -> std::span<const std::uint16_t> {
    return is_last ? halves_in(inbox_[n], partials_of_[n], mine.size())
                   : std::span(of_bucket.inbox[n]).first(mine.size());
  };
  std::array<float, kBlock> total;
  for (std::size_t at = 0; at < mine.size(); at += kBlock) {
    const std::size_t count = std::min(kBlock, mine.size() - at);
    bool first = true;
    for (std::size_t n = 0; n < partials_of_.size(); ++n) {
      if (partials_of_[n] == 0) continue;
      std::span<const float> theirs;
      std::array<float, kBlock> widened;
      if (n == me_) {
        theirs = node_sum(mine.first + at, count);
      } else {
        const auto halves = inbox(n);
        for (std::size_t i = 0; i < count; ++i) widened[i] = from_bfloat16(halves[at + i]);
        theirs = std::span<const float>(widened).first(count);
      }
      if (std::exchange(first, false)) {
        std::ranges::copy(theirs, total.begin());
      } else {
        add(std::span(total).first(count), theirs);
      }
    }
    float* sum = sum_ + mine.first + at;
    if (shard_) {
      std::copy_n(total.begin(), count, sum);
      continue;
    }
    const auto halves = std::span(of_bucket.sum).subspan(at, count);
    round_with_feedback(std::span<const float>(total).first(count), residual_.subspan(mine.first + at, count),
                        halves, buckets_[index].next_residuals[me_].subspan(at, count));
    for (std::size_t i = 0; i < count; ++i) sum[i] = from_bfloat16(halves[i]);
  }
}

/// The sums of other nodes' pieces have come.
void NodeExchange::unpack_sums(std::size_t index) {
  for (std::size_t n = 0; n < partials_of_.size(); ++n) {
    if (n == me_) continue;
    const ElementRange theirs = buckets_[index].pieces[n];
    const Halves& halves = boxes(index).outbox[n];
    for (std::size_t i = 0; i < theirs.size(); ++i) sum_[theirs.first + i] = from_bfloat16(halves[i]);
  }
}

Tally NodeExchange::complete(const Tally& of_node) {
  const Tally total = rounds_.empty() ? complete_buckets(of_node)
                      : halving_      ? complete_halving(of_node)
                                      : complete_rounds(of_node);
  started_ = posted_ = settled_ = 0;
  for (Bucket& bucket : buckets_) bucket.state = Bucket::State::idle;
  return total;
}

Tally NodeExchange::complete_buckets(const Tally& of_node) {
  const std::size_t last_index = buckets_.size() - 1;
  Bucket& last = buckets_[last_index];
  const int tag = kBucketTag + 2 * static_cast<int>(last_index);
  last.state = Bucket::State::collecting;
  for (std::size_t n = 0; n < partials_of_.size(); ++n) {
    if (n == me_) continue;
    std::size_t bytes = sizeof(Tally);
    std::memcpy(outbox_[n].data(), &of_node, sizeof of_node);
    if (sums(of_node)) {
      bytes = outbox_[n].size();
      const ElementRange theirs = last.pieces[n];
      float* out = values_in(outbox_[n]);
      for (const float* partial : partials_) out = std::copy_n(partial + elements_, values_, out);
      if (residual_.empty()) {
        for (const float* partial : partials_) out = std::copy_n(partial + theirs.first, theirs.size(), out);
      } else if (!partials_.empty()) {
        round_part(last_index, n, halves_in(outbox_[n], partials_.size(), theirs.size()));
      }
    }
    requests_.push_back(column_.receive(inbox_[n], static_cast<int>(n), tag));
    requests_.push_back(column_.send(std::span(outbox_[n]).first(bytes), static_cast<int>(n), tag));
  }
  waited_ = wait_until(
      "partial sums of other nodes",
      [&] {
        poll();
        return all_done(requests_);
      },
      [&](std::size_t n) {
        const std::size_t pair = n < me_ ? n : n - 1;
        return !requests_[2 * pair].done || !requests_[2 * pair + 1].done;
      });
  requests_.clear();

  Tally total;
  for (std::size_t n = 0; n < partials_of_.size(); ++n) {
    Tally theirs = of_node;
    if (n != me_) std::memcpy(&theirs, inbox_[n].data(), sizeof theirs);
    total.add(theirs);
  }
  if (total.elements() == 0) return total;
  if (of_node.elements() == 0) {
    for (std::size_t index = 0; index < last_index; ++index) start(index);
  }
  if (total.agrees()) {
    const ElementRange mine = last.pieces[me_];
    const auto gather_sources = [&](bool tails) {
      std::size_t next = 0;
      for (std::size_t n = 0; n < partials_of_.size(); ++n) {
        for (std::size_t p = 0; p < partials_of_[n]; ++p) {
          sources_[next++] = n == me_ ? partials_[p] + (tails ? elements_ : mine.first)
                             : tails  ? values_in(inbox_[n]) + p * values_
                                      : elements_in(inbox_[n], partials_of_[n]) + p * mine.size();
        }
      }
    };
    gather_sources(true);
    lockstep::run(top_program_, sources_, sum_ + elements_, values_);
    if (!residual_.empty()) {
      combine_rounded(last_index);
    } else {
      gather_sources(false);
      combine(last);
    }
    spread(last_index);
  } else {
    last.state = Bucket::State::done;
  }
  wait_until(
      "sums of other nodes",
      [&] {
        poll();
        advance(last_index);
        return settled_ == last_index && last.state == Bucket::State::done;
      },
      any_node);
  return total;
}

Tally NodeExchange::complete_rounds(const Tally& of_node) {
  const ElementRange mine = buckets_.front().pieces.front();
  const std::size_t stride = values_ + mine.size();
  Tally total = of_node;
  waited_ = Seconds{0};
  std::size_t count = partials_.size();
  if (sums(total)) {
    float* out = held_.data();
    for (const float* partial : partials_) {
      out = std::copy_n(partial + elements_, values_, out);
      out = std::copy_n(partial + mine.first, mine.size(), out);
    }
  }
  for (const Round& round : rounds_) {
    auto& out = outbox_.front();
    auto& in = inbox_.front();
    if (round.receives) {
      const auto space = std::span(in).first(message_bytes(round.theirs, mine.size()));
      requests_.push_back(column_.receive(space, round.partner, kRoundTag));
    }
    if (round.sends) {
      std::memcpy(out.data(), &total, sizeof total);
      std::size_t bytes = sizeof total;
      if (sums(total)) {
        bytes = message_bytes(count, mine.size());
        std::copy_n(held_.data(), count * stride, values_in(out));
      }
      requests_.push_back(column_.send(std::span(out).first(bytes), round.partner, kRoundTag));
    }
    waited_ += wait_until(
        "partial sums of other nodes", [&] { return all_done(requests_); },
        [&](std::size_t n) { return static_cast<int>(n) == round.partner; });
    requests_.clear();
    if (!round.receives) continue;
    Tally theirs;
    std::memcpy(&theirs, in.data(), sizeof theirs);
    if (round.replaces) {
      total = theirs;
    } else {
      // In the order of the nodes, so that all come to the same bits.
      Tally left = round.theirs_first ? theirs : total;
      left.add(round.theirs_first ? total : theirs);
      total = left;
    }
    if (!sums(total)) continue;
    if (round.replaces) {
      std::copy_n(values_in(in), stride, held_.data());
      continue;
    }
    const float* received = values_in(in);
    for (std::size_t i = 0; i < count + round.theirs; ++i) {
      const bool own = round.theirs_first ? i >= round.theirs : i < count;
      const std::size_t before = round.theirs_first ? round.theirs : count;
      const std::size_t at = i < before ? i : i - before;
      sources_[i] = (own ? held_.data() : received) + at * stride;
    }
    const auto sources = std::span(sources_).first(count + round.theirs);
    for (std::size_t p = 0; p < round.programs.size(); ++p) {
      lockstep::run(round.programs[p], sources, next_.data() + p * stride, stride);
    }
    count = round.programs.size();
    held_.swap(next_);
  }
  if (!sums(total)) return total;
  std::copy_n(held_.data(), values_, sum_ + elements_);
  std::copy_n(held_.data() + values_, mine.size(), sum_ + mine.first);
  return total;
}

/// There: what rounds_ says, but for its last where that brings the sum to a node that has given all it had.
/// Back: the swaps, the last one first; then that one.
void NodeExchange::make_lanes(std::size_t most) {
  const Round& end = rounds_.back();
  const bool tail = rounds_.size() > 1 && !(end.sends && end.receives);
  there_ = rounds_.size() - (tail ? 1 : 0);
  swaps_ = static_cast<std::size_t>(
      std::ranges::count_if(rounds_, [](const Round& round) { return round.sends && round.receives; }));
  steps_ = there_ + swaps_ + (tail ? 1 : 0);
  sources_.resize(2 * most);
  lanes_.resize(in_flight_ + 1);
  for (std::size_t index = 0; index < buckets_.size(); ++index) {
    const std::size_t head = is_last(index) ? values_ : 0;
    const std::size_t floats = most * (head + buckets_[index].pieces.front().size());
    const std::size_t bytes = (is_last(index) ? sizeof(Tally) : 0) + floats * sizeof(float);
    Lane& mine = lane(index);
    const auto fit = [](auto& box, std::size_t size) { box.resize(std::max(box.size(), size)); };
    fit(mine.held, floats);
    fit(mine.next, floats);
    fit(mine.out, bytes);
    fit(mine.in, bytes);
  }
}

const NodeExchange::Round& NodeExchange::round_of(std::size_t step) const {
  return step < there_            ? rounds_[step]
         : step < there_ + swaps_ ? rounds_[2 * there_ - 1 - step]
                                  : rounds_.back();
}

NodeExchange::Lane& NodeExchange::lane(std::size_t index) {
  return is_last(index) ? lanes_.back() : lanes_[index % in_flight_];
}

void NodeExchange::begin_halving(std::size_t index) {
  Bucket& bucket = buckets_[index];
  bucket.state = Bucket::State::collecting;
  bucket.step = 0;
  bucket.before.clear();
  bucket.range = bucket.pieces.front();
  bucket.partials = partials_.size();
  if (!is_last(index) || sums(total_)) {
    float* out = lane(index).held.data();
    for (const float* partial : partials_) {
      if (is_last(index)) out = std::copy_n(partial + elements_, values_, out);
      out = std::copy_n(partial + bucket.range.first, bucket.range.size(), out);
    }
  }
  post_step(index);
}

/// Messages of the last bucket begin with the ballots so far, and with the values of each partial sum.
void NodeExchange::post_step(std::size_t index) {
  Bucket& bucket = buckets_[index];
  Lane& mine = lane(index);
  const bool last = is_last(index);
  const std::size_t front = last ? sizeof(Tally) : 0;
  const std::size_t head = last ? values_ : 0;
  const ElementRange range = bucket.range;
  const int tag = kBucketTag + 2 * static_cast<int>(index);
  const auto send = [&](const Round& round, int with_tag, ElementRange part) {
    if (last) std::memcpy(mine.out.data(), &total_, sizeof total_);
    std::size_t bytes = front;
    if (!last || sums(total_)) {
      auto* out = reinterpret_cast<float*>(mine.out.data() + front);
      for (std::size_t p = 0; p < bucket.partials; ++p) {
        const float* partial = mine.held.data() + p * (head + range.size());
        out = std::copy_n(partial, head, out);
        out = std::copy_n(partial + head + (part.first - range.first), part.size(), out);
      }
      bytes += bucket.partials * (head + part.size()) * sizeof(float);
    }
    if (bytes > 0)
      bucket.requests.push_back(column_.send(std::span(mine.out).first(bytes), round.partner, with_tag));
  };
  const auto receive = [&](const Round& round, int with_tag, std::size_t partials, std::size_t elements) {
    const std::size_t bytes = front + partials * (head + elements) * sizeof(float);
    if (bytes > 0) {
      bucket.requests.push_back(column_.receive(std::span(mine.in).first(bytes), round.partner, with_tag));
    }
  };
  if (bucket.step < there_) {
    const Round& round = rounds_[bucket.step];
    bucket.kept = range;
    ElementRange given = range;
    if (round.sends && round.receives) {
      const std::size_t half = range.size() / 2 / kArenaAlignment * kArenaAlignment;
      const ElementRange lower{range.first, range.first + half};
      const ElementRange upper{range.first + half, range.last};
      bucket.kept = round.theirs_first ? upper : lower;
      given = round.theirs_first ? lower : upper;
    }
    if (round.receives) receive(round, tag, round.theirs, bucket.kept.size());
    if (round.sends) send(round, tag, given);
    return;
  }
  if (bucket.step < there_ + swaps_) {
    const Round& round = rounds_[2 * there_ - 1 - bucket.step];
    const ElementRange both = bucket.before.back();
    const ElementRange theirs =
        round.theirs_first ? ElementRange{both.first, range.first} : ElementRange{range.last, both.last};
    post_receive(bytes_in(sum_, theirs), round.partner, tag + 1, bucket.requests);
    post_send(bytes_of(sum_, range), round.partner, tag + 1, bucket.requests);
    return;
  }
  const Round& round = rounds_.back();
  if (round.replaces) {
    receive(round, tag + 1, 1, range.size());
    return;
  }
  // The sum is whole by now.
  if (!last || sums(total_)) {
    bucket.partials = 1;
    std::copy_n(sum_ + elements_, head, mine.held.data());
    std::copy_n(sum_ + range.first, range.size(), mine.held.data() + head);
  }
  send(round, tag + 1, range);
}

/// Ballots are added in the order of the nodes, so that all come to the same bits.
void NodeExchange::hear(const Tally& theirs, const Round& round) {
  Tally left = round.theirs_first ? theirs : total_;
  left.add(round.theirs_first ? total_ : theirs);
  total_ = left;
}

/// The partial sums that I keep and those that came, along the tree.
void NodeExchange::add_up(std::size_t index, const Round& round) {
  Bucket& bucket = buckets_[index];
  Lane& mine = lane(index);
  const std::size_t head = is_last(index) ? values_ : 0;
  const std::size_t front = is_last(index) ? sizeof(Tally) : 0;
  const std::size_t stride = head + bucket.kept.size();
  const auto* received = reinterpret_cast<const float*>(mine.in.data() + front);
  const auto sources = std::span(sources_).first(bucket.partials + round.theirs);
  const auto gather = [&](bool heads) {
    auto next = sources.begin();
    const auto own = [&] {
      for (std::size_t p = 0; p < bucket.partials; ++p) {
        const float* partial = mine.held.data() + p * (head + bucket.range.size());
        *next++ = heads ? partial : partial + head + (bucket.kept.first - bucket.range.first);
      }
    };
    if (!round.theirs_first) own();
    for (std::size_t p = 0; p < round.theirs; ++p) *next++ = received + p * stride + (heads ? 0 : head);
    if (round.theirs_first) own();
  };
  gather(true);
  for (std::size_t p = 0; p < round.programs.size() && head > 0; ++p) {
    lockstep::run(round.programs[p], sources, mine.next.data() + p * stride, head);
  }
  gather(false);
  for (std::size_t p = 0; p < round.programs.size(); ++p) {
    lockstep::run(round.programs[p], sources, mine.next.data() + p * stride + head, bucket.kept.size());
  }
  bucket.partials = round.programs.size();
  mine.held.swap(mine.next);
}

/// What was posted is there.
void NodeExchange::end_step(std::size_t index) {
  using State = Bucket::State;
  Bucket& bucket = buckets_[index];
  Lane& mine = lane(index);
  const bool last = is_last(index);
  const std::size_t step = bucket.step++;
  if (step < there_) {
    const Round& round = rounds_[step];
    if (round.receives) {
      if (last) {
        Tally theirs;
        std::memcpy(&theirs, mine.in.data(), sizeof theirs);
        hear(theirs, round);
      }
      if (!last || sums(total_)) add_up(index, round);
      if (round.sends) bucket.before.push_back(bucket.range);
      bucket.range = bucket.kept;
    }
    if (bucket.step == there_) {
      if (!rounds_.back().replaces && (!last || sums(total_))) {
        const std::size_t head = last ? values_ : 0;
        std::copy_n(mine.held.data(), head, sum_ + elements_);
        std::copy_n(mine.held.data() + head, bucket.range.size(), sum_ + bucket.range.first);
      }
      bucket.state = last ? State::summed : State::spreading;
      if (last) return;
    }
  } else if (step < there_ + swaps_) {
    bucket.range = bucket.before.back();
    bucket.before.pop_back();
  } else if (rounds_.back().replaces) {
    const std::size_t head = last ? values_ : 0;
    const std::size_t front = last ? sizeof(Tally) : 0;
    if (last) std::memcpy(&total_, mine.in.data(), sizeof total_);
    if (!last || sums(total_)) {
      const auto* received = reinterpret_cast<const float*>(mine.in.data() + front);
      std::copy_n(received, head, sum_ + elements_);
      std::copy_n(received + head, bucket.range.size(), sum_ + bucket.range.first);
    }
  }
  if (bucket.step == steps_) {
    bucket.state = State::done;
  } else {
    post_step(index);
  }
}

Tally NodeExchange::complete_halving(const Tally& of_node) {
  using State = Bucket::State;
  const std::size_t last_index = buckets_.size() - 1;
  Bucket& last = buckets_[last_index];
  const auto awaited = [&](std::size_t n) {
    const auto waits_for = [&](std::size_t index) {
      const Bucket& bucket = buckets_[index];
      return bucket.step < steps_ && static_cast<std::size_t>(round_of(bucket.step).partner) == n;
    };
    for (std::size_t index = settled_; index < posted_; ++index) {
      if (waits_for(index)) return true;
    }
    return waits_for(last_index);
  };
  total_ = of_node;
  begin_halving(last_index);
  waited_ = wait_until(
      "partial sums of other nodes",
      [&] {
        poll();
        advance(last_index);
        return last.state == State::summed;
      },
      awaited);
  // A node that has given all away hears of the others with the sum.
  const bool told_last = rounds_.back().replaces;
  if (!told_last && !sums(total_)) last.step = there_ + swaps_;
  if (last.step == steps_) {
    last.state = State::done;
  } else {
    last.state = State::spreading;
    if (!told_last && !sums(total_)) last.range = last.pieces.front();
    post_step(last_index);
  }
  wait_until(
      "sums of other nodes",
      [&] {
        if ((!told_last || last.state == State::done) && total_.elements() > 0 && started_ < last_index) {
          started_ = last_index;
        }
        poll();
        advance(last_index);
        return last.state == State::done && settled_ == (total_.elements() > 0 ? last_index : 0);
      },
      awaited);
  return total_;
}

void NodeExchange::spread_shards(std::span<float> arena) {
  const ElementRange mine = shards_[me_];
  for (std::size_t n = 0; n < shards_.size(); ++n) {
    if (n == me_) continue;
    post_receive(bytes_in(arena.data(), shards_[n]), static_cast<int>(n), kShardTag, requests_);
    post_send(bytes_of(arena.data(), mine), static_cast<int>(n), kShardTag, requests_);
  }
  wait_until(
      "parameters of other nodes", [&] { return all_done(requests_); }, any_node);
  requests_.clear();
}

void NodeExchange::gather_shards(std::span<float> arena) {
  if (me_ != 0) {
    post_send(bytes_of(arena.data(), shards_[me_]), 0, kShardTag, requests_);
  } else {
    for (std::size_t n = 1; n < shards_.size(); ++n) {
      post_receive(bytes_in(arena.data(), shards_[n]), static_cast<int>(n), kShardTag, requests_);
    }
  }
  wait_until(
      "shards of other nodes", [&] { return all_done(requests_); }, any_node);
  requests_.clear();
}

void NodeExchange::gather_nodes(std::span<const std::span<float>> arenas) {
  if (me_ != 0) {
    post_send(std::as_bytes(arenas[me_]), 0, kShardTag, requests_);
  } else {
    for (std::size_t n = 1; n < arenas.size(); ++n) {
      post_receive(std::as_writable_bytes(arenas[n]), static_cast<int>(n), kShardTag, requests_);
    }
  }
  wait_until(
      "what other nodes keep", [&] { return all_done(requests_); }, any_node);
  requests_.clear();
}

std::size_t NodeExchange::bytes() const {
  std::size_t bytes = (held_.size() + next_.size() + block_.size() + next_residual_.size()) * sizeof(float);
  for (std::size_t n = 0; n < inbox_.size(); ++n) bytes += inbox_[n].size() + outbox_[n].size();
  for (const Lane& of_bucket : lanes_) {
    bytes += (of_bucket.held.size() + of_bucket.next.size()) * sizeof(float) + of_bucket.in.size() +
             of_bucket.out.size();
  }
  for (const Inbox& inbox : inboxes_) {
    for (const auto& box : inbox) bytes += box.size() * sizeof(float);
  }
  for (const RoundedBoxes& of_bucket : rounded_) {
    bytes += of_bucket.sum.size() * sizeof(std::uint16_t);
    for (const Halves& box : of_bucket.inbox) bytes += box.size() * sizeof(std::uint16_t);
    for (const Halves& box : of_bucket.outbox) bytes += box.size() * sizeof(std::uint16_t);
  }
  return bytes;
}

}  // namespace lockstep
