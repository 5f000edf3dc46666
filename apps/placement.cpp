#include "placement.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sched.h>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/process.hpp>
#include <lockstep/mpi/fold_ranks.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kShownNodes = 8;
constexpr std::size_t kShownComplaints = 8;

/// The ranks of a node and the cores that each may use.
struct Node {
  std::string host;
  std::vector<int> ranks;
  std::vector<std::vector<int>> cores;  ///< of each of `ranks`, in increasing order
  std::vector<int> threads;             ///< of each of `ranks`
};

std::vector<int> my_cores() {
  constexpr int kMostCores = 1 << 14;
  cpu_set_t* set = CPU_ALLOC(kMostCores);
  const std::size_t bytes = CPU_ALLOC_SIZE(kMostCores);
  CPU_ZERO_S(bytes, set);
  std::vector<int> cores;
  if (sched_getaffinity(0, bytes, set) == 0) {
    for (int core = 0; core < kMostCores; ++core) {
      if (CPU_ISSET_S(static_cast<std::size_t>(core), bytes, set) != 0) cores.push_back(core);
    }
  }
  CPU_FREE(set);
  return cores;
}

/// "host\nboot id\n17 4 0 1 2 3": rank and threads, then the cores
std::string describe_myself(int rank, int threads) {
  const SystemIdentity identity;
  std::string text = fmt::format("{}\n{}\n{} {} ", identity.host(), identity.boot_id(), rank, threads);
  for (const int core : my_cores()) text += std::to_string(core) + " ";
  return text;
}

/// The nodes in the order of their first rank. Ranks are on one node when they run on one system, whatever it
/// calls itself: cores are numbered by the kernel.
std::vector<Node> nodes_of(const std::vector<std::string>& texts) {
  std::vector<Node> nodes;
  std::map<std::string, std::size_t> known;
  for (const std::string& text : texts) {
    const std::size_t host_end = text.find('\n');
    const std::size_t boot_end = text.find('\n', host_end + 1);
    const auto [entry, is_new] =
        known.emplace(text.substr(host_end + 1, boot_end - host_end - 1), nodes.size());
    if (is_new) nodes.push_back({.host = text.substr(0, host_end), .ranks = {}, .cores = {}, .threads = {}});
    Node& node = nodes[entry->second];
    std::vector<int>& cores = node.cores.emplace_back();
    for (const char* at = text.data() + boot_end + 1; at < text.data() + text.size();) {
      int core = 0;
      at = std::from_chars(at, text.data() + text.size(), core).ptr + 1;
      cores.push_back(core);
    }
    node.ranks.push_back(cores[0]);
    node.threads.push_back(cores[1]);
    cores.erase(cores.begin(), cores.begin() + 2);
  }
  return nodes;
}

/// "ranks 0-3 on cores 0-7; rank 4 on core 8"
std::string map_of(const Node& node) {
  std::vector<std::vector<int>> distinct;
  std::vector<std::vector<int>> ranks;
  for (std::size_t i = 0; i < node.ranks.size(); ++i) {
    const auto same = std::ranges::find(distinct, node.cores[i]);
    const auto at = static_cast<std::size_t>(same - distinct.begin());
    if (same == distinct.end()) {
      distinct.push_back(node.cores[i]);
      ranks.emplace_back();
    }
    ranks[at].push_back(node.ranks[i]);
  }
  std::string text;
  for (std::size_t i = 0; i < distinct.size(); ++i) {
    text += fmt::format("{}rank{} {} on core{} {}", i == 0 ? "" : "; ", ranks[i].size() == 1 ? "" : "s",
                        to_string_ranks(ranks[i]), distinct[i].size() == 1 ? "" : "s",
                        to_string_ranks(distinct[i]));
  }
  return text;
}

/// How many ranks can have a core of their own at the same time: a largest matching of ranks and cores.
class Seating {
 public:
  explicit Seating(const Node& node) : node_(node) {
    for (std::size_t rank = 0; rank < node.ranks.size(); ++rank) {
      tried_.clear();
      if (seat(rank)) ++seated_;
    }
  }
  std::size_t seated() const { return seated_; }

 private:
  bool seat(std::size_t rank) {
    for (const int core : node_.cores[rank]) {
      if (!tried_.insert(core).second) continue;
      const auto holder = holder_.find(core);
      if (holder == holder_.end() || seat(holder->second)) {
        holder_[core] = rank;
        return true;
      }
    }
    return false;
  }

  const Node& node_;
  std::map<int, std::size_t> holder_;
  std::set<int> tried_;
  std::size_t seated_ = 0;
};

/// What is wrong with a node, or nothing.
std::string complaint(const Node& node) {
  std::set<int> all;
  std::size_t sum = 0;
  for (const auto& cores : node.cores) {
    all.insert(cores.begin(), cores.end());
    sum += cores.size();
  }
  const auto threads = static_cast<std::size_t>(std::reduce(node.threads.begin(), node.threads.end()));
  std::vector<int> crowded;
  for (std::size_t i = 0; i < node.ranks.size(); ++i) {
    if (static_cast<std::size_t>(node.threads[i]) > node.cores[i].size()) crowded.push_back(node.ranks[i]);
  }
  if (node.ranks.size() > 1 && node.ranks.size() > all.size()) {
    return fmt::format(
        "{} ranks share {} core{}, and all wait for the slowest; start at most {} rank{} a node, or "
        "ask for more cores",
        node.ranks.size(), all.size(), all.size() == 1 ? "" : "s", all.size(), all.size() == 1 ? "" : "s");
  }
  if (!crowded.empty()) {
    return fmt::format(
        "rank{} {} ha{} more threads than cores to run on; use fewer --threads, or bind ranks to more cores "
        "with "
        "mpirun --map-by slot:PE=N, or srun --cpus-per-task=N",
        crowded.size() == 1 ? "" : "s", to_string_ranks(crowded), crowded.size() == 1 ? "s" : "ve");
  }
  if (threads > all.size()) {
    return fmt::format("{} threads of {} ranks share {} cores; use fewer --threads, or ask for more cores",
                       threads, node.ranks.size(), all.size());
  }
  if (node.ranks.size() == 1) return "";
  const std::size_t seated = Seating(node).seated();
  if (seated < node.ranks.size()) {
    return fmt::format(
        "ranks are bound to the same cores: only {} of {} can have one of their own, though there "
        "are {}; see --bind-to and --map-by of mpirun, --cpu-bind of srun",
        seated, node.ranks.size(), all.size());
  }
  if (sum > all.size()) {
    return "ranks are not bound to cores of their own, and get into each other's way; use mpirun --bind-to "
           "core, or "
           "srun --cpu-bind=cores";
  }
  return "";
}

/// What there is to say of some nodes: as much of few as of many.
struct Findings {
  struct Complaint {
    std::string text;
    std::string host;  ///< of the first node
    std::size_t nodes = 1;
  };
  std::size_t nodes = 0;
  std::vector<std::string> shown;  ///< of the first nodes
  std::vector<Complaint> complaints;
  std::size_t other_complaints = 0;  ///< nodes with more

  void add(const Complaint& more) {
    const auto same = std::ranges::find(complaints, more.text, &Complaint::text);
    if (same != complaints.end()) {
      same->nodes += more.nodes;
    } else if (complaints.size() < kShownComplaints) {
      complaints.push_back(more);
    } else {
      other_complaints += more.nodes;
    }
  }

  void add(const Findings& behind) {
    nodes += behind.nodes;
    for (const std::string& line : behind.shown) {
      if (shown.size() < kShownNodes) shown.push_back(line);
    }
    for (const Complaint& complaint : behind.complaints) add(complaint);
    other_complaints += behind.other_complaints;
  }
};

std::vector<char> bytes_of(const Findings& findings) {
  nlohmann::json complaints = nlohmann::json::array();
  for (const auto& complaint : findings.complaints) {
    complaints.push_back({complaint.text, complaint.host, complaint.nodes});
  }
  const std::string text =
      nlohmann::json{findings.nodes, findings.shown, complaints, findings.other_complaints}.dump(
          -1, ' ', false, nlohmann::json::error_handler_t::replace);
  return {text.begin(), text.end()};
}

/// Nothing of nobody.
Findings findings_of(const std::vector<char>& bytes) {
  Findings findings;
  if (bytes.empty()) return findings;
  const auto all = nlohmann::json::parse(bytes);
  findings.nodes = all[0];
  findings.shown = all[1].get<std::vector<std::string>>();
  for (const auto& entry : all[2]) {
    findings.complaints.push_back(
        {entry[0].get<std::string>(), entry[1].get<std::string>(), entry[2].get<std::size_t>()});
  }
  findings.other_complaints = all[3];
  return findings;
}

}  // namespace

void report_placement(const Communicator& world, const Log& log, int threads) {
  // Ranks of one system meet, and its first one speaks for all of them.
  const std::string boot = SystemIdentity().boot_id();
  const auto digest = digest_of(std::as_bytes(std::span(boot))).bytes;
  const int color = digest[0] | digest[1] << 8 | digest[2] << 16 | (digest[3] & 0x7f) << 24;
  const Communicator here = world.split(color, world.rank());
  const auto texts = here.all_gather_text(describe_myself(world.rank(), threads));
  std::vector<char> mine;
  if (here.is_chief()) {
    Findings findings;
    for (const Node& node : nodes_of(texts)) {
      ++findings.nodes;
      findings.shown.push_back(fmt::format("node {}: {}", node.host, map_of(node)));
      if (const std::string wrong = complaint(node); !wrong.empty()) findings.add({wrong, node.host});
    }
    mine = bytes_of(findings);
  }
  const auto all = fold_lists(world, "all ranks to say which cores they have", mine,
                              [](std::vector<char>& before, const std::vector<char>& behind) {
                                if (behind.empty()) return;
                                Findings both = findings_of(before);
                                both.add(findings_of(behind));
                                before = bytes_of(both);
                              });
  if (!world.is_chief()) return;
  const Findings findings = findings_of(all);
  for (const std::string& line : findings.shown) log.info(line);
  if (findings.nodes > findings.shown.size()) {
    log.info(fmt::format("... and {} more nodes", findings.nodes - findings.shown.size()));
  }
  for (const auto& wrong : findings.complaints) {
    const std::string others =
        wrong.nodes == 1 ? std::string() : fmt::format(" and {} more", wrong.nodes - 1);
    log.warn(fmt::format("node {}{}: {}", wrong.host, others, wrong.text));
  }
  if (findings.other_complaints > 0) {
    log.warn(fmt::format("... and other complaints about {} more nodes", findings.other_complaints));
  }
}

}  // namespace lockstep
