#include <lockstep/lockstep.hpp>
using namespace lockstep;
int main(int argc, char** argv) {
  Environment mpi(&argc, &argv);
  Communicator world = mpi.world();
  PosixFileSystem files;
  ThreadExecutor threads;
  auto data = load_idx_dataset(files, fashion_mnist_directory(files), Split::train);
  auto kernels = make_kernels();
  Sequential model{{28, 28}};
  model.add(Dense{256, Activation::relu}).add(Dense{10});
  const Adam adam;
  const ConstantRate rate{0.001F};
  BatchPlan batch = batch_plan(256, 64);  // 4 micro-batches of 64 samples: of use to 4 ranks
  State state;
  model.declare(state);
  adam.declare(state);
  MonitoredTrainingSession session{world, state, {
      .checkpoint_dir = "runs/whole_training",
      .scaffold = {.init_fn = [&](State& fresh) { model.initialize(fresh, 1); }},
      .hooks = {std::make_shared<StopAtStepHook>(std::nullopt, 200)},
      .config = {.micro_batches = batch.micro_batches(), .log = Log::standard("")}}};
  Trainer trainer({model, adam, rate, *kernels, data, batch, 1, state, threads}, session);
  session.train([&](StepContext& step) { return trainer.step(step); });
}
