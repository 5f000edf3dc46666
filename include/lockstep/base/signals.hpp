#pragma once

#include <optional>
#include <string>
#include <vector>

namespace lockstep {

/// Seam: signals that ask this process to stop soon. A signal only sets a flag; the flag travels in the
/// ballot of the next step, and all ranks act on the tally.
class Signals {
 public:
  virtual ~Signals() = default;

  /// The first signal seen since the start, or nullopt. Local; costs one load.
  virtual std::optional<int> received() const noexcept = 0;
};

/// "SIGTERM".
std::string signal_name(int signal);

class NoSignals final : public Signals {
 public:
  std::optional<int> received() const noexcept override { return std::nullopt; }
};

/// Handlers for the given signals while it lives; the ones that were there before come back after it. A
/// second SIGINT ends the process at once, as a person at a terminal expects. One object at a time.
class ProcessSignals final : public Signals {
 public:
  explicit ProcessSignals(std::vector<int> signals);
  ~ProcessSignals() override;
  ProcessSignals(const ProcessSignals&) = delete;
  ProcessSignals& operator=(const ProcessSignals&) = delete;

  std::optional<int> received() const noexcept override;

  /// SIGTERM, SIGUSR1, SIGUSR2 and SIGINT.
  static std::vector<int> stop_signals();

 private:
  std::vector<int> signals_;
};

class FakeSignals final : public Signals {
 public:
  std::optional<int> received() const noexcept override { return signal_; }
  void raise(int signal) { signal_ = signal; }

 private:
  std::optional<int> signal_;
};

}  // namespace lockstep
