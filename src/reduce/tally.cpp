#include <algorithm>
#include <string>
#include <type_traits>

#include <lockstep/base/error.hpp>
#include <lockstep/reduce/tally.hpp>

namespace lockstep {

static_assert(std::is_trivially_copyable_v<Tally>);

void Tally::set_values(std::span<const double> values, std::uint64_t names) {
  if (values.size() > kMaxValues) {
    throw UsageError("a step returned " + std::to_string(values.size()) + " values (at most " +
                     std::to_string(kMaxValues) + " can travel with it); return fewer");
  }
  if (contributors_ == 0) {
    std::fill_n(values_.begin(), values.size(), 0.0);
  } else {
    std::copy(values.begin(), values.end(), values_.begin());
  }
  value_count_ = static_cast<std::int32_t>(values.size());
  names_min_ = names_max_ = names;
}

void Tally::set_wait(double seconds, std::int32_t node) {
  wait_sum_ = wait_min_ = seconds;
  wait_min_rank_ = rank_;
  wait_min_node_ = node;
}

double Tally::arrival_lag() const {
  return ranks_ > 1 && wait_min_rank_ != kNobody ? (wait_sum_ - ranks_ * wait_min_) / (ranks_ - 1) : 0;
}

void Tally::add(const Tally& other) {
  if (other.ranks_ == 0) return;
  if (ranks_ == 0) {
    *this = other;
    return;
  }
  for (std::size_t i = 0; i < first_.size(); ++i) first_[i] = std::min(first_[i], other.first_[i]);
  ranks_ += other.ranks_;
  contributors_ += other.contributors_;
  micro_batches_ += other.micro_batches_;
  signal_ = std::max(signal_, other.signal_);
  value_count_ = std::max(value_count_, other.value_count_);
  timers_ |= other.timers_;
  elements_min_ = std::min(elements_min_, other.elements_min_);
  elements_max_ = std::max(elements_max_, other.elements_max_);
  names_min_ = std::min(names_min_, other.names_min_);
  names_max_ = std::max(names_max_, other.names_max_);
  wait_sum_ += other.wait_sum_;
  if (other.wait_min_ < wait_min_ ||
      (other.wait_min_ == wait_min_ && other.wait_min_rank_ < wait_min_rank_)) {
    wait_min_ = other.wait_min_;
    wait_min_rank_ = other.wait_min_rank_;
    wait_min_node_ = other.wait_min_node_;
  }
  for (int i = 0; i < value_count_; ++i) {
    values_[static_cast<std::size_t>(i)] += other.values_[static_cast<std::size_t>(i)];
  }
}

}  // namespace lockstep
