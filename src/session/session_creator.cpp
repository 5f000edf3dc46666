#include <algorithm>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/floating_point.hpp>
#include <lockstep/checkpoint/restore.hpp>
#include <lockstep/reduce/node_allocator.hpp>
#include <lockstep/session/keepsake.hpp>
#include <lockstep/session/session_creator.hpp>

#include "created_session.hpp"
#include "session_ground.hpp"

namespace lockstep {
namespace {

bool rounds_gradients(const SessionGround& ground) {
  return ground.config.gradient_dtype == GradientDtype::bf16 && ground.topology->nodes > 1;
}

void freeze(SessionGround& ground) {
  if (rounds_gradients(ground)) ground.state.keep_arenas("gradient_residual", ground.topology->nodes);
  NodeAllocator shared(*ground.topology, ground.config.shard_optimizer);
  PlainAllocator plain;
  ArenaAllocator& maker = ground.config.share_parameters ? static_cast<ArenaAllocator&>(shared) : plain;
  const Keepsake* const keepsake = ground.config.keepsake.get();
  if (keepsake == nullptr || rounds_gradients(ground)) {
    ground.state.freeze(maker);
    return;
  }
  KeepingAllocator keeping(maker);
  ground.state.freeze(keeping);
  ground.kept = std::make_shared<KeptMemory>(ground, std::move(keeping.kept), maker, keepsake->second_copy());
}

/// The values that a session before this one left in memory.
void carry_over(SessionGround& ground, const std::optional<SharedArenas>& shared) {
  const Keepsake& before = *ground.config.keepsake;
  ground.carried = before.step();
  initialize_state(
      ground.start, ground.state,
      [&] { KeptMemory::give(before.memory(), *before.values(), ground.start, ground.state); }, shared);
}

/// With what is known only after `freeze`: attached memory.
void compare_entries(const SessionGround& ground) {
  std::string layout;
  for (const Entry& entry : ground.state.entries()) {
    layout += fmt::format("{} {} {}\n", entry.path, to_string(entry.type), to_string(entry.shape));
  }
  compare_ranks(ground.start, std::vector<Statement>{{"what a checkpoint holds", std::move(layout)}});
}

/// Who has what, where the ranks of a node share.
std::optional<SharedArenas> shared_arenas(const SessionGround& ground) {
  if (!ground.config.share_parameters) return std::nullopt;
  const Topology& topology = *ground.topology;
  SharedArenas shared;
  if (topology.node.rank() == 0) {
    shared.leaders = patient(topology.column, ground.options.max_wait_secs);  // of local rank 0 alone
  }
  if (ground.config.shard_optimizer) {
    shared.slots = shard_of_node(topology, ground.state.parameter_elements(), topology.my_node);
  }
  shared.node = static_cast<std::size_t>(topology.my_node);
  return shared;
}

std::optional<Restored> restore_or_initialize(SessionGround& ground, bool again) {
  SessionConfig& config = ground.config;
  const Scaffold& scaffold = ground.options.scaffold;
  std::optional<SharedArenas> shared = shared_arenas(ground);
  // A checkpoint need not have what hooks keep, and then they start as they did.
  if (again) ground.state.clear_kept();
  const auto on_chief = [&](std::string_view phase, const std::function<void(State&)>& work) {
    ground.on_chief("the chief to initialize", phase, [&] { work(ground.state); });
  };
  const auto initialize = [&] {
    if (again) {
      on_chief("init", [](State& state) {
        std::ranges::fill(state.parameters(), 0.0F);
        std::ranges::fill(state.buffers(), 0.0F);
        for (const std::string& slot : state.slot_names()) std::ranges::fill(state.slot_values(slot), 0.0F);
        for (const std::span<float> arena : state.kept_arenas()) std::ranges::fill(arena, 0.0F);
      });
    }
    on_chief("init", scaffold.init);
    on_chief("init_fn", scaffold.init_fn);
  };
  if (!again && config.keepsake && config.keepsake->step()) {
    carry_over(ground, shared);
    return std::nullopt;
  }
  if (ground.options.checkpoint_dir.empty()) {
    initialize_state(ground.start, ground.state, initialize, shared);
    return std::nullopt;
  }
  // A session that is made again goes on from the newest of its own.
  const RestoreOptions restore{
      .allow_change = config.allow_change,
      .fresh = config.fresh && !again,
      .exact_file = config.restore_from.empty() || again ? std::nullopt : std::optional(config.restore_from),
      .basename = scaffold.saver.basename,
      .shared_arenas = std::move(shared),
      .key = scaffold.saver.key,
      .log = ground.log};
  return lockstep::restore_or_initialize(ground.start,
                                         ground.directory ? ground.directory->directory().get() : nullptr,
                                         ground.state, initialize, restore);
}

/// What contradicts itself. Throws UsageError.
void check(const SessionCreatorOptions& options) {
  const SessionConfig& config = options.config;
  if (config.fresh && !config.restore_from.empty()) {
    throw UsageError("fresh and restore_from are both given; a fresh run restores nothing");
  }
  if (options.checkpoint_dir.empty() && (config.fresh || !config.restore_from.empty())) {
    throw UsageError("fresh and restore_from speak of checkpoints; give checkpoint_dir too");
  }
  if (options.scaffold.ready_for_local_init && !options.scaffold.local_init) {
    throw UsageError("the scaffold has ready_for_local_init and no local_init that it is for; give both");
  }
}

void require_ready(const Scaffold::Names& missing, std::string_view what) {
  if (missing.empty()) return;
  throw TrainingError(
      fmt::format("the functions of the scaffold did not make the model ready{}: {}; let init "
                  "or init_fn set them, or restore a checkpoint that has them",
                  what, fmt::join(missing, ", ")));
}

}  // namespace

SessionCreator::SessionCreator(Role role, Communicator comm, State& state, SessionCreatorOptions options)
    : role_(role), ground_(std::make_unique<SessionGround>(std::move(comm), state, std::move(options))) {}

SessionCreator::~SessionCreator() = default;

std::unique_ptr<RawSession> SessionCreator::create_session() {
  SessionGround& ground = *ground_;
  SessionConfig& config = ground.config;
  ground.meet();
  ground.together("", [&] {
    use_standard_floating_point();
    if ((role_ == Role::chief) != ground.comm.is_chief()) {
      throw UsageError(fmt::format(
          "a {} was made on rank {}; rank 0 is the chief, all others are workers "
          "(make_session_creator chooses)",
          role_ == Role::chief ? "ChiefSessionCreator" : "WorkerSessionCreator", ground.comm.rank()));
    }
    check(ground.options);
    ground.options.scaffold.finalize();
  });
  ground.together("", [&] {
    if (!ground.topology) ground.topology.emplace(ground.comm, ground.config.ranks_per_node);
  });
  if (!ground.owns_directory && !ground.options.checkpoint_dir.empty()) {
    ground.on_chief("the chief to open the checkpoint directory", "", [&] {
      ground.directory = std::make_unique<RunDirectory>(ground.options.checkpoint_dir, ground.config,
                                                        ground.log, ground.options.scaffold.saver.key);
    });
    ground.owns_directory = true;
    if (config.keepsake) {
      config.keepsake->set_owner(
          ground.start.broadcast_text(ground.directory ? ground.directory->nonce() : ""));
    }
  }
  // Memory may be short on one rank alone.
  ground.together("", [&] {
    if (!ground.state.frozen()) freeze(ground);
    if (rounds_gradients(ground) && ground.state.kept_arenas().empty()) {
      throw UsageError("bf16 gradients need a state that the session freezes itself; leave that to it");
    }
  });
  if (!created_) compare_entries(ground);
  const bool again = std::exchange(created_, true);
  if (ground.kept) ground.kept->spoil();
  std::unique_ptr<CreatedSession> session;
  ground.together("", [&] { session = std::make_unique<CreatedSession>(ground); });
  session->set_restored(restore_or_initialize(ground, again));
  const Scaffold& scaffold = ground.options.scaffold;
  ground.together("ready_for_local_init",
                  [&] { require_ready(scaffold.ready_for_local_init(ground.state), " for local_init"); });
  ground.together("local_init", [&] { scaffold.local_init(ground.state); });
  ground.together("ready", [&] { require_ready(scaffold.ready(ground.state), ""); });
  if (ground.kept) ground.kept->begin(ground.state.global_step());
  if (config.keepsake) {
    config.keepsake->adopt(ground.kept);
    // Only then what the session before left is needed no more.
    ground.start.barrier("all ranks to keep the new session's values");
    config.keepsake->forget_before();
  }
  return session;
}

ChiefSessionCreator::ChiefSessionCreator(Communicator comm, State& state, SessionCreatorOptions options)
    : SessionCreator(Role::chief, std::move(comm), state, std::move(options)) {}

WorkerSessionCreator::WorkerSessionCreator(Communicator comm, State& state, SessionCreatorOptions options)
    : SessionCreator(Role::worker, std::move(comm), state, std::move(options)) {}

std::shared_ptr<SessionCreator> make_session_creator(Communicator comm, State& state,
                                                     SessionCreatorOptions options) {
  if (comm.is_chief()) {
    return std::make_shared<ChiefSessionCreator>(std::move(comm), state, std::move(options));
  }
  return std::make_shared<WorkerSessionCreator>(std::move(comm), state, std::move(options));
}

}  // namespace lockstep
