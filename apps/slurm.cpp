#include "slurm.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>
#include <unistd.h>

#include <lockstep/base/error.hpp>

namespace lockstep {
namespace {

std::optional<std::string_view> variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string_view>(value);
}

std::optional<std::int64_t> number(const char* name) {
  const auto text = variable(name);
  std::int64_t value = 0;
  if (!text) return std::nullopt;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size()) return std::nullopt;
  return value;
}

/// How many tasks srun started with this one; nullopt when it did not start it.
std::optional<std::int64_t> tasks_of_step() {
  if (!variable("SLURM_STEP_ID") || !variable("SLURM_PROCID")) return std::nullopt;
  const auto tasks = number("SLURM_STEP_NUM_TASKS");
  return tasks ? tasks : number("SLURM_NTASKS");
}

[[noreturn]] void refuse(std::int64_t tasks) {
  throw EnvironmentError(
      fmt::format("this is one of {} processes that do not know of each other, so each would train alone and "
                  "believe that "
                  "it is the chief; start them with `srun --mpi=pmix` (`srun --mpi=list` shows what Slurm "
                  "has), or with the "
                  "mpirun of the MPI library that the program was built with",
                  tasks));
}

}  // namespace

std::optional<double> allocation_end() {
  const auto end = number("SLURM_JOB_END_TIME");
  return end && *end > 0 ? std::optional(static_cast<double>(*end)) : std::nullopt;
}

void refuse_untold_tasks() {
  const auto tasks = tasks_of_step();
  if (!tasks || *tasks < 2) return;
  if (const auto type = variable("SLURM_MPI_TYPE"); type && *type != "none") return;
  constexpr std::array<std::string_view, 5> kLaunchers = {"PMI", "OMPI_COMM_WORLD_", "MPI_LOCAL", "MV2_COMM_",
                                                          "PALS_"};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view name(*entry);
    if (std::ranges::any_of(kLaunchers, [&](std::string_view start) { return name.starts_with(start); }))
      return;
  }
  refuse(*tasks);
}

void refuse_singletons(const Communicator& world) {
  if (world.size() > 1) return;
  // What the launcher says comes first: mpirun may well start one rank in a step or allocation of many tasks.
  auto started = number("OMPI_COMM_WORLD_SIZE");
  if (!started) started = number("PMI_SIZE");
  if (!started) started = tasks_of_step();
  if (started && *started > 1) refuse(*started);
}

bool speaks_for_tasks() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const auto rank = number(name)) return *rank == 0;
  }
  return true;
}

void warn_of_unused_tasks(const Communicator& world, const Log& log) {
  const auto tasks = number("SLURM_NTASKS");
  if (!tasks || *tasks <= world.size() || !world.is_chief()) return;
  log.warn(fmt::format("Slurm has given {} tasks to this job, and {} rank{}: the others idle", *tasks,
                       world.size(), world.size() == 1 ? " runs" : "s run"));
}

}  // namespace lockstep
