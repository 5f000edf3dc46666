// Ranks that are lost at any moment of a run, on simulated ranks: those that are left go on from what they
// have in memory, to the values of a run that nothing disturbed.

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/session/keepsake.hpp>
#include <lockstep/session/monitored_training_session.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kElements = std::size_t{4} * 4096;  // so that each of four ranks has a slice
constexpr std::size_t kBuffers = 40;
constexpr std::int64_t kSteps = 4;
constexpr std::int64_t kMicroBatches = 4;

enum class Place {
  before_run,
  before_micro_batches,
  before_sum,
  before_update,
  in_update,
  after_update,
  after_finish,
  after_run,
  // Of those that come together again; the step is how often they have.
  before_settling,
  after_settling,
  after_values,
  in_creation,  // of the first session of those that came together; the step is how many operations after
                // that
  after_creation,
  nowhere
};

/// Keeps a number that depends on all losses so far, as hooks do that decide by them.
class Remembers final : public SessionRunHook {
 public:
  /// `poll`: where this rank may find out that it has lost another.
  Remembers(bool keeps, std::function<void(Place, std::int64_t)> pass, std::function<void()> poll,
            std::function<void()> created)
      : keeps_(keeps), pass_(std::move(pass)), poll_(std::move(poll)), created_(std::move(created)) {}
  std::string_view name() const override { return "remembers"; }
  void begin(RunContext& context) override {
    if (keeps_) kept_ = context.state().keep("remembers", 1);
  }
  void after_create_session(RunContext&) override { created_(); }
  void before_run(RunContext& context) override { pass_(Place::before_run, context.global_step()); }
  void after_run(RunContext& context, const RunValues& values) override {
    if (keeps_) kept_[0] = 0.5 * kept_[0] + values.values().find("loss").value_or(0);
    poll_();
    pass_(Place::after_run, context.global_step() - 1);
  }

 private:
  bool keeps_;
  std::function<void(Place, std::int64_t)> pass_;
  std::function<void()> poll_;
  std::function<void()> created_;
  std::span<double> kept_;
};

struct Outcome {
  std::string digest;
  std::vector<float> slots = std::vector<float>(kElements);  ///< from whoever has updated them last
  double kept = 0;
  std::vector<std::optional<std::int64_t>> settled;  ///< at each loss
  std::int64_t completed = 0;  ///< the last step that any who was left then had completed
  bool together = false;       ///< more than one was lost at a time
};

/// What happens to one rank of a run.
struct Death {
  int rank = -1;
  Place place = Place::nowhere;
  std::int64_t step = 0;
};

struct Job {
  int ranks = 1;
  bool shares = true;
  bool second_copy = false;
  bool keeps = true;
  int ranks_per_node = 0;
  bool shards = false;
};

/// All ranks but those that die, again and again, until the run is over. Ranks die in the order of `deaths`.
Outcome run(const Job& job, std::uint64_t seed, const std::vector<Death>& deaths) {
  Outcome outcome;
  std::size_t lost = 0;  // deaths so far
  bool over = false;
  std::vector<bool> dead(static_cast<std::size_t>(job.ranks));
  std::vector<std::size_t> knows(static_cast<std::size_t>(job.ranks));
  std::uint64_t draws = seed;
  std::vector<std::int64_t> completed(static_cast<std::size_t>(job.ranks));
  std::int64_t operations = -1;  // of the one that dies in creation
  SimulatedWorld simulated{job.ranks, 0, seed};
  simulated.turn = [&](int rank) {
    const auto i = static_cast<std::size_t>(rank);
    if (operations >= 0 && lost < deaths.size() && deaths[lost].rank == rank &&
        ++operations == deaths[lost].step) {
      dead[i] = true;
      ++lost;
    }
    if (dead[i]) return over ? Turn::lose : Turn::wait;
    if (knows[i] == lost) return Turn::go_on;
    // At one of its next operations.
    draws = draws * 6364136223846793005U + 1442695040888963407U;
    return draws >> 62 == 0 ? Turn::lose : Turn::go_on;
  };
  simulated.run([&](const Communicator& world) {
    const int me = world.rank();
    const auto my = static_cast<std::size_t>(me);
    std::vector<Communicator> worlds = {world};
    for (std::size_t i = 0; i < deaths.size(); ++i) {
      bool gone = false;
      for (std::size_t k = 0; k <= i; ++k) gone |= deaths[k].rank == me;
      worlds.push_back(world.split(gone ? 1 : 0, me));
    }
    const auto pass = [&](Place place, std::int64_t step) {
      if (place == Place::before_run) completed[my] = step;
      if (lost >= deaths.size()) return;
      const Death& next = deaths[lost];
      if (next.rank == me && next.place == Place::in_creation && place == Place::after_values && step == 1) {
        operations = 0;
      }
      if (next.rank != me || next.place != place || next.step != step) return;
      dead[my] = true;
      ++lost;
      world.barrier("what never comes");
    };
    auto keepsake = std::make_shared<Keepsake>(job.second_copy);
    for (std::size_t attempt = 0;;) {
      try {
        const Communicator& comm = worlds[attempt];
        const auto times = static_cast<std::int64_t>(attempt);
        if (attempt > 0) {
          pass(Place::before_settling, times);
          keepsake->settle(comm);
          pass(Place::after_settling, times);
          if (comm.is_chief()) {
            outcome.together |= attempt != outcome.settled.size() + 1;
            outcome.settled.resize(attempt);
            outcome.settled[attempt - 1] = keepsake->step();
            outcome.completed = 0;
            for (std::size_t i = 0; i < dead.size(); ++i) {
              if (!dead[i]) outcome.completed = std::max(outcome.completed, completed[i]);
            }
          }
        }
        State state;
        const Tensor weight = state.parameter("weight", {static_cast<std::int64_t>(kElements)});
        state.slot("velocity");
        state.buffer("statistics", {static_cast<std::int64_t>(kBuffers)});
        MonitoredTrainingSessionOptions options;
        options.config.share_parameters = job.shares;
        options.config.shard_optimizer = job.shards;
        options.config.ranks_per_node = job.ranks_per_node;
        options.config.micro_batches = kMicroBatches;
        options.config.keepsake = keepsake;
        options.scaffold.init_fn = [](State& fresh) {
          for (std::size_t i = 0; i < kElements; ++i) fresh.parameters()[i] = std::sin(static_cast<float>(i));
        };
        options.scaffold.local_init = [&](State&) { pass(Place::after_values, times); };
        const auto created = [&] {
          if (comm.is_chief() && state.global_step() == kSteps) {
            std::ranges::copy(state.slot_values("velocity"),
                              outcome.slots.begin());  // carried over, all of them
          }
          pass(Place::after_creation, times);
        };
        // Not where a rank that is still in the hooks of the step before would hear of it.
        const bool polls = lost < deaths.size() && deaths[lost].place > Place::before_sum;
        const auto poll = [&] {
          if (!polls) return;
          Request received = comm.receive({}, comm.rank(), 77);
          Request sent = comm.send({}, comm.rank(), 77);
          comm.wait(received, "a message to oneself");
          comm.wait(sent, "a message to oneself");
        };
        options.hooks = {std::make_shared<Remembers>(job.keeps, pass, poll, created),
                         std::make_shared<StopAtStepHook>(std::nullopt, kSteps)};
        options.max_wait_secs = 0;
        MonitoredTrainingSession session(comm, state, options);
        session.train([&](StepContext& step) {
          const std::int64_t t = step.number();
          pass(Place::before_micro_batches, t);
          const auto owned = step.micro_batches();
          for (auto m = owned.first; m < owned.last; ++m) {
            const std::span<float> gradients = step.begin_micro_batch();
            for (std::size_t i = 0; i < kElements; ++i) {
              gradients[i] =
                  1e-3F * static_cast<float>((i * 7 + static_cast<std::size_t>(m * 31 + t * 13)) % 101);
            }
            for (std::size_t i = 0; i < kBuffers; ++i) {
              gradients[state.parameter_elements() + i] =
                  static_cast<float>(m + t) / static_cast<float>(i + 1);
            }
            step.end_micro_batch();
          }
          pass(Place::before_sum, t);
          step.reduce_micro_batches();
          pass(Place::before_update, t);
          if (!step.shares_parameters()) step.finish();
          const ElementRange slice = step.slice();
          const std::span<float> velocity = state.slot_values("velocity");
          for (std::size_t i = slice.first; i < slice.last; ++i) {
            if (i == slice.first + slice.size() / 2) {
              pass(Place::in_update, t);
              poll();
            }
            velocity[i] = 0.9F * velocity[i] + step.sum()[i];
            state.parameters()[i] -= 0.1F * velocity[i];
          }
          if (slice.size() == 0) pass(Place::in_update, t);
          const ElementRange buffers = step.buffer_slice();
          const auto added = step.sum().subspan(state.parameter_elements());
          for (std::size_t i = buffers.first; i < buffers.last; ++i) state.buffers()[i] += added[i];
          pass(Place::after_update, t);
          step.finish();
          // They need not come together on the chief: nothing is saved.
          if (t + 1 == kSteps)
            std::copy(&velocity[slice.first], &velocity[slice.last], &outcome.slots[slice.first]);
          pass(Place::after_finish, t);
          return StepValues{{"loss", static_cast<double>(t + 1)}};
        });
        CHECK(session.global_step() == kSteps);
        if (comm.is_chief()) {
          outcome.digest = content_digest(state.entries(), "/model/").hex() +
                           content_digest(state.entries(), "/buffers/").hex();
          if (job.keeps) outcome.kept = state.keep("remembers", 1)[0];
        }
        over = true;
        return;
      } catch (const DeadlineExceeded&) {
        if (dead[my]) return;
        attempt = knows[my] = lost;
      } catch (...) {
        over = true;
        throw;
      }
    }
  });
  return outcome;
}

constexpr Place kPlaces[] = {
    Place::before_run, Place::before_micro_batches, Place::before_sum,   Place::before_update,
    Place::in_update,  Place::after_update,         Place::after_finish, Place::after_run};

void check_values(const Outcome& ended, const Outcome& undisturbed) {
  CHECK(ended.digest == undisturbed.digest);
  CHECK(ended.slots == undisturbed.slots);
  CHECK(ended.kept == undisturbed.kept);
}

/// One death, in many interleavings.
void check_death(const Job& job, const Death& death, const Outcome& undisturbed) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    const Outcome ended = run(job, seed, {death});
    check_values(ended, undisturbed);
    REQUIRE(ended.settled.size() == 1);
    const auto& settled = ended.settled.front();
    if (job.ranks_per_node != 0) {
      // What another node sent before the loss may not be received any more.
      if (job.second_copy) CHECK(settled.value_or(-1) >= death.step - 1);
      continue;
    }
    // Where nobody had begun to update, that step is repeated. With a second copy it always is, if nobody had
    // completed it.
    if (death.place <= Place::before_sum) CHECK(settled == std::optional(death.step));
    if (job.second_copy) {
      CHECK((settled == std::optional(death.step) || settled == std::optional(death.step + 1)));
    }
  }
}

TEST_CASE("whichever rank is lost and wherever, the others come to the values of the undisturbed run") {
  for (const int layout : {0, 1, 2, 3}) {
    const bool shares = layout != 0;
    const bool keeps = layout < 2;
    const Outcome undisturbed = run({.shares = shares, .keeps = keeps}, 1, {});
    for (int ranks = 2; ranks <= 4; ++ranks) {
      for (int who = 0; who < ranks; ++who) {
        for (const Place place : kPlaces) {
          for (const bool second_copy : {false, true}) {
            CAPTURE(layout);
            CAPTURE(ranks);
            CAPTURE(who);
            CAPTURE(static_cast<int>(place));
            CAPTURE(second_copy);
            check_death({ranks, shares, second_copy, keeps, layout == 3 ? 2 : 0}, {who, place, 1 + who % 2},
                        undisturbed);
          }
        }
      }
    }
  }
}

TEST_CASE(
    "shards of an optimizer survive their node where another keeps a copy, and go on without a checkpoint") {
  const Outcome undisturbed = run({}, 1, {});
  struct Layout {
    int ranks;
    int ranks_per_node;
  };
  const auto check = [&](const Layout& layout, int who, Place place, bool second_copy) {
    CAPTURE(layout.ranks);
    CAPTURE(layout.ranks_per_node);
    CAPTURE(who);
    CAPTURE(static_cast<int>(place));
    CAPTURE(second_copy);
    const std::int64_t step = 1 + who % 3;
    const Outcome ended =
        run({.ranks = layout.ranks,
             .second_copy = second_copy,
             .ranks_per_node = layout.ranks_per_node,
             .shards = true},
            static_cast<std::uint64_t>(10 * who) + static_cast<std::uint64_t>(place), {{who, place, step}});
    check_values(ended, undisturbed);
    REQUIRE(ended.settled.size() == 1);
    const auto& settled = ended.settled.front();
    // Nothing that anybody who is left had completed is repeated.
    if (settled) CHECK(*settled >= ended.completed);
    // The last rank of five is a node of its own.
    const bool alone = layout.ranks_per_node == 1 || (layout.ranks == 5 && who == 4);
    if (second_copy) CHECK(settled.value_or(-1) >= step - 1);
    // Of four blocks of 4,096 elements the first of five nodes has none.
    const bool empty = layout.ranks == 5 && alone && who == 0;
    if (!second_copy && alone && !empty) CHECK(!settled.has_value());
    // Its neighbour has its slots, and nobody had begun to update.
    if (!second_copy && !alone && place == Place::before_sum) CHECK(settled.value_or(-1) >= step - 1);
  };
  for (const Layout& layout :
       {Layout{2, 1}, Layout{3, 1}, Layout{4, 1}, Layout{5, 1}, Layout{4, 2}, Layout{5, 2}, Layout{6, 2}}) {
    for (int who = 0; who < layout.ranks; ++who) {
      for (const Place place : kPlaces) check(layout, who, place, true);
      for (const Place place : {Place::before_sum, Place::in_update}) check(layout, who, place, false);
    }
  }
}

TEST_CASE("two nodes are lost: only if one kept the other's shard is a checkpoint needed") {
  const Outcome undisturbed = run({}, 1, {});
  const Job job{.ranks = 4, .second_copy = true, .ranks_per_node = 1, .shards = true};
  for (int who = 0; who < 4; ++who) {
    for (int distance = 1; distance < 4; ++distance) {
      for (const Place first : {Place::in_update, Place::after_finish}) {
        for (const Place second :
             {Place::before_settling, Place::after_settling, Place::after_values, Place::after_creation}) {
          for (const std::uint64_t seed : {1 + static_cast<std::uint64_t>(who)}) {
            CAPTURE(who);
            CAPTURE(distance);
            CAPTURE(static_cast<int>(first));
            CAPTURE(static_cast<int>(second));
            CAPTURE(seed);
            const Outcome ended = run(job, seed, {{who, first, 2}, {(who + distance) % 4, second, 1}});
            check_values(ended, undisturbed);
            REQUIRE(ended.settled.size() == 2);
            // Once a new session has begun its ranks have copies of their own.
            CHECK(ended.settled.back().has_value() == (distance == 2 || second == Place::after_creation));
          }
        }
      }
    }
  }
}

TEST_CASE("a second node is lost at any moment while the others begin again, and nothing is lost with it") {
  const Outcome undisturbed = run({}, 1, {});
  const Job job{.ranks = 4, .second_copy = true, .ranks_per_node = 1, .shards = true};
  std::int64_t operations = 0;
  // The second is the chief of those that were left, or not.
  for (int who = 1; who <= 2; ++who) {
    for (std::int64_t at = who;; at += 2) {
      CAPTURE(who);
      CAPTURE(at);
      const Outcome ended = run(job, static_cast<std::uint64_t>(at),
                                {{who, Place::in_update, 2}, {(who + 2) % 4, Place::in_creation, at}});
      check_values(ended, undisturbed);
      operations = at;
      if (ended.settled.size() == 1) break;  // the run was over before
      CHECK(ended.settled.back().has_value());
      CHECK(ended.settled.back().value_or(-1) >= ended.completed);
    }
  }
  CHECK(operations > 40);
}

TEST_CASE("shards are lost one after the other down to one rank, and no step is lost with them") {
  const Outcome undisturbed = run({}, 1, {});
  int apart = 0;
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    CAPTURE(seed);
    std::vector<Death> deaths;
    for (int i = 0; i < 3; ++i) {
      const int rank = static_cast<int>((seed + static_cast<std::uint64_t>(i)) % 4);
      const auto at = (seed * 5 + static_cast<std::uint64_t>(i) * 3) % std::size(kPlaces);
      deaths.push_back({rank, kPlaces[at], 1 + i});
    }
    const Job job{
        .ranks = 4, .second_copy = true, .ranks_per_node = 1 + static_cast<int>(seed % 2), .shards = true};
    const Outcome ended = run(job, seed, deaths);
    check_values(ended, undisturbed);
    // A second one that dies before they have come together may have kept the copy of the first.
    if (!ended.together) {
      for (const auto& settled : ended.settled) CHECK(settled.has_value());
    }
    apart += ended.together ? 0 : 1;
  }
  CHECK(apart > 12);
}

TEST_CASE("ranks are lost one after the other down to one, and what is kept goes with it") {
  const Outcome undisturbed = run({}, 1, {});
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    for (const bool second_copy : {false, true}) {
      CAPTURE(seed);
      CAPTURE(second_copy);
      std::vector<Death> deaths;
      for (int i = 0; i < 3; ++i) {
        const int rank = static_cast<int>((seed + static_cast<std::uint64_t>(i)) % 4);
        const auto at = (seed * 5 + static_cast<std::uint64_t>(i) * 3) % std::size(kPlaces);
        deaths.push_back({rank, kPlaces[at], 1 + i});
      }
      const Job job{.ranks = 4, .second_copy = second_copy, .ranks_per_node = seed % 2 == 0 ? 2 : 0};
      const Outcome ended = run(job, seed, deaths);
      check_values(ended, undisturbed);
    }
  }
}

TEST_CASE("a second rank that is lost while the others come together again changes nothing") {
  const Outcome undisturbed = run({}, 1, {});
  for (const Place first : {Place::before_micro_batches, Place::in_update, Place::after_finish}) {
    for (const Place second :
         {Place::before_settling, Place::after_settling, Place::after_values, Place::after_creation}) {
      for (int who = 0; who < 3; ++who) {
        for (const bool second_copy : {false, true}) {
          for (std::uint64_t seed = 1; seed <= 6; ++seed) {
            CAPTURE(static_cast<int>(first));
            CAPTURE(static_cast<int>(second));
            CAPTURE(who);
            CAPTURE(second_copy);
            CAPTURE(seed);
            const Job job{.ranks = 3, .second_copy = second_copy};
            const Outcome ended = run(job, seed, {{who, first, 1}, {(who + 1) % 3, second, 1}});
            check_values(ended, undisturbed);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
