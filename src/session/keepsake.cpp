#include <algorithm>
#include <utility>

#include <lockstep/session/keepsake.hpp>

#include "kept_memory.hpp"

namespace lockstep {

Keepsake::Keepsake(bool second_copy) : second_copy_(second_copy) {}
Keepsake::~Keepsake() = default;

void Keepsake::adopt(std::shared_ptr<KeptMemory> memory) {
  before_ = std::exchange(memory_, std::move(memory));
  ++sessions_;
  values_.reset();
}

void Keepsake::forget_before() {
  before_.reset();
}

std::size_t Keepsake::second_copy_bytes() const noexcept {
  return memory_ ? memory_->second_bytes() : 0;
}

std::optional<std::int64_t> Keepsake::step() const noexcept {
  return values_ ? std::optional(values_->step) : std::nullopt;
}

void Keepsake::settle(const Communicator& left) {
  values_.reset();
  // Who has come does not write any more.
  left.barrier("the ranks that are left to leave their sessions");
  // Where a rank was lost while a session was adopted, some may not have got it. They all have the one
  // before.
  const auto sessions = left.all_gather(sessions_);
  const std::uint64_t common = *std::ranges::min_element(sessions);
  if (sessions_ != common) memory_ = before_;
  sessions_ = common;
  before_.reset();
  std::optional<KeptValues> found = KeptMemory::find(memory_.get(), left);
  if (!found) return;
  if (found->goes_back) memory_->go_back(found->update);
  // Nobody may ask again before that is done.
  left.barrier("the values in memory to be those of one step");
  values_ = std::make_unique<KeptValues>(std::move(*found));
}

}  // namespace lockstep
