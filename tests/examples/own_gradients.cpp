#include <lockstep/lockstep.hpp>
using namespace lockstep;

// Fits y = 3 x + 1: each rank has a point of its own in each step.
int main(int argc, char** argv) {
  Environment mpi(&argc, &argv);
  State state;
  Tensor line = state.parameter("line", {2});  // slope, intercept
  MonitoredTrainingSession session{mpi.world(), state, {
      .checkpoint_dir = "runs/own_gradients",
      .hooks = {std::make_shared<StopAtStepHook>(std::nullopt, 2000)},
      .config = {.log = Log::standard("")}}};
  std::vector<float> gradient(state.parameter_elements());
  session.train([&](StepContext& step) {
    const float x = Random(7, Purpose::test, step.rank()).uniform(step.number());
    const float error = line.values()[0] * x + line.values()[1] - (3 * x + 1);
    line.in(gradient)[0] = error * x;
    line.in(gradient)[1] = error;
    StepValues values{{"loss", error * error}};
    auto sum = step.reduce(gradient, values);  // over all ranks; `values` become means
    for (std::size_t i = 0; i < 2; ++i) line.values()[i] -= 0.2F / step.ranks() * sum[line.offset() + i];
    return values;
  });
}
