// The floor under every start: MPI_Init, one sum of as many floats as a small network has, MPI_Finalize.
#include <chrono>
#include <cstdio>
#include <vector>

#include <mpi.h>

int main(int argc, char** argv) {
  const auto start = std::chrono::steady_clock::now();
  MPI_Init(&argc, &argv);
  std::vector<float> gradients(24'000, 1.0F);
  MPI_Allreduce(MPI_IN_PLACE, gradients.data(), static_cast<int>(gradients.size()), MPI_FLOAT, MPI_SUM,
                MPI_COMM_WORLD);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0) std::printf("first %.4f\n", passed.count());
  MPI_Finalize();
}
