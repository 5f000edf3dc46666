#include <algorithm>
#include <array>
#include <utility>

#include <lockstep/base/error.hpp>
#include <lockstep/reduce/canonical_tree.hpp>

namespace lockstep {
namespace {

std::int64_t nodes_at(int level, std::int64_t micro_batches) noexcept {
  const std::int64_t width = std::int64_t{1} << level;
  return (micro_batches + width - 1) / width;
}

/// What to do with `top`, the newest of a stack of nodes whose one below is `below` (or null).
enum class Climb { stop, join, pass };

Climb climb(std::int64_t micro_batches, const TreeNode& top, const TreeNode* below) noexcept {
  const std::int64_t count = nodes_at(top.level, micro_batches);
  if (count == 1) return Climb::stop;  // the root
  if (top.index % 2 == 0) return top.index == count - 1 ? Climb::pass : Climb::stop;
  return below != nullptr && *below == TreeNode{top.level, top.index - 1} ? Climb::join : Climb::stop;
}

TreeNode parent(const TreeNode& node) noexcept {
  return {node.level + 1, node.index / 2};
}

/// sum = a + b; `sum` may be `a` or `b` themselves, but not overlap them otherwise, so iterations are
/// independent.
void add_blocks(const float* a, const float* b, float* sum, std::size_t count) noexcept {
#if !defined(__clang__)  // clang finds out at run time that they do not overlap
#pragma GCC ivdep
#endif
  for (std::size_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
}

/// Appends `more` with all its registers moved up by one.
void append_shifted(std::vector<CombineProgram::Instruction>& instructions,
                    const std::vector<CombineProgram::Instruction>& more) {
  using Operation = CombineProgram::Operation;
  for (CombineProgram::Instruction instruction : more) {
    ++instruction.target;
    if (instruction.operation == Operation::add_register) ++instruction.a;
    if (instruction.operation == Operation::add_source_to_register) ++instruction.b;
    instructions.push_back(instruction);
  }
}

}  // namespace

MicroBatchRange owned_range(std::int64_t micro_batches, int position, int workers) noexcept {
  const std::int64_t active = std::min<std::int64_t>(workers, micro_batches);
  if (position >= active) return {micro_batches, micro_batches};
  return {micro_batches * position / active, micro_batches * (position + 1) / active};
}

FoldPlan fold_plan(std::int64_t micro_batches, MicroBatchRange range) {
  FoldPlan plan;
  std::vector<int> free;
  for (std::int64_t leaf = range.first; leaf < range.last; ++leaf) {
    if (free.empty()) free.push_back(plan.buffers++);
    // The lowest free one, so that the buffer of the first partial sum is always number 0.
    std::sort(free.begin(), free.end(), std::greater<>());
    FoldPlan::Step step{free.back(), {}};
    free.pop_back();
    plan.partials.push_back({{0, leaf}, step.buffer});
    for (;;) {
      auto& partials = plan.partials;
      FoldPlan::Partial& top = partials.back();
      const TreeNode* below = partials.size() < 2 ? nullptr : &partials[partials.size() - 2].node;
      const Climb next = climb(micro_batches, top.node, below);
      if (next == Climb::stop) break;
      if (next == Climb::pass) {
        top.node = parent(top.node);
        continue;
      }
      FoldPlan::Partial& left = partials[partials.size() - 2];
      step.adds.push_back({left.buffer, top.buffer});
      free.push_back(top.buffer);
      left.node = parent(left.node);
      partials.pop_back();
    }
    plan.steps.push_back(std::move(step));
  }
  return plan;
}

std::vector<TreeNode> cover(std::int64_t micro_batches, MicroBatchRange range) {
  std::vector<TreeNode> nodes;
  TreeNode root;
  while (nodes_at(root.level, micro_batches) > 1) ++root.level;
  std::vector<TreeNode> rest{root};  // the last one has the first leaves
  while (!rest.empty()) {
    const TreeNode node = rest.back();
    rest.pop_back();
    const std::int64_t first = node.index << node.level;
    const std::int64_t last = std::min((node.index + 1) << node.level, micro_batches);
    if (last <= range.first || first >= range.last) continue;
    if (first >= range.first && last <= range.last) {
      nodes.push_back(node);
      continue;
    }
    const TreeNode right{node.level - 1, 2 * node.index + 1};
    if (right.index < nodes_at(right.level, micro_batches)) rest.push_back(right);
    rest.push_back({node.level - 1, 2 * node.index});
  }
  return nodes;
}

std::vector<CombineProgram> combine_programs(std::int64_t micro_batches, std::span<const TreeNode> sources) {
  using Operation = CombineProgram::Operation;
  // A partial result is either still a plain source or sits in a register.
  struct Item {
    TreeNode node;
    int source = -1;  // or -1: in a register
    int at = 0;       // that register
    CombineProgram program;
  };
  std::vector<Item> stack;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const int source = static_cast<int>(i);
    stack.push_back({sources[i], source, 0, {sources[i], {}, 0, {source}}});
    for (;;) {
      const TreeNode* below = stack.size() < 2 ? nullptr : &stack[stack.size() - 2].node;
      const Climb next = climb(micro_batches, stack.back().node, below);
      if (next == Climb::stop) break;
      if (next == Climb::pass) {
        stack.back().node = parent(stack.back().node);
        continue;
      }
      Item right = std::move(stack.back());
      stack.pop_back();
      Item& left = stack.back();
      CombineProgram& program = left.program;
      if (left.source >= 0 && right.source >= 0) {
        program.instructions.push_back({Operation::add_sources, 0, left.source, right.source});
        program.registers = 1;
      } else if (right.source >= 0) {
        program.instructions.push_back({Operation::add_source, 0, right.source, 0});
      } else {
        append_shifted(program.instructions, right.program.instructions);
        program.instructions.push_back(
            left.source >= 0
                ? CombineProgram::Instruction{Operation::add_source_to_register, 0, left.source, 1}
                : CombineProgram::Instruction{Operation::add_register, 0, 1, 0});
        program.registers = std::max(program.registers, right.program.registers + 1);
      }
      program.sources.insert(program.sources.end(), right.program.sources.begin(),
                             right.program.sources.end());
      left.source = -1;
      left.node = parent(left.node);
    }
  }
  std::vector<CombineProgram> programs;
  for (Item& item : stack) {
    item.program.node = item.node;
    if (item.source >= 0) {
      item.program.instructions.push_back({Operation::load, 0, item.source, 0});
      item.program.registers = 1;
    }
    programs.push_back(std::move(item.program));
  }
  return programs;
}

void add(std::span<float> into, std::span<const float> from) noexcept {
  float* __restrict target = into.data();
  const float* __restrict source = from.data();
  for (std::size_t i = 0; i < from.size(); ++i) target[i] += source[i];
}

void run(const CombineProgram& program, std::span<const float* const> sources, float* result,
         std::size_t count) {
  using Operation = CombineProgram::Operation;
  constexpr std::size_t kBlock = 1024;  // 4 KiB a register: all of them stay in the first-level cache
  constexpr int kInlineRegisters = 8;
  alignas(64) std::array<float, kBlock * kInlineRegisters> inline_registers;
  std::vector<float> more;
  float* spare = inline_registers.data();
  if (program.registers > kInlineRegisters) {
    more.resize(kBlock * static_cast<std::size_t>(program.registers));
    spare = more.data();
  }
  if (program.instructions.size() == 1) {
    const auto& only = program.instructions[0];
    const float* a = sources[static_cast<std::size_t>(only.a)];
    if (only.operation == Operation::add_sources) {
      add_blocks(a, sources[static_cast<std::size_t>(only.b)], result, count);
    } else if (result != a) {
      std::copy_n(a, count, result);
    }
    return;
  }
  // Register 0 is the result itself. The first source may lie in the same memory: whatever writes register
  // 0 first reads the first source in the same instruction, and nothing reads it later. Where a later source
  // lies there, register 0 is copied in the end.
  const bool apart = std::any_of(program.sources.begin() + 1, program.sources.end(), [&](int source) {
    return sources[static_cast<std::size_t>(source)] == result;
  });
  for (std::size_t start = 0; start < count; start += kBlock) {
    const std::size_t n = std::min(kBlock, count - start);
    const auto block = [&](int i) {
      return i == 0 && !apart ? result + start : spare + kBlock * static_cast<std::size_t>(i);
    };
    const auto source = [&](int i) { return sources[static_cast<std::size_t>(i)] + start; };
    for (const auto& instruction : program.instructions) {
      float* target = block(instruction.target);
      switch (instruction.operation) {
        case Operation::load:
          std::copy_n(source(instruction.a), n, target);
          break;
        case Operation::add_sources:
          add_blocks(source(instruction.a), source(instruction.b), target, n);
          break;
        case Operation::add_source:
          add_blocks(target, source(instruction.a), target, n);
          break;
        case Operation::add_register:
          add_blocks(target, block(instruction.a), target, n);
          break;
        case Operation::add_source_to_register:
          add_blocks(source(instruction.a), block(instruction.b), target, n);
          break;
      }
    }
    if (apart) std::copy_n(spare, n, result + start);
  }
}

}  // namespace lockstep
