#pragma once

#include <chrono>

namespace lockstep {

using Seconds = std::chrono::duration<double>;

/// Seam: time. Intervals and limits use `now`, which never jumps; `wall_seconds` only dates things for people
/// (event files, state file, status) and decides nothing.
class Clock {
 public:
  virtual ~Clock() = default;

  /// Monotonic time since an arbitrary start. Local; any thread.
  virtual Seconds now() const = 0;

  /// Seconds since 1970. Local; any thread.
  virtual double wall_seconds() const = 0;

  virtual void sleep(Seconds duration) = 0;
};

class SystemClock final : public Clock {
 public:
  Seconds now() const override;
  double wall_seconds() const override;
  void sleep(Seconds duration) override;
};

/// A clock that moves only when told. `sleep` moves it.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(Seconds start = Seconds{0}, double wall_start = 1.7e9)
      : now_(start), wall_offset_(wall_start - start.count()) {}

  Seconds now() const override { return now_; }
  double wall_seconds() const override { return now_.count() + wall_offset_; }
  void sleep(Seconds duration) override { advance(duration); }

  void advance(Seconds duration) { now_ += duration; }

 private:
  Seconds now_;
  double wall_offset_;
};

}  // namespace lockstep
