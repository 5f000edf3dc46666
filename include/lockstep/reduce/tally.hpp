#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>

namespace lockstep {

/// What a rank may say with a step.
enum class Says : std::uint8_t {
  stop,
  signal,
  error,
  not_finite,
  save,
  end_of_input,
  shard_pending,  ///< this rank's shard of the newest checkpoint is not durable yet
  shard_failed,   ///< and will not be
  thread_failed,
  closing
};
inline constexpr int kSays = 10;

/// How many named values (loss, accuracy...) may travel with a step.
inline constexpr int kMaxValues = 16;

/// How many timers in seconds may be registered with a session: one bit each.
inline constexpr int kMaxTimers = 64;

/// What ranks say with a step, added up. The tally of one rank is its ballot; the tally over all ranks is the
/// same on all ranks, and every collective decision is taken from it. Plain bytes, so that it can travel
/// inside a message.
class Tally {
 public:
  static constexpr std::int32_t kNobody = std::numeric_limits<std::int32_t>::max();

  Tally() { first_.fill(kNobody); }

  /// What `rank` says at first: nothing.
  explicit Tally(std::int32_t rank) : Tally() {
    rank_ = rank;
    ranks_ = contributors_ = 1;
  }

  void say(Says what) { first_[static_cast<std::size_t>(what)] = rank_; }
  bool anyone_says(Says what) const { return first_[static_cast<std::size_t>(what)] != kNobody; }

  /// The lowest rank that says it, or kNobody.
  std::int32_t first_rank(Says what) const { return first_[static_cast<std::size_t>(what)]; }

  void set_signal(std::int32_t signal) {
    signal_ = signal;
    say(Says::signal);
  }
  std::int32_t signal() const { return signal_; }  ///< the highest number that any rank saw

  /// Chief only: timer `bit` is due.
  void set_timer(int bit) { timers_ |= std::uint64_t{1} << bit; }
  bool timer(int bit) const { return (timers_ >> bit & 1) != 0; }
  std::uint64_t timers() const { return timers_; }
  void set_timers(std::uint64_t timers) { timers_ = timers; }

  /// A rank's own values, in an order that is the same on all ranks; `names` is a digest of their names.
  void set_values(std::span<const double> values, std::uint64_t names);
  int value_count() const { return value_count_; }
  /// Over the ranks that contribute.
  double value_mean(int i) const { return values_[static_cast<std::size_t>(i)] / std::max(contributors_, 1); }
  double value_sum(int i) const { return values_[static_cast<std::size_t>(i)]; }

  /// This rank has no part in the step's sums and means; before set_values, whose numbers then count as 0.
  void abstain() { contributors_ = 0; }
  std::int32_t contributors() const { return contributors_; }  ///< ranks that do have a part

  /// Micro-batches that this rank has summed.
  void set_micro_batches(std::int64_t count) { micro_batches_ = count; }
  std::int64_t micro_batches() const { return micro_batches_; }

  /// How long this rank, which is on node `node`, waited for others in the step before.
  void set_wait(double seconds, std::int32_t node);
  double wait_sum() const { return wait_sum_; }  ///< over the ranks
  double wait_min() const { return wait_min_; }
  std::int32_t wait_min_rank() const { return wait_min_rank_; }  ///< who waited least came last; or kNobody
  std::int32_t wait_min_node() const { return wait_min_node_; }

  /// How long the others waited for the one that came last, on average, in seconds; 0 for one rank.
  double arrival_lag() const;

  /// What this rank is about to reduce: 0 elements is a ballot that travels alone.
  void set_elements(std::uint64_t elements) { elements_min_ = elements_max_ = elements; }
  std::uint64_t elements() const { return elements_max_; }

  /// False when ranks reduce different numbers of elements or values of different names.
  bool agrees() const { return elements_min_ == elements_max_ && names_min_ == names_max_; }

  std::int32_t ranks() const { return ranks_; }

  /// Adds what the ranks of `other` say. Associative and commutative, but for the rounding of the sums of
  /// values, which are in the order of the calls.
  void add(const Tally& other);

 private:
  std::array<std::int32_t, kSays> first_{};
  std::int32_t rank_ = kNobody;
  std::int32_t ranks_ = 0;
  std::int32_t contributors_ = 0;
  std::int32_t signal_ = 0;
  std::int32_t value_count_ = 0;
  std::int32_t wait_min_rank_ = kNobody;
  std::int32_t wait_min_node_ = 0;
  std::int64_t micro_batches_ = 0;
  std::uint64_t timers_ = 0;
  std::uint64_t elements_min_ = 0;
  std::uint64_t elements_max_ = 0;
  std::uint64_t names_min_ = 0;
  std::uint64_t names_max_ = 0;
  double wait_sum_ = 0;
  double wait_min_ = std::numeric_limits<double>::infinity();
  std::array<double, kMaxValues> values_{};
};

}  // namespace lockstep
