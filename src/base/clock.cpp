#include <thread>

#include <lockstep/base/clock.hpp>

namespace lockstep {

Seconds SystemClock::now() const {
  return std::chrono::steady_clock::now().time_since_epoch();
}

double SystemClock::wall_seconds() const {
  return Seconds(std::chrono::system_clock::now().time_since_epoch()).count();
}

void SystemClock::sleep(Seconds duration) {
  std::this_thread::sleep_for(duration);
}

}  // namespace lockstep
