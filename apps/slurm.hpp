#pragma once

#include <optional>

#include <lockstep/base/log.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// When Slurm ends this job (SLURM_JOB_END_TIME), in seconds since 1970; nullopt where nobody says. Local.
std::optional<double> allocation_end();

/// Throws EnvironmentError when srun has started this process as one of several tasks and told no MPI library
/// about the others. Local; before MPI is started, since some libraries end such a process without saying
/// what to do.
void refuse_untold_tasks();

/// Throws EnvironmentError when this process was started as one of several and MPI knows none of the others:
/// each would believe that it is the chief. Local.
void refuse_singletons(const Communicator& world);

/// Of several processes that do not know of each other, the one that speaks. Local.
bool speaks_for_tasks();

/// Warns when Slurm has given more tasks than there are ranks. Local; on the chief.
void warn_of_unused_tasks(const Communicator& world, const Log& log);

}  // namespace lockstep
