#include "planted.hpp"

namespace lockstep::test {

const std::vector<std::string> planted_faults = {};

}  // namespace lockstep::test
