#pragma once

#include <stdexcept>

namespace lockstep {

/// Thrown by a step that has no more data, before it reduces. All ranks stop cleanly and drop this step. On
/// one rank or on all. Where the other ranks should go on with what they have, see
/// StepContext::contribute_nothing.
class EndOfInput : public std::runtime_error {
 public:
  EndOfInput() : std::runtime_error("end of input") {}
  using std::runtime_error::runtime_error;
};

}  // namespace lockstep
