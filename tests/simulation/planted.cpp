#include "planted.hpp"

namespace lockstep::test {

bool planted(int number) noexcept;
bool planted(int number) noexcept {
  return number == planted_now;
}

}  // namespace lockstep::test
