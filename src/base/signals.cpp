#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include <signal.h>
#include <sys/auxv.h>
#include <unistd.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/signals.hpp>

namespace lockstep {
namespace {

// Signal handlers have no argument of their own: this is the one place for process-wide state.
std::atomic<int> first_signal{0};
std::atomic<int> interrupts{0};
std::atomic<bool> installed{false};
static_assert(std::atomic<int>::is_always_lock_free, "a handler may only touch lock-free atomics");

struct sigaction previous[NSIG];

extern "C" void lockstep_on_signal(int signal) {
  int none = 0;
  first_signal.compare_exchange_strong(none, signal);
  if (signal == SIGINT && ++interrupts > 1) _exit(128 + SIGINT);
}

/// Gives the calling thread a stack of its own for signal handlers, for the rest of the process's life.
///
/// Jobs that were stopped by a signal inside a product of oneDNN's generated kernels died of an overwritten
/// heap, 2 of 20; with a stack of its own for the handler, none of 55 did. It looks as if these kernels let
/// the stack pointer point into memory from malloc, where the system then stores the registers of the
/// interrupted code.
void use_signal_stack() {
  stack_t present{};
  if (sigaltstack(nullptr, &present) != 0 || (present.ss_flags & SS_DISABLE) == 0) return;  // there is one
  constexpr std::size_t kForHandlers = std::size_t{64} << 10;
  const std::size_t bytes = kForHandlers + getauxval(AT_MINSIGSTKSZ);
  static std::unique_ptr<std::byte[]> memory;
  if (memory) return;
  memory = std::make_unique<std::byte[]>(bytes);
  stack_t stack{};
  stack.ss_sp = memory.get();
  stack.ss_size = bytes;
  sigaltstack(&stack, nullptr);
}

}  // namespace

std::string signal_name(int signal) {
  const char* name = sigabbrev_np(signal);
  return name == nullptr ? "signal " + std::to_string(signal) : std::string("SIG") + name;
}

ProcessSignals::ProcessSignals(std::vector<int> signals) : signals_(std::move(signals)) {
  if (installed.exchange(true)) throw InternalError("two ProcessSignals at once");
  first_signal = 0;
  interrupts = 0;
  struct sigaction action {};
  action.sa_handler = lockstep_on_signal;
  sigemptyset(&action.sa_mask);
  use_signal_stack();
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  for (const int signal : signals_) sigaction(signal, &action, &previous[signal]);
}

ProcessSignals::~ProcessSignals() {
  for (const int signal : signals_) sigaction(signal, &previous[signal], nullptr);
  installed = false;
}

std::optional<int> ProcessSignals::received() const noexcept {
  const int signal = first_signal.load(std::memory_order_relaxed);
  return signal == 0 ? std::nullopt : std::optional(signal);
}

std::vector<int> ProcessSignals::stop_signals() {
  return {SIGTERM, SIGUSR1, SIGUSR2, SIGINT};
}

}  // namespace lockstep
