#include <bit>

#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/interop.hpp>

#include "../mpi/counting_transport.hpp"
#include "session_support.hpp"

namespace lockstep {
namespace {

using test::Count;
using test::CountingTransport;

/// What a rank starts in ten steps of a session with all default hooks and a timer in seconds.
Count messages_of_ten_steps(ReductionKind kind, int per_node, const MonitoredTrainingSession::Step& step) {
  const auto count = std::make_shared<Count>();
  const Communicator world(std::make_shared<CountingTransport>(from_mpi(MPI_COMM_WORLD), count));
  const test::SharedFolder folder(world);
  test::Rank rank(world);
  auto options = rank.options(folder.path);
  options.config.reduction = kind;
  options.config.ranks_per_node = per_node;
  options.save_checkpoint_secs = 3;
  options.save_checkpoint_steps = 4;
  options.save_summaries_steps = 2;
  options.log_step_count_steps = 3;
  options.hooks = {std::make_shared<NanTensorHook>(), std::make_shared<StopAtStepHook>(std::nullopt, 11)};
  MonitoredTrainingSession session(world, rank.state, options);
  session.run(step);
  const Count before = *count;
  for (int i = 0; i < 10; ++i) {
    rank.clock->advance(Seconds{1});
    session.run(step);
  }
  const Count after = *count;
  session.close();
  return {
      after.sends - before.sends,     after.receives - before.receives, after.broadcasts - before.broadcasts,
      after.gathers - before.gathers, after.sums - before.sums,         after.ballots - before.ballots};
}

}  // namespace

TEST_CASE("inside a node steps send no message at all, with gradients or without") {
  CHECK(messages_of_ten_steps(ReductionKind::canonical, 0, test::gradient_step) == Count{});
  CHECK(messages_of_ten_steps(ReductionKind::canonical, 0, test::plain_step) == Count{});
}

TEST_CASE("between nodes the ballot rides on the gradients, and takes the same way alone") {
  const auto world = from_mpi(MPI_COMM_WORLD);  // a node each
  const int ranks = world.size();
  // So small a model goes in rounds: neighbours swap all they have, then pairs of neighbours. Some give all
  // to a neighbour first, where ranks are no power of two.
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks)));
  const bool paired = world.rank() < 2 * (ranks - power);
  const int rounds = std::bit_width(static_cast<unsigned>(power)) - 1;
  const int each = !paired ? rounds : world.rank() % 2 == 1 ? rounds + 1 : 1;
  const Count expected{.sends = 10 * each, .receives = 10 * each};
  CHECK(messages_of_ten_steps(ReductionKind::canonical, 1, test::gradient_step) == expected);
  CHECK(messages_of_ten_steps(ReductionKind::canonical, 1, test::plain_step) == expected);
}

TEST_CASE("with MPI's reduction a step is one sum and one ballot, or a ballot alone") {
  const Count both{.sums = 10, .ballots = 10};
  CHECK(messages_of_ten_steps(ReductionKind::mpi, 0, test::gradient_step) == both);
  CHECK(messages_of_ten_steps(ReductionKind::mpi, 0, test::plain_step) == Count{.ballots = 10});
}

}  // namespace lockstep
