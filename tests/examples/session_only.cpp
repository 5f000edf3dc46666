#include <lockstep/lockstep.hpp>
using namespace lockstep;

// A simulation with its own arrays and its own MPI: restart, saves, stop and summaries come from the session.
int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  {
    std::vector<double> temperature(1000, 20.0);
    State state;
    state.attach("temperature", temperature, {1000});
    MonitoredTrainingSession session{from_mpi(MPI_COMM_WORLD), state, {
        .checkpoint_dir = "runs/session_only",
        .hooks = {std::make_shared<StopAtStepHook>(std::nullopt, 50)},
        .save_checkpoint_steps = 20,
        .config = {.log = Log::standard("")}}};
    session.train([&](StepContext&) {
      for (double& t : temperature) t *= 0.99;
      return StepValues{{"mean", temperature.front()}};
    });
  }
  MPI_Finalize();
}
