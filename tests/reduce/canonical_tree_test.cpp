#include <array>
#include <string>

#include <doctest/doctest.h>

#include <lockstep/reduce/canonical_tree.hpp>

#include "reducer_cases.hpp"

namespace lockstep {
namespace {

// Texts in place of floats show the order of additions itself.
std::string name_of_sum(std::int64_t micro_batches) {
  std::vector<std::string> level;
  for (std::int64_t m = 0; m < micro_batches; ++m) level.push_back(std::to_string(m));
  while (level.size() > 1) {
    std::vector<std::string> above;
    for (std::size_t i = 0; i + 1 < level.size(); i += 2)
      above.push_back("(" + level[i] + "+" + level[i + 1] + ")");
    if (level.size() % 2 == 1) above.push_back(level.back());
    level = above;
  }
  return level.front();
}

}  // namespace

TEST_CASE("ranges of all workers cover the micro-batches once, evenly, with idle workers last") {
  for (std::int64_t micro_batches = 1; micro_batches <= 40; ++micro_batches) {
    for (int workers = 1; workers <= 50; ++workers) {
      std::int64_t next = 0;
      std::int64_t smallest = micro_batches;
      std::int64_t largest = 0;
      for (int w = 0; w < workers; ++w) {
        const auto range = owned_range(micro_batches, w, workers);
        CHECK(range.first == next);
        next = range.last;
        CHECK((range.size() > 0) == (w < micro_batches));
        if (range.size() > 0) smallest = std::min(smallest, range.size());
        largest = std::max(largest, range.size());
      }
      CHECK(next == micro_batches);
      CHECK(largest - smallest <= 1);
    }
  }
}

TEST_CASE("a cover is what folding a range leaves over, and what combining such leavings does") {
  const auto nodes_of = [](const auto& list) {
    std::vector<TreeNode> nodes;
    for (const auto& entry : list) nodes.push_back(entry.node);
    return nodes;
  };
  for (std::int64_t micro_batches = 1; micro_batches <= 33; ++micro_batches) {
    for (std::int64_t first = 0; first <= micro_batches; ++first) {
      for (std::int64_t last = first; last <= micro_batches; ++last) {
        const auto covering = cover(micro_batches, {first, last});
        CHECK(covering == nodes_of(fold_plan(micro_batches, {first, last}).partials));
        for (std::int64_t cut = first; cut <= last; ++cut) {
          auto both = cover(micro_batches, {first, cut});
          const auto more = cover(micro_batches, {cut, last});
          both.insert(both.end(), more.begin(), more.end());
          CHECK(covering == nodes_of(combine_programs(micro_batches, both)));
        }
      }
    }
  }
}

TEST_CASE("folding and combining add in the order of the tree, for any number of workers") {
  for (std::int64_t micro_batches = 1; micro_batches <= 33; ++micro_batches) {
    for (int workers = 1; workers <= 12; ++workers) {
      std::vector<TreeNode> nodes;
      std::vector<std::string> names;
      for (int w = 0; w < workers; ++w) {
        const auto range = owned_range(micro_batches, w, workers);
        const FoldPlan plan = fold_plan(micro_batches, range);
        std::vector<std::string> buffers(static_cast<std::size_t>(plan.buffers));
        std::int64_t leaf = range.first;
        for (const auto& step : plan.steps) {
          buffers[static_cast<std::size_t>(step.buffer)] = std::to_string(leaf++);
          for (const auto& add : step.adds) {
            auto& into = buffers[static_cast<std::size_t>(add.into)];
            into = "(" + into + "+" + buffers[static_cast<std::size_t>(add.from)] + ")";
          }
        }
        for (const auto& partial : plan.partials) {
          nodes.push_back(partial.node);
          names.push_back(buffers[static_cast<std::size_t>(partial.buffer)]);
        }
        // Memory: at most 2 ceil(log2 n) + 1 arenas.
        int log2 = 0;
        while ((std::int64_t{1} << log2) < range.size()) ++log2;
        CHECK(plan.buffers <= 2 * log2 + 1);
        // Of a whole subtree just what any order of work needs: log2 n + 1.
        const bool aligned = range.size() == std::int64_t{1} << log2 && range.first % range.size() == 0;
        if (aligned) CHECK(plan.buffers == log2 + 1);
        if (!plan.partials.empty()) CHECK(plan.partials.front().buffer == 0);
      }
      const auto programs = combine_programs(micro_batches, nodes);
      CHECK(programs.size() == 1);
      std::vector<std::string> registers(16);
      for (const auto& i : programs.front().instructions) {
        using Operation = CombineProgram::Operation;
        const auto at = [](int index) { return static_cast<std::size_t>(index); };
        auto& target = registers[at(i.target)];
        switch (i.operation) {
          case Operation::load:
            target = names[at(i.a)];
            break;
          case Operation::add_sources:
            target = "(" + names[at(i.a)] + "+" + names[at(i.b)] + ")";
            break;
          case Operation::add_source:
            target = "(" + target + "+" + names[at(i.a)] + ")";
            break;
          case Operation::add_register:
            target = "(" + target + "+" + registers[at(i.a)] + ")";
            break;
          case Operation::add_source_to_register:
            target = "(" + names[at(i.a)] + "+" + registers[at(i.b)] + ")";
            break;
        }
      }
      CHECK(registers.front() == name_of_sum(micro_batches));
    }
  }
}

TEST_CASE("a program may put its result where its first source lies") {
  constexpr std::size_t kCount = 2500;  // two blocks and a rest
  for (int n = 1; n <= 19; ++n) {
    std::vector<TreeNode> nodes;
    std::vector<std::vector<float>> values;
    for (int i = 0; i < n; ++i) {
      nodes.push_back({0, i});
      values.emplace_back(kCount);
      for (std::size_t e = 0; e < kCount; ++e) values.back()[e] = test::gradient_value(0, i, e, false);
    }
    std::vector<float> expected(kCount);
    for (std::size_t e = 0; e < kCount; ++e) {
      std::vector<float> leaves;
      for (const auto& v : values) leaves.push_back(v[e]);
      expected[e] = test::serial_canonical_sum(leaves);
    }
    std::vector<const float*> sources;
    for (const auto& v : values) sources.push_back(v.data());
    const auto program = combine_programs(n, nodes).front();
    run(program, sources, values[0].data(), kCount);
    CHECK(values[0] == expected);
  }
}

}  // namespace lockstep
