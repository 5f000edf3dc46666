#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <lockstep/base/digest.hpp>
#include <lockstep/state/arena.hpp>
#include <lockstep/state/entry.hpp>
#include <lockstep/state/tensor.hpp>

namespace lockstep {

/// Everything that training changes and a checkpoint keeps: parameters, optimizer slots, buffers, memory that
/// the user attached, the global step, and the settings that a resumed run must share.
///
/// Built before the session (declare, then `freeze`, which the session calls if nobody did); afterwards
/// shapes are fixed and only values change. Every rank declares the same things in the same order. Not
/// thread-safe. All functions are local, but `freeze` is as collective as its allocator. Declaring after
/// `freeze`, a name given twice, and a bad name or shape throw UsageError.
class State {
 public:
  State();
  ~State();
  State(State&&) noexcept;
  State& operator=(State&&) noexcept;

  /// A trained tensor of floats. `name` is a path such as "dense0/weight" of letters, digits, '_', '-', '.'.
  Tensor parameter(const std::string& name, const Shape& shape);

  /// Floats that are kept but not trained by the optimizer (running statistics).
  Tensor buffer(const std::string& name, const Shape& shape);

  /// One float for each parameter element, kept by the optimizer under this name ("velocity").
  void slot(const std::string& name);

  /// Memory that the user owns, saved and restored under /model/NAME. Must outlive the State.
  void attach(const std::string& name, std::span<float> values, const Shape& shape);
  void attach(const std::string& name, std::span<double> values, const Shape& shape);
  void attach(const std::string& name, std::span<std::int64_t> values, const Shape& shape);

  /// Numbers that a hook wants to find again after a restart, zeros at first, saved under
  /// /session/hooks/NAME. A checkpoint need not have them, and may have others. Asked for again by the same
  /// name and count, also after `freeze`, gives the same memory; it lives as long as the State.
  std::span<double> keep(const std::string& name, std::size_t count);
  void clear_kept() noexcept;  ///< zeros again, for a session that is made anew

  /// An arena of floats like the parameters for each of `nodes`, in which a node keeps what belongs to it and
  /// its ranks alone (the rounding errors of gradients). Saved under /session/hooks/NAME/NODE; a checkpoint
  /// need not have them, and may have those of other nodes. Before `freeze`.
  void keep_arenas(const std::string& name, int nodes);
  std::span<const std::span<float>> kept_arenas() const noexcept;  ///< of each node

  /// A setting that is saved under /config/KEY and must be equal on resume, such as "seed" or "model".
  void setting(const std::string& key, const std::string& value);
  const std::map<std::string, std::string>& settings() const noexcept;

  void freeze(ArenaAllocator& allocator);
  bool frozen() const noexcept;

  /// The parameter arena, padding (zeros) included. Needs `freeze`.
  std::span<float> parameters() const noexcept;
  std::span<float> buffers() const noexcept;
  std::span<float> slot_values(const std::string& name) const;
  std::size_t parameter_elements() const noexcept;  ///< of the arena, padding included

  /// Of an arena for gradients and what is added to the buffers, which lie behind them.
  std::size_t gradient_elements() const noexcept;
  std::int64_t parameter_count() const noexcept;  ///< without padding

  const std::vector<Tensor>& parameter_tensors() const noexcept;  ///< in the order of their offsets
  const std::vector<Tensor>& buffer_tensors() const noexcept;
  const std::vector<std::string>& slot_names() const noexcept;

  /// Number of parameter updates so far. Advanced by the session alone.
  std::int64_t global_step() const noexcept;
  void set_global_step(std::int64_t step) noexcept;

  /// What a checkpoint holds, in a fixed order; the entries point into this State. Needs `freeze`.
  std::vector<Entry> entries() const;

  /// Digest of the parameters and attached memory ("/model/"). Needs `freeze`.
  Digest parameters_digest() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
