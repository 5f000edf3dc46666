#pragma once

#include <lockstep/base/log.hpp>
#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// Prints which rank may use which cores of which node, as the kernel says; and warns where ranks, or the
/// `threads` of each, share cores or are not bound to any. Collective: a gather of texts
/// inside nodes, and what is wrong there folded over all. The chief speaks.
void report_placement(const Communicator& world, const Log& log, int threads);

}  // namespace lockstep
