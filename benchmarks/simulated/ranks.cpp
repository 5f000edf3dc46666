#include "ranks.hpp"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <simgrid/s4u.hpp>
#include <smpi/smpi.h>
#include <xbt/log.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/environment.hpp>

namespace lockstep::simulated {
namespace {

class SimulatedClock final : public Clock {
 public:
  Seconds now() const override { return Seconds{simgrid::s4u::Engine::get_clock()}; }
  double wall_seconds() const override { return 1.7e9 + now().count(); }
  void sleep(Seconds duration) override { compute_for(duration); }
};

std::vector<simgrid::s4u::Host*> hosts_of(const simgrid::s4u::Engine& engine) {
  std::vector<simgrid::s4u::Host*> hosts = engine.get_all_hosts();
  std::ranges::sort(hosts, [](const auto* a, const auto* b) {
    const auto& left = a->get_name();
    const auto& right = b->get_name();
    return left.size() != right.size() ? left.size() < right.size() : left < right;
  });
  return hosts;
}

}  // namespace

int Ranks::parse_word(int count, char** words) {
  if (count < 2) return 0;
  const std::string_view word = words[0];
  if (word == "--platform") {
    platform = words[1];
  } else if (word == "--ranks") {
    ranks = static_cast<int>(std::strtol(words[1], nullptr, 10));
  } else if (word == "--per_node") {
    per_node = static_cast<int>(std::strtol(words[1], nullptr, 10));
  } else {
    return 0;
  }
  return 2;
}

void Ranks::run(const std::function<void(int, const Communicator&)>& body) const {
  using simgrid::s4u::Engine;
  auto* const engine = Engine::get_instance();
  for (const char* quiet :
       {"xbt_cfg.thresh:warning", "smpi_config.thresh:warning", "smpi_coll.thresh:warning"}) {
    xbt_log_control_set(quiet);
  }
  smpi_init_options();
  // Time passes where a rank waits (src/mpi/smpi.hpp) and where it says that it computes.
  Engine::set_config("network/model", std::string("SMPI"));
  Engine::set_config("smpi/test:0");
  Engine::set_config("smpi/iprobe:0");
  Engine::set_config("smpi/wtime:0");
  Engine::set_config("smpi/simulate-computation:no");
  Engine::set_config("smpi/coll-selector", std::string("ompi"));  // the default sends a message to each rank
  // For more ranks that takes a k-nomial tree, before which SMPI has all ranks gather a list of each other.
  if (ranks > 1024) Engine::set_config("smpi/bcast", std::string("binomial_tree"));
  Engine::set_config("surf/precision:1e-9");
  Engine::set_config("contexts/stack-size:512");
  SMPI_init();
  engine->load_platform(platform);
  const auto hosts = hosts_of(*engine);
  if (static_cast<std::size_t>((ranks + per_node - 1) / per_node) > hosts.size()) {
    throw UsageError(
        fmt::format("{} has {} hosts; give fewer ranks or more --per_node", platform, hosts.size()));
  }
  SMPI_app_instance_register("job", nullptr, ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto actor = simgrid::s4u::Actor::create(
        fmt::format("rank{}", rank), hosts[static_cast<std::size_t>(rank / per_node)], [&body, rank] {
          const Environment environment(nullptr, nullptr);
          body(rank, environment.world(WaitPolicy{.clock = simulated_clock(), .log = {}}));
        });
    actor->set_property("instance_id", "job");
    actor->set_property("rank", std::to_string(rank));
  }
  if (ready) ready();
  engine->run();
  SMPI_finalize();
}

std::shared_ptr<Clock> simulated_clock() {
  static const auto clock = std::make_shared<SimulatedClock>();
  return clock;
}

void compute_for(Seconds duration) {
  if (duration.count() > 0) simgrid::s4u::this_actor::sleep_for(duration.count());
}

}  // namespace lockstep::simulated
