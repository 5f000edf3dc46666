#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lockstep {

/// A node of the canonical tree over M micro-batches: the leaves are level 0; node `index` of a level is the
/// sum of nodes 2 index and 2 index + 1 of the level below, or the former alone where the latter does not
/// exist (an odd one passes up unchanged). The tree depends on M alone, so a sum that follows it has the same
/// bits whoever computes which part.
struct TreeNode {
  int level = 0;
  std::int64_t index = 0;
  friend bool operator==(const TreeNode&, const TreeNode&) = default;
};

/// Micro-batches first, first + 1, ..., last - 1.
struct MicroBatchRange {
  std::int64_t first = 0;
  std::int64_t last = 0;
  std::int64_t size() const noexcept { return last - first; }
};

/// The contiguous range of `micro_batches` that the worker at `position` of `workers` computes: as even as
/// can be; workers beyond the number of micro-batches get none. Local.
MicroBatchRange owned_range(std::int64_t micro_batches, int position, int workers) noexcept;

/// How one rank adds up the micro-batches it owns, without knowing any other's: after each micro-batch, the
/// partial sums that are neighbours in the tree are added. Some stay over, to be added to those of other
/// ranks.
struct FoldPlan {
  struct Add {
    int into = 0;  ///< buffer += buffer
    int from = 0;
  };
  struct Step {
    int buffer = 0;         ///< where this micro-batch's gradient goes
    std::vector<Add> adds;  ///< then these, in order
  };
  struct Partial {
    TreeNode node;
    int buffer = 0;
  };

  std::vector<Step> steps;        ///< one a micro-batch of the range, in order
  std::vector<Partial> partials;  ///< what is left over, in the order of their leaves
  int buffers = 0;                ///< how many gradient arenas are needed at once
};

FoldPlan fold_plan(std::int64_t micro_batches, MicroBatchRange range);

/// The fewest nodes of the tree that together have the leaves of `range`, in their order: what is left over
/// when all of them are added up as far as the tree allows, whoever did that and in which parts.
std::vector<TreeNode> cover(std::int64_t micro_batches, MicroBatchRange range);

/// How partial sums combine: one node of the tree as a program over numbered sources. Instructions work on a
/// block of elements in registers that hold one block each; register 0 ends as the result.
struct CombineProgram {
  enum class Operation : std::uint8_t {
    load,                    ///< register = source a
    add_sources,             ///< register = source a + source b
    add_source,              ///< register += source a
    add_register,            ///< register += register a
    add_source_to_register,  ///< register = source a + register b
  };
  struct Instruction {
    Operation operation;
    int target;
    int a;
    int b;
  };

  TreeNode node;
  std::vector<Instruction> instructions;
  int registers = 0;
  std::vector<int> sources;  ///< the sources used, in the order of their leaves
};

/// Adds up as far as the tree allows the nodes `sources`, which are given in the order of their leaves
/// without gaps. One program a node that is left over; a single one for the root when the sources cover all
/// micro-batches.
std::vector<CombineProgram> combine_programs(std::int64_t micro_batches, std::span<const TreeNode> sources);

/// Runs `program` for elements 0 ... count - 1: `sources[i]` points to the first element of source i.
/// `result` may be the memory of one of them. Local; does not allocate for up to 8 registers.
void run(const CombineProgram& program, std::span<const float* const> sources, float* result,
         std::size_t count);

/// into += from. Local.
void add(std::span<float> into, std::span<const float> from) noexcept;

}  // namespace lockstep
