#include <algorithm>
#include <charconv>
#include <cstddef>
#include <utility>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/reduce/node_list.hpp>

namespace lockstep {
namespace {

bool is_digit(char c) noexcept {
  return c >= '0' && c <= '9';
}

std::string_view name_of(const NodeList::Run& run) {
  return {run.host.data(), static_cast<std::size_t>(std::ranges::find(run.host, '\0') - run.host.begin())};
}

std::string host_at(const NodeList::Run& run, int index) {
  const std::string_view name = name_of(run);
  if (run.digits == 0) return std::string(name);
  const auto at = static_cast<std::size_t>(run.digits_at);
  return fmt::format("{}{:0{}}{}", name.substr(0, at), run.number + index * run.number_step, run.digits,
                     name.substr(at + static_cast<std::size_t>(run.digits)));
}

/// Makes `run` count from its name to `next`. False where those differ in something that is no number.
bool count_to(NodeList::Run& run, std::string_view next) {
  const std::string_view name = name_of(run);
  run.digits = 0;
  run.number_step = 0;
  if (name == next) return true;
  const std::size_t shorter = std::min(name.size(), next.size());
  std::size_t begin = 0;
  while (begin < shorter && name[begin] == next[begin]) ++begin;
  std::size_t behind = 0;
  while (behind < shorter - begin && name[name.size() - behind - 1] == next[next.size() - behind - 1])
    ++behind;
  while (begin > 0 && is_digit(name[begin - 1])) --begin;
  while (behind > 0 && is_digit(name[name.size() - behind])) --behind;
  const auto number_in = [&](std::string_view of, std::int64_t& number) {
    constexpr std::size_t kMostDigits = 15;
    const std::string_view digits = of.substr(begin, of.size() - behind - begin);
    if (digits.empty() || digits.size() > kMostDigits || !std::ranges::all_of(digits, is_digit)) return false;
    std::from_chars(digits.data(), digits.data() + digits.size(), number);
    return true;
  };
  std::int64_t number = 0;
  if (!number_in(name, run.number) || !number_in(next, number)) return false;
  run.number_step = number - run.number;
  run.digits = static_cast<std::int32_t>(name.size() - behind - begin);
  run.digits_at = static_cast<std::int32_t>(begin);
  return true;
}

/// Whether `next` could be behind `run` as part of it; `run` is then longer.
bool extend(NodeList::Run& run, const NodeList::Run& next) {
  NodeList::Run both = run;
  both.nodes += next.nodes;
  if (run.nodes == 1) {
    both.leader_step = next.leader - run.leader;
    if (!count_to(both, name_of(next))) return false;
  }
  const auto follows = [&](const NodeList::Run& of, std::int32_t index) {
    const std::int32_t i = run.nodes + index;
    return of.leader + index * of.leader_step == both.leader + i * both.leader_step &&
           host_at(of, index) == host_at(both, i);
  };
  // Steps are equal where both ends are where they should be; so are, then, digits in between.
  if (next.size != run.size || !follows(next, 0) || !follows(next, next.nodes - 1)) return false;
  run = both;
  return true;
}

}  // namespace

NodeList::NodeList(int leader, int size, std::string_view host) {
  Run run{.size = size, .leader = leader};
  host = host.substr(0, run.host.size() - 1);
  std::ranges::copy(host, run.host.begin());
  runs_.push_back(run);
}

NodeList::NodeList(std::vector<Run> runs) : runs_(std::move(runs)) {}

void NodeList::append(const NodeList& behind) {
  for (const Run& run : behind.runs_) {
    if (runs_.empty() || !extend(runs_.back(), run)) runs_.push_back(run);
  }
}

int NodeList::nodes() const noexcept {
  int nodes = 0;
  for (const Run& run : runs_) nodes += run.nodes;
  return nodes;
}

int NodeList::least_size() const noexcept {
  int least = runs_.empty() ? 0 : runs_.front().size;
  for (const Run& run : runs_) least = std::min(least, run.size);
  return least;
}

NodeList::Place NodeList::find(int node) const {
  int index = node;
  int start = 0;
  for (const Run& run : runs_) {
    if (index < run.nodes) return {&run, index, start + index * run.size};
    index -= run.nodes;
    start += run.nodes * run.size;
  }
  throw InternalError(fmt::format("there is no node {}", node));
}

int NodeList::size_of(int node) const {
  return find(node).run->size;
}

int NodeList::start_of(int node) const {
  return find(node).start;
}

int NodeList::leader_of(int node) const {
  const Place place = find(node);
  return place.run->leader + place.index * place.run->leader_step;
}

int NodeList::node_of(int leader) const {
  int before = 0;
  for (const Run& run : runs_) {
    const int step = std::max(run.leader_step, 1);
    const int index = (leader - run.leader) / step;
    if (leader >= run.leader && index < run.nodes && run.leader + index * step == leader)
      return before + index;
    before += run.nodes;
  }
  throw InternalError(fmt::format("rank {} is the first of no node", leader));
}

std::string NodeList::host_of(int node) const {
  const Place place = find(node);
  return host_at(*place.run, place.index);
}

}  // namespace lockstep
