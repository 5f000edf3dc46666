#include "launch.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/checkpoint/lock.hpp>
#include <lockstep/checkpoint/status_file.hpp>
#include <lockstep/checkpoint/trailer.hpp>
#include <lockstep/hooks/end_of_input.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/session/aborted_error.hpp>
#include <lockstep/session/coordinator.hpp>
#include <lockstep/session/monitored_training_session.hpp>

#include "machine.hpp"

namespace lockstep::test {
namespace {

constexpr std::int64_t kLastStep = 6;
constexpr std::int64_t kMicroBatches = 4;
constexpr std::size_t kElements = 20;  // more than a cache line, so that two ranks have parts
constexpr double kHangLimit = 20;      // seconds
constexpr double kGrace = 5;
constexpr double kTakeOver = 100;  // twice the 30 s without a heartbeat of another host, and some work
constexpr double kNoticed = 0.5;   // a dead rank ends its neighbours within this
constexpr double kForEver = 1e9;
constexpr double kRunLimit = 3;  // seconds until the time limit, where it is to be met in some step
constexpr int kMaxLaunches = 8;
constexpr long kEndless = 300'000;  // turns

struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Sums of these depend on their order.
float gradient(std::int64_t step, std::int64_t micro_batch, std::size_t i) {
  const auto mixed = static_cast<std::uint32_t>(
      (step * 131 + micro_batch * 31 + static_cast<std::int64_t>(i)) * 2654435761U);
  return std::ldexp(static_cast<float>(mixed >> 8), -static_cast<int>(mixed % 23) - 20) - 0.01F;
}

/// What one rank trains.
struct Model {
  Model() {
    state.parameter("w", {kElements});
    state.slot("velocity");
    state.attach("counter", std::span(counter), {2});
    state.setting("model", "simulated");
  }

  StepValues step(StepContext& context, bool spoil) {
    const auto owned = context.micro_batches();
    for (auto m = owned.first; m < owned.last; ++m) {
      const auto gradients = context.begin_micro_batch();
      std::ranges::fill(gradients, 0.0F);
      for (std::size_t i = 0; i < kElements; ++i) gradients[i] = gradient(context.number(), m, i);
      if (spoil) gradients[0] = std::numeric_limits<float>::quiet_NaN();
      context.end_micro_batch();
    }
    if (spoil) context.say_not_finite();
    context.reduce_micro_batches();
    if (!context.shares_parameters()) context.finish();
    const auto sum = context.sum();
    const auto parameters = context.state().parameters();
    const auto velocity = context.state().slot_values("velocity");
    const ElementRange mine = context.slice();
    for (std::size_t i = mine.first; i < std::min(mine.last, kElements); ++i) {
      velocity[i] = 0.9F * velocity[i] + sum[i];
      parameters[i] -= 0.1F * velocity[i];
    }
    if (context.shares_parameters()) context.finish();
    counter[0] += context.number();
    return {{"loss", 0.5}};
  }

  std::vector<std::int64_t> counter = {0, 0};
  State state;
};

/// What a run that nothing disturbs comes to, after each step.
struct Expected {
  std::vector<Digest> states;
  std::vector<Digest> parameters;
  std::vector<Digest> images;
};

enum class Fault {
  none,
  kill,        // one rank
  kill_all,    // and the launcher
  power_cut,   // of the whole system
  hang,        // one rank
  failing_io,  // for some operations, or from then on
  signal,      // to one rank
  exception,   // in a step of one rank
  not_finite,  // a gradient of one rank
  time_limit,
};

/// What one rank does or meets of itself, and the others must learn.
enum class Deed {
  signal,         // it gets one
  out_of_time,    // the chief finds the time limit near
  save,           // it asks for a checkpoint
  thread_ends,    // a thread of it has no more input
  thread_aborts,  // was lost, and can be made anew
  thread_fails,
  ask,    // it asks to stop
  end,    // its input ends
  abort,  // AbortedError
  fail,   // any other exception
  leave,  // it closes the session
};

/// Where in a step.
enum class Place { before_steps, without_hooks, before_run, in_step, reduced, after_run, after_steps, end };

constexpr std::array<const char*, 11> kDeeds = {"gets a signal",
                                                "is out of time",
                                                "asks for a checkpoint",
                                                "has a thread that ends",
                                                "has lost a thread",
                                                "has a thread that fails",
                                                "asks to stop",
                                                "has no more input",
                                                "aborts",
                                                "fails",
                                                "leaves"};
constexpr std::array<const char*, 8> kPlaces = {"before the steps",
                                                "in the step without hooks",
                                                "in before_run",
                                                "in the step",
                                                "in the step, after it reduced",
                                                "in after_run",
                                                "after the steps",
                                                "in end"};

struct Act {
  Deed deed = Deed::signal;
  Place place = Place::before_run;
  int rank = 0;
  std::int64_t step = 0;
  bool done = false;
};

/// What is to go wrong in one launch. Drawn from the seed.
struct Plan {
  int ranks = 1;
  int ranks_per_node = 0;
  std::string host;
  Fault fault = Fault::none;
  int victim = 0;
  long at_turn = 0;
  std::int64_t at_step = -1;
  double seconds = 0;   // of a hang
  bool noticed = true;  // neighbours hear of a dead rank; else the limit of waits ends them
  bool deferred = false;
  bool shares = false;  // ranks of a node share parameters,
  bool shards = false;  // and each keeps its part of the slots

  std::vector<Act> acts;            // many of them in one step
  bool in_step_fn = false;          // steps are run by a step function,
  int steps_without_hooks = 0;      // which runs one without hooks in each n-th step,
  bool twice = false;               // and two with hooks
  std::int64_t gather_every = 0;    // a hook gathers: in each n-th step; 0: none does
  bool gathers_before_acts = true;  // the place of that hook
};

class Listener final : public Log::Sink {
 public:
  Listener(Machine& machine, Process& process, std::function<void()> made_again)
      : machine_(machine), process_(process), made_again_(std::move(made_again)) {}
  void write(LogLevel level, std::string_view message) override {
    if (!process_.alive) return;
    machine_.note(fmt::format("{}{}", level == LogLevel::info ? "log: " : "LOG: ", message));
    if (message.starts_with("saved checkpoint")) {
      const auto at = message.find("(step ");
      const long step = std::strtol(message.data() + at + 6, nullptr, 10);
      machine_.acknowledged = std::max<std::int64_t>(machine_.acknowledged, step);
      machine_.check_disk("acknowledge", std::to_string(step));
      machine_.check_owner(process_, "acknowledge", std::to_string(step));
    }
    if (level == LogLevel::error) last_error = message;
    if (message.starts_with("what hooks gathered")) ++left_out;
    if (message.ends_with("is made again from the newest checkpoint")) made_again_();
  }
  std::string last_error;
  int left_out = 0;  ///< times that what hooks gathered was, since a rank had ended before it was asked

 private:
  Machine& machine_;
  Process& process_;
  std::function<void()> made_again_;
};

/// Looks at what every rank has after a restore, and where it stops.
class Watcher final : public SessionRunHook {
 public:
  Watcher(Machine& machine, Process& process, const Expected& expected, std::vector<std::int64_t>& begun,
          std::size_t& making, std::int64_t& newest_step, bool shards)
      : machine_(machine),
        process_(process),
        expected_(expected),
        begun_(begun),
        making_(making),
        newest_step_(newest_step),
        shards_(shards) {}
  std::string_view name() const override { return "watcher"; }
  void after_create_session(RunContext& context) override {
    if (!process_.alive) return;
    const std::int64_t step = context.global_step();
    if (!std::exchange(created_, true)) begun_.push_back(step);
    making_ -= making_ > 0 ? 1 : 0;
    newest_step_ = std::max(newest_step_, step);
    check(context, "begins");
    if (step < machine_.acknowledged) {
      machine_.broken(fmt::format("R1, R4: it begins at step {} although step {} was acknowledged", step,
                                  machine_.acknowledged));
    }
  }
  void after_run(RunContext& context, const RunValues&) override {
    if (!process_.alive) return;
    newest_step_ = std::max(newest_step_, context.global_step());
    check(context, "has made a step");
  }
  void end(RunContext&) override { ++ends; }
  void on_error(RunContext&, const std::exception&) override { ++errors; }
  int ends = 0;
  int errors = 0;

 private:
  void check(RunContext& context, std::string_view what) {
    const auto step = static_cast<std::size_t>(context.global_step());
    // Of the slots a rank may have its part alone; the checkpoints have all.
    if (step >= expected_.states.size() ||
        (shards_ ? digest_of(std::as_bytes(context.state().parameters())) != expected_.parameters[step]
                 : content_digest(context.state().entries()) != expected_.states[step])) {
      machine_.broken(
          fmt::format("P1, R3: rank {} {} and has other values at step {} than an undisturbed run",
                      process_.rank, what, step));
    }
  }
  Machine& machine_;
  Process& process_;
  const Expected& expected_;
  std::vector<std::int64_t>& begun_;
  std::size_t& making_;
  std::int64_t& newest_step_;
  bool shards_;
  bool created_ = false;
};

/// Sends messages of its own, as ProfilerHook does.
class Gatherer final : public SessionRunHook {
 public:
  Gatherer(Machine& machine, std::int64_t every) : machine_(machine), every_(every) {}
  std::string_view name() const override { return "gatherer"; }
  void after_create_session(RunContext&) override { sent = delivered; }
  void after_run(RunContext& context, const RunValues& values) override {
    const std::int64_t step = values.global_step();
    if (step % every_ != 0) return;
    ++sent;
    context.gather(fmt::format("{} {}", context.rank(), step), [this, step](const auto& texts) {
      ++delivered;
      for (std::size_t rank = 0; rank < texts.size(); ++rank) {
        if (texts[rank] == fmt::format("{} {}", rank, step)) continue;
        machine_.broken(fmt::format("R7: gathered at step {}: '{}' of rank {}", step, texts[rank], rank));
      }
    });
  }
  int sent = 0;
  int delivered = 0;  ///< on the chief

 private:
  Machine& machine_;
  std::int64_t every_;
};

/// What one rank does of itself, at its time.
class Doer final : public SessionRunHook {
 public:
  Doer(Machine& machine, Process& process, std::vector<Act>& acts)
      : machine_(machine), process_(process), acts_(acts) {}
  std::string_view name() const override { return "doer"; }
  void before_run(RunContext& context) override { act(Place::before_run, context.global_step()); }
  void after_run(RunContext&, const RunValues& values) override {
    act(Place::after_run, values.global_step() - 1);
  }
  void end(RunContext& context) override { act(Place::end, context.global_step()); }

  void use(MonitoredSession& session) { session_ = &session; }

  /// Returns whether this rank leaves.
  bool act(Place place, std::int64_t step, StepFnContext* step_fn = nullptr) {
    for (Act& mine : acts_) {
      if (mine.done || mine.rank != process_.rank || mine.place != place || mine.step != step) continue;
      mine.done = true;
      machine_.note(fmt::format("rank {} {} {} of step {}", mine.rank,
                                kDeeds[static_cast<std::size_t>(mine.deed)],
                                kPlaces[static_cast<std::size_t>(place)], step));
      switch (mine.deed) {
        case Deed::signal:
          process_.signal = static_cast<int>(1 + machine_.draw.below(30));
          break;
        case Deed::out_of_time:
          machine_.time += 2 * kRunLimit;  // the chief's clock may be a slow one
          break;
        case Deed::save:
          session_->save_now();
          break;
        case Deed::thread_ends:
          stop_by_thread(EndOfInput("the input of a thread ended"));
          break;
        case Deed::thread_aborts:
          stop_by_thread(AbortedError("a thread was lost"));
          break;
        case Deed::thread_fails:
          stop_by_thread(UserError("of a thread"));
          break;
        case Deed::ask:
          if (step_fn != nullptr) step_fn->request_stop("it has seen enough");
          session_->request_stop("it has seen enough");
          break;
        case Deed::end:
          throw EndOfInput("no more input");
        case Deed::abort:
          throw AbortedError("lost for now");
        case Deed::fail:
          throw UserError("of the user");
        case Deed::leave:
          return true;
      }
    }
    return false;
  }

 private:
  template <class Thrown>
  void stop_by_thread(const Thrown& thrown) {
    session_->coordinator().request_stop(std::make_exception_ptr(thrown), "loader");
  }
  Machine& machine_;
  Process& process_;
  std::vector<Act>& acts_;
  MonitoredSession* session_ = nullptr;
};

class Run {
 public:
  Run(std::uint64_t seed, bool verbose, const Expected& expected)
      : machine_(seed, verbose), expected_(expected) {
    machine_.step_of = [this](const std::vector<std::byte>& data) { return step_of(data); };
    machine_.stale_listings = draw().chance(0.3);
    max_to_keep_ = static_cast<int>(draw().below(4));
    every_ = 1 + static_cast<std::int64_t>(draw().below(3));
  }

  Outcome play() {
    for (outcome_.launches = 0; outcome_.launches < kMaxLaunches && !done_ && machine_.problem.empty();) {
      ++outcome_.launches;
      const bool last = outcome_.launches == kMaxLaunches;
      launch(draw_plan(last));
    }
    if (machine_.problem.empty() && !done_) machine_.broken("an undisturbed launch did not come to the end");
    outcome_.problem = machine_.problem;
    outcome_.trace = draw().bits();
    return outcome_;
  }

 private:
  Draw& draw() { return machine_.draw; }

  std::int64_t step_of(const std::vector<std::byte>& data) {
    class Bytes final : public ReadableFile {
     public:
      explicit Bytes(const std::vector<std::byte>& bytes) : bytes_(bytes) {}
      std::uint64_t size() const override { return bytes_.size(); }
      std::size_t read(std::uint64_t offset, std::span<std::byte> into) override {
        const std::size_t count = offset >= bytes_.size() ? 0 : std::min(into.size(), bytes_.size() - offset);
        std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), count, into.begin());
        return count;
      }

     private:
      const std::vector<std::byte>& bytes_;
    };
    try {
      Bytes file(data);
      const VerifiedImage whole = read_verified(file, "", 1 << 20);
      const auto step = static_cast<std::size_t>(whole.trailer.step);
      if (step >= expected_.images.size() || digest_of(whole.image()) != expected_.images[step]) {
        machine_.broken(fmt::format("R3: a checkpoint of step {} that verifies has other content", step));
        return -1;
      }
      return whole.trailer.step;
    } catch (const Error&) {
      return -1;
    }
  }

  Plan draw_plan(bool undisturbed) {
    Plan plan;
    plan.ranks = 1 + static_cast<int>(draw().below(4));
    plan.ranks_per_node = static_cast<int>(draw().below(3));
    host_ = draw().chance(machine_.stale_listings ? 0.2 : 0.5) ? host_ : host_ == "north" ? "south" : "north";
    plan.host = host_;
    plan.deferred = draw().chance(0.5);
    plan.shares = draw().chance(0.4);
    plan.shards = plan.shares && draw().chance(0.6);
    if (undisturbed) return plan;
    plan.fault = static_cast<Fault>(draw().below(static_cast<std::uint64_t>(Fault::time_limit) + 1));
    // With an old listing and a state file that could not be written nobody could know of the newest
    // checkpoint.
    if (plan.fault == Fault::failing_io && machine_.stale_listings) plan.fault = Fault::kill;
    plan.victim = static_cast<int>(draw().below(static_cast<std::uint64_t>(plan.ranks)));
    if (plan.victim != 0 && draw().chance(0.3)) plan.victim = 0;
    plan.at_turn = 1 + static_cast<long>(draw().below(static_cast<std::uint64_t>(longest_ + longest_ / 4)));
    plan.at_step = static_cast<std::int64_t>(draw().below(kLastStep));
    // Nobody would notice a lone rank that stands still for ever.
    plan.seconds = plan.ranks == 1 || draw().chance(0.5) ? draw().uniform(0, 2) : kForEver;
    plan.noticed = draw().chance(0.8);
    plan.in_step_fn = draw().chance(0.4);
    if (draw().chance(0.4)) plan.gather_every = 1 + static_cast<std::int64_t>(draw().below(3));
    plan.gathers_before_acts = draw().chance(0.5);
    if (draw().chance(0.4)) draw_acts(plan);
    return plan;
  }

  /// What several ranks do, most of it in the same step.
  void draw_acts(Plan& plan) {
    if (draw().chance(0.5)) plan.steps_without_hooks = 1 + static_cast<int>(draw().below(3));
    plan.twice = draw().chance(0.3);
    const auto count = 1 + draw().below(4);
    for (std::uint64_t i = 0; i < count; ++i) {
      Act act;
      act.deed = static_cast<Deed>(draw().below(static_cast<std::uint64_t>(Deed::leave) + 1));
      act.place = static_cast<Place>(draw().below(static_cast<std::uint64_t>(Place::end) + 1));
      act.rank = static_cast<int>(draw().below(static_cast<std::uint64_t>(plan.ranks)));
      act.step = plan.at_step + (draw().chance(0.3) ? 1 : 0);
      const bool throws = act.deed == Deed::end || act.deed == Deed::abort || act.deed == Deed::fail;
      // An exception between steps is the program's own where no step function runs them.
      const bool between = act.place == Place::before_steps || act.place == Place::after_steps;
      if (between && throws && !plan.in_step_fn) act.place = Place::after_run;
      if (act.deed == Deed::leave) {
        // Rare: it ends the run.
        if (draw().chance(0.8)) act.deed = Deed::end;
        act.place = act.deed == Deed::leave && !plan.in_step_fn ? Place::before_steps : Place::after_run;
        if (act.deed == Deed::leave && plan.in_step_fn) continue;
      }
      // Of the end of hooks only failures have a meaning.
      if (act.place == Place::end && act.deed != Deed::fail) act.place = Place::after_run;
      if (act.deed == Deed::out_of_time) act.rank = 0;
      plan.acts.push_back(act);
    }
    // What throws leaves the place.
    std::ranges::stable_sort(plan.acts, {}, &Act::deed);
  }

  bool did(const Plan& plan, Deed deed) const {
    return std::ranges::any_of(plan.acts, [&](const Act& act) { return act.done && act.deed == deed; });
  }
  bool plans(const Plan& plan, Deed deed) const {
    return std::ranges::any_of(plan.acts, [&](const Act& act) { return act.deed == deed; });
  }

  void launch(Plan plan) {
    machine_.note(fmt::format("---- launch {}: {} ranks on {}, fault {}, victim {}, turn {}, step {}",
                              outcome_.launches, plan.ranks, plan.host, static_cast<int>(plan.fault),
                              plan.victim, plan.at_turn, plan.at_step));
    processes_.clear();
    turns_ = 0;
    struck_ = false;
    lost_at_ = -1;
    begun_.clear();
    making_ = 0;
    newest_step_ = 0;
    ended_.assign(static_cast<std::size_t>(plan.ranks), -1);
    causes_.assign(static_cast<std::size_t>(plan.ranks), "");
    for (int rank = 0; rank < plan.ranks; ++rank) {
      Process& process = machine_.start_process(plan.host, rank);
      process.skew = draw().uniform(-7200, 7200);
      process.drift = draw().uniform(-1e-3, 1e-3);
      processes_.push_back(&process);
    }
    Process& chief = *processes_.front();
    const bool by_operation = draw().chance(0.5);
    if ((plan.fault == Fault::kill || plan.fault == Fault::kill_all || plan.fault == Fault::power_cut) &&
        by_operation) {
      chief.die_at = 1 + static_cast<long>(draw().below(static_cast<std::uint64_t>(most_operations_) + 4));
    }
    if (plan.fault == Fault::failing_io) {
      chief.fail_from = 1 + static_cast<long>(draw().below(static_cast<std::uint64_t>(most_operations_) + 4));
      chief.fail_until =
          draw().chance(0.3) ? 1 << 30 : chief.fail_from + 1 + static_cast<long>(draw().below(12));
      chief.fail_code = draw().chance(0.5) ? ENOSPC : EIO;
    }
    began_ = machine_.time;
    SimulatedWorld world{.ranks = plan.ranks, .seed = draw().bits()};
    world.turn = [&](int rank) { return turn(plan, rank); };
    world.run([&](const Communicator& comm) { run_rank(plan, comm); });
    check_end(plan);
    longest_ = std::max(longest_, turns_);
    most_operations_ = std::max(most_operations_, chief.operations);
    bool cut = plan.fault == Fault::power_cut && !chief.alive && chief.exit_code == 137;
    if (cut) {
      machine_.note("power cut");
      machine_.disk.cut_power(draw());
    }
    if (machine_.newest(machine_.disk.names, false) < machine_.acknowledged) {
      machine_.broken(fmt::format("R1: step {} was acknowledged and is gone", machine_.acknowledged));
    }
    machine_.time += draw().chance(0.5) ? draw().uniform(0, 1) : draw().uniform(0, 200);
    for (Process* process : processes_) process->alive = false;
  }

  Turn turn(const Plan& plan, int rank) {
    if (++turns_ == kEndless) {
      machine_.broken(fmt::format("R5: it does not end; {:.1f} s after its start some rank still waits",
                                  machine_.time - began_));
      for (Process* other : processes_) other->die(137);
    }
    Process& process = *processes_[static_cast<std::size_t>(rank)];
    // Where somebody is missing, waiting is all that happens.
    machine_.time += lost_at_ >= 0 ? 0.02 : draw().chance(0.002) ? 0.05 : 1e-6;
    // MPI itself waits without a limit where it makes communicators and shared memory, which a session does
    // before it begins, and begins anew.
    const bool being_made = begun_.size() < processes_.size() || making_ > 0;
    const bool too_early = plan.fault == Fault::hang && plan.seconds == kForEver && being_made;
    if (!struck_ && turns_ >= plan.at_turn && !too_early) strike(plan);
    if (lost_at_ < 0) {
      const auto dead =
          std::ranges::find_if(processes_, [](const Process* p) { return p->exit_code == 137; });
      if (dead != processes_.end()) {
        lost_at_ = machine_.time;
        noticed_ = plan.noticed || being_made;
        const bool all = plan.fault == Fault::kill_all || plan.fault == Fault::power_cut;
        for (Process* other : processes_) {
          if (all) other->die(137);
          // A thread of each process watches the others.
          else if (noticed_)
            other->asleep_until = std::min(other->asleep_until, machine_.time);
        }
        noticed_at_ = machine_.time + draw().uniform(0, kNoticed);
      }
    }
    if (lost_at_ >= 0 && noticed_ && machine_.time >= noticed_at_) {
      for (Process* other : processes_) {
        if (other->exit_code != 137) other->die(75);
      }
    }
    if (!process.alive) return Turn::lose;
    const auto alive = std::ranges::count_if(processes_, [](const Process* p) { return p->alive; });
    // A rank that hangs after all others have ended well: the launcher's time is over some day.
    if (alive == 1 && process.asleep_until >= kForEver) process.die(137);
    if (!process.alive) return Turn::lose;
    if (process.asleep_until > machine_.time) {
      // Time passes for the others all the same.
      if (lost_at_ < 0) lost_at_ = -2;
      machine_.time += 0.02;
      return Turn::wait;
    }
    if (draw().chance(0.1)) run_beside(process);
    return process.alive ? Turn::go_on : Turn::lose;
  }

  void strike(const Plan& plan) {
    struck_ = true;
    struck_step_ = newest_step_;
    Process& victim = *processes_[static_cast<std::size_t>(plan.victim)];
    switch (plan.fault) {
      case Fault::kill:
      case Fault::kill_all:
      case Fault::power_cut:
        if (processes_.front()->die_at == 0) victim.die(137);
        break;
      case Fault::hang:
        machine_.note(fmt::format("rank {} stands still for {:.3g} s", plan.victim, plan.seconds));
        victim.asleep_until = machine_.time + plan.seconds;
        break;
      case Fault::signal:
        machine_.note(fmt::format("a signal to rank {}", plan.victim));
        victim.signal = static_cast<int>(1 + draw().below(30));
        break;
      default:
        break;
    }
  }

  MonitoredTrainingSessionOptions options(const Plan& plan, Process& process, Model& model,
                                          const std::shared_ptr<Listener>& listener,
                                          std::vector<std::shared_ptr<SessionRunHook>> hooks) {
    MonitoredTrainingSessionOptions options;
    options.checkpoint_dir = "run";
    options.scaffold.init_fn = [&model](State& fresh) {
      std::ranges::fill(fresh.parameters().first(kElements), 1.0F);
      std::ranges::fill(model.counter, 0);
    };
    options.scaffold.saver.max_to_keep = max_to_keep_;
    options.hooks = {std::make_shared<StopAtStepHook>(std::nullopt, kLastStep),
                     std::make_shared<NanTensorHook>()};
    options.hooks.insert(options.hooks.end(), hooks.begin(), hooks.end());
    options.save_checkpoint_secs = 0.02;
    options.save_checkpoint_steps = every_;
    options.save_summaries_steps = std::nullopt;
    options.save_summaries_secs = std::nullopt;
    options.log_step_count_steps = std::nullopt;
    options.max_wait_secs = kHangLimit;
    options.stop_grace_period_secs = kGrace;
    SessionConfig& config = options.config;
    config.micro_batches = kMicroBatches;
    config.ranks_per_node = plan.ranks_per_node;
    config.share_parameters = plan.shares;
    config.shard_optimizer = plan.shards;
    if (plan.fault == Fault::time_limit)
      config.max_run_secs = 0.003;
    else if (plans(plan, Deed::out_of_time))
      config.max_run_secs = kRunLimit;
    config.files = make_files(process);
    config.clock = make_clock(process);
    config.executor = make_executor(process, plan.deferred);
    config.signals = make_signals(process);
    config.process = make_identity(process, "job", outcome_.launches);
    config.log = Log(listener);
    return options;
  }

  /// What a program does on one rank; see run_program.
  void run_rank(Plan& plan, const Communicator& world) {
    Process& process = *processes_[static_cast<std::size_t>(world.rank())];
    const auto listener =
        std::make_shared<Listener>(machine_, process, [this] { making_ = processes_.size(); });
    const auto end = [&](ExitCode code) { process.die(static_cast<int>(code)); };
    try {
      WaitPolicy policy;
      policy.clock = make_clock(process);
      policy.limit = Seconds{kHangLimit};
      policy.log = Log(listener);
      const Communicator comm = world.with_policy(policy);
      Model model;
      const auto watcher =
          std::make_shared<Watcher>(machine_, process, expected_, begun_, making_, newest_step_, plan.shards);
      const auto doer = std::make_shared<Doer>(machine_, process, plan.acts);
      const auto gatherer =
          std::make_shared<Gatherer>(machine_, std::max<std::int64_t>(1, plan.gather_every));
      std::vector<std::shared_ptr<SessionRunHook>> hooks = {watcher, doer};
      if (plan.gather_every > 0) {
        hooks.insert(plan.gathers_before_acts ? hooks.begin() + 1 : hooks.end(), gatherer);
      }
      MonitoredTrainingSession session(comm, model.state, options(plan, process, model, listener, hooks));
      doer->use(session);
      const RawSession::Step step = [&](StepContext& context) {
        const bool mine = plan.victim == world.rank() && context.number() == plan.at_step;
        if (mine && plan.fault == Fault::exception) throw UserError("of the user");
        doer->act(Place::in_step, context.number());
        StepValues values = model.step(context, mine && plan.fault == Fault::not_finite);
        doer->act(Place::reduced, context.number());
        return values;
      };
      const auto step_fn = [&](StepFnContext& context) {
        const std::int64_t number = session.global_step();
        doer->act(Place::before_steps, number, &context);
        if (plan.steps_without_hooks > 0 && number % plan.steps_without_hooks == 0) {
          context.session().run([&](StepContext&) {
            doer->act(Place::without_hooks, number);
            return StepValues{};
          });
        }
        context.run_with_hooks(step);
        if (plan.twice && !session.should_stop()) context.run_with_hooks(step);
        doer->act(Place::after_steps, session.global_step() - 1, &context);
      };
      while (!session.should_stop()) {
        if (plan.in_step_fn) {
          session.run_step_fn(step_fn);
          continue;
        }
        const std::int64_t number = session.global_step();
        if (doer->act(Place::before_steps, number)) break;
        session.run(step);
        doer->act(Place::after_steps, number);
      }
      session.close();
      if (process.alive) {
        ended_[static_cast<std::size_t>(world.rank())] = session.global_step();
        const StopCause& cause = session.stop_cause();
        causes_[static_cast<std::size_t>(world.rank())] = fmt::format(
            "{} by {} on {} at {} ({})", cause.reason, cause.by, cause.rank, cause.step, cause.early);
        if (watcher->ends != 1 || watcher->errors != 0) {
          machine_.broken(fmt::format("R7: rank {} ended well: {} times 'end', {} times 'on_error'",
                                      process.rank, watcher->ends, watcher->errors));
        }
        const int unanswered = gatherer->sent - gatherer->delivered;
        if (world.is_chief() && (unanswered < 0 || unanswered > listener->left_out)) {
          machine_.broken(fmt::format("R7: hooks gathered {} times and got {} answers", gatherer->sent,
                                      gatherer->delivered));
        }
      }
      const bool early = session.stopped_early();
      comm.barrier("all ranks to end");
      if (!process.alive) return;
      end(early ? ExitCode::try_again : ExitCode::done);
    } catch (const DeadlineExceeded& error) {
      if (!process.alive) return;
      listener->write(LogLevel::error, error.what());
      text_ = error.what();
      const bool missing =
          std::ranges::any_of(processes_, [](const Process* p) { return p->exit_code == 137; });
      if (!missing && !(plan.fault == Fault::hang && struck_)) {
        machine_.broken(fmt::format("R5: rank {} waits, and no rank is missing: {}", process.rank, text_));
      }
      for (Process* other : processes_) other->die(75);
    } catch (const Error& error) {
      if (!process.alive) return;
      listener->write(LogLevel::error, error.what());
      end(error.exit_code());
    } catch (const InternalError& error) {
      if (!process.alive) return;
      machine_.broken(fmt::format("a fault of ours on rank {}: {}", process.rank, error.what()));
      end(ExitCode::internal);
    } catch (const std::exception& error) {
      if (!process.alive) return;
      listener->write(LogLevel::error, error.what());
      end(ExitCode::internal);
    }
  }

  void check_end(const Plan& plan) {
    std::string codes;
    for (const Process* process : processes_) codes += fmt::format(" {}", process->exit_code);
    machine_.note(
        fmt::format("ended with{} after {:.3f} s and {} turns", codes, machine_.time - began_, turns_));
    const int code = processes_.front()->exit_code;
    const bool same = std::ranges::all_of(processes_, [&](const Process* p) { return p->exit_code == code; });
    const bool lost = std::ranges::any_of(processes_, [](const Process* p) { return p->exit_code == 137; });
    const bool hung = plan.fault == Fault::hang && struck_;
    // A rank that hangs when all is done may let some leave and not others.
    const bool left = std::ranges::all_of(
        processes_, [](const Process* p) { return p->exit_code == 0 || p->exit_code == 75; });
    if (!same && !lost && !(hung && left)) {
      machine_.broken("R7, R8: ranks end with different codes:" + codes);
    }
    if (!lost) {
      std::vector<int> legal = {0};
      if (plan.fault == Fault::signal || plan.fault == Fault::time_limit) legal = {0, 75};
      if (hung) legal = {0, 75};
      if (plan.fault == Fault::failing_io) legal = {0, 74};
      if (plan.fault == Fault::exception || plan.fault == Fault::not_finite) legal = {0, 70};
      if (did(plan, Deed::signal) || plans(plan, Deed::out_of_time)) legal.push_back(75);
      // A rank that is lost while others close ends the run; the next launch goes on.
      const bool aborted = did(plan, Deed::abort) || did(plan, Deed::thread_aborts);
      if (aborted) legal.push_back(75);
      if (did(plan, Deed::fail) || did(plan, Deed::thread_fails)) legal.push_back(70);
      if (did(plan, Deed::leave)) legal.push_back(78);
      const bool ends_late = std::ranges::any_of(plan.acts, [](const Act& act) {
        return act.done && act.deed == Deed::end && act.place == Place::reduced;
      });
      if (ends_late) legal.push_back(64);
      // What a recovery makes anew may take a failure with it.
      const bool failed = did(plan, Deed::fail) || did(plan, Deed::thread_fails);
      if (failed && !aborted && !hung) std::erase_if(legal, [](int c) { return c == 0 || c == 75; });
      if (std::ranges::find(legal, code) == legal.end()) {
        machine_.broken(fmt::format("R8: it ends with {}, which does not fit the fault", code));
      }
      const bool whole = code == 0 || (code == 75 && !hung);
      for (const std::int64_t step : ended_) {
        if (whole && step != ended_.front()) machine_.broken("R7: ranks stop at different steps");
      }
      for (const std::string& cause : causes_) {
        if (whole && cause != causes_.front()) {
          machine_.broken(fmt::format("R7: ranks stop for '{}' and for '{}'", causes_.front(), cause));
        }
      }
      const bool may_end = did(plan, Deed::end) || did(plan, Deed::ask) || did(plan, Deed::thread_ends) ||
                           did(plan, Deed::leave);
      if (code == 0 && ended_.front() != kLastStep && !may_end) {
        machine_.broken("R8: it says that it is done and is not");
      }
      if (whole && machine_.newest(machine_.disk.durable_names, true) < ended_.front()) {
        machine_.broken(
            fmt::format("R8: it ends at step {} with {} and has not saved it", ended_.front(), code));
      }
      if (code == 0 && ended_.front() == kLastStep) done_ = true;
      for (const Act& act : plan.acts) {
        if (!act.done || act.deed == Deed::save || aborted || !whole || ended_.front() <= act.step + 2)
          continue;
        machine_.broken(fmt::format("R7: rank {} {} at step {}, which is heeded at step {}", act.rank,
                                    kDeeds[static_cast<std::size_t>(act.deed)], act.step, ended_.front()));
      }
      // The step that the rank was in may have been the others' last word; then comes one more.
      if (!begun_.empty()) struck_step_ = std::max(struck_step_, begun_.front());
      if (plan.fault == Fault::signal && struck_ && whole && !aborted && ended_.front() > struck_step_ + 2) {
        machine_.broken(
            fmt::format("R7: a signal at step {} is heeded at step {}", struck_step_, ended_.front()));
      }
      if (!hung && plan.fault != Fault::failing_io && !(aborted && code == 75)) check_what_is_left(code);
    }
    if (!begun_.empty() &&
        std::ranges::any_of(begun_, [&](std::int64_t step) { return step != begun_.front(); })) {
      machine_.broken("R7: ranks begin at different steps");
    }
    // R5. A wait looks at its clock each 256 turns, and a job may wait for its start and then once more.
    const double limit =
        (lost || hung ? 4 * kHangLimit + (plan.seconds < kForEver ? plan.seconds : 0) : 0) + kTakeOver;
    if (machine_.time - began_ > limit) {
      machine_.broken(fmt::format("R5: it took {:.1f} s to end", machine_.time - began_));
    }
    // While a session is made, not every wait knows whom it waits for.
    const bool in_step = text_.starts_with("in step");
    if (hung && plan.seconds == kForEver && in_step && text_.find("rank") == std::string::npos) {
      machine_.broken(fmt::format("R5: nobody names rank {}, which hangs: {}", plan.victim, text_));
    }
    text_.clear();
  }

  /// After a launch that ended in good order.
  void check_what_is_left(int code) {
    const std::string state = code == 0 ? "done" : code == 75 ? "stopped" : "failed";
    const auto status = machine_.disk.names.find(kStatusFileName);
    const std::string_view text =
        status == machine_.disk.names.end() ? std::string_view() : text_of(*status->second);
    if (text.find(fmt::format("\"state\": \"{}\"", state)) == std::string_view::npos) {
      machine_.broken(fmt::format("R8: it ends with {}, and status.json says {}", code, text));
    }
    if (machine_.disk.names.contains(kLockFileName)) machine_.broken("R6: it leaves its lock behind");
  }

  Machine machine_;
  const Expected& expected_;
  Outcome outcome_;
  std::vector<Process*> processes_;
  std::vector<std::int64_t> begun_;
  std::size_t making_ = 0;  ///< ranks that have not made their session anew yet
  std::vector<std::int64_t> ended_;
  std::vector<std::string> causes_;  ///< why each rank stopped
  std::string text_;
  long turns_ = 0;
  long longest_ = 400;
  long most_operations_ = 40;
  bool struck_ = false;
  std::int64_t newest_step_ = 0;
  std::int64_t struck_step_ = 0;
  bool done_ = false;
  std::string host_ = "north";
  double lost_at_ = -1;
  double began_ = 0;
  double noticed_at_ = 0;
  bool noticed_ = false;
  int max_to_keep_ = 0;
  std::int64_t every_ = 1;
};

Expected make_expected() {
  Expected expected;
  SimulatedWorld{.ranks = 1}.run([&](const Communicator& world) {
    Model model;
    MonitoredTrainingSessionOptions options;
    options.scaffold.init_fn = [](State& fresh) {
      std::ranges::fill(fresh.parameters().first(kElements), 1.0F);
    };
    options.config.micro_batches = kMicroBatches;
    options.log_step_count_steps = std::nullopt;
    MonitoredTrainingSession session(world, model.state, options);
    CheckpointImage image(model.state.entries());
    for (std::int64_t step = 0;; ++step) {
      expected.states.push_back(content_digest(model.state.entries()));
      expected.parameters.push_back(digest_of(std::as_bytes(model.state.parameters())));
      image.snapshot();
      expected.images.push_back(digest_of(image.bytes()));
      if (step == kLastStep) break;
      session.run([&](StepContext& context) { return model.step(context, false); });
    }
    session.close();
  });
  return expected;
}

}  // namespace

Outcome simulate(std::uint64_t seed, bool verbose) {
  static const Expected expected = make_expected();
  return Run(seed, verbose, expected).play();
}

}  // namespace lockstep::test
