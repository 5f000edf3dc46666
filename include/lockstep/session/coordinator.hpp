#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <lockstep/base/clock.hpp>

namespace lockstep {

/// Lets threads of one rank stop together and tell what went wrong (tf.train.Coordinator). A value; copies
/// are the same coordinator. Everything is local, and any thread may call it, but `join`, `clear_stop` and
/// `joined`: one thread.
///
/// A session has one, which hooks find in their RunContext: what a thread reports rides with the ballot of
/// the next step, so that all ranks hear of it.
class Coordinator {
 public:
  /// True for exceptions that end a thread without being a failure.
  using IsClean = std::function<bool(const std::exception&)>;

  /// By default EndOfInput is clean.
  explicit Coordinator(std::shared_ptr<Clock> clock = std::make_shared<SystemClock>());
  Coordinator(std::shared_ptr<Clock> clock, IsClean is_clean);

  /// Asks all threads to stop. The first reason holds.
  void request_stop(std::string_view reason = "a thread asked to stop");

  /// The same, for a failure: the first one is kept. `thread` names who reports it. After `join` it is thrown
  /// here instead.
  void request_stop(const std::exception_ptr& failure, std::string_view thread = "");

  bool should_stop() const noexcept;

  /// Returns when a stop is asked for (true) or `limit`, of real time, has passed (false).
  bool wait_for_stop(std::optional<Seconds> limit = std::nullopt) const;

  /// Forgets the stop, the failure and that threads were joined.
  void clear_stop();

  /// Runs `work`; what it throws is reported with request_stop, and not thrown.
  void stop_on_exception(const std::function<void()>& work, std::string_view thread = "");

  /// Throws the failure that was reported, if any.
  void raise_requested_exception() const;
  std::exception_ptr failure() const;  ///< null: none
  std::string failed_thread() const;   ///< who reported it
  std::string reason() const;          ///< of a stop without a failure

  /// A thread that `join` waits for, until it is destroyed or `ended` is called.
  class Registration {
   public:
    Registration() = default;
    void ended() noexcept { alive_.reset(); }

   private:
    friend class Coordinator;
    std::shared_ptr<const std::string> alive_;
  };
  [[nodiscard]] Registration register_thread(const std::string& name);

  std::vector<std::string> live_threads() const;  ///< names

  /// Returns when all threads have ended: waits until they have or a stop is asked for, then for at most
  /// `grace`. Then throws the reported failure; or, if threads live, TrainingError naming them unless
  /// `ignore_live_threads`.
  void join(Seconds grace = Seconds{120}, bool ignore_live_threads = false);
  bool joined() const noexcept;
  Clock& clock() const noexcept;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace lockstep
