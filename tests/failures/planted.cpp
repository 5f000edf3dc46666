#include <cstdlib>

namespace lockstep::test {

/// The fault of this number is switched on: LOCKSTEP_PLANTED in the environment says which.
bool planted(int number) noexcept;
bool planted(int number) noexcept {
  static const int now = [] {
    const char* const text = std::getenv("LOCKSTEP_PLANTED");
    return text == nullptr ? -1 : std::atoi(text);
  }();
  return number == now;
}

}  // namespace lockstep::test
