#include <algorithm>
#include <utility>

#include <lockstep/session/keepsake.hpp>

#include "kept_memory.hpp"

namespace lockstep {

Keepsake::Keepsake(bool second_copy) : second_copy_(second_copy) {}
Keepsake::~Keepsake() = default;

void Keepsake::adopt(std::shared_ptr<KeptMemory> memory) {
  memory_ = std::move(memory);
  step_.reset();
}

void Keepsake::settle(const Communicator& left) {
  step_.reset();
  // Who has come does not write any more.
  left.barrier("the ranks that are left to leave their sessions");
  const std::int64_t mine = memory_ ? memory_->step().value_or(-1) : -1;
  const auto steps = left.all_gather(mine);
  const auto most = std::ranges::max_element(steps);
  if (*most < 0) return;
  source_ = static_cast<int>(most - steps.begin());
  if (left.rank() == source_) memory_->go_back();
  // Nobody may ask again before that is done.
  left.barrier("the values in memory to be those of one step");
  step_ = *most;
}

}  // namespace lockstep
