#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

namespace lockstep {

/// Named values that are handed to one step, by the caller of `run` and by hooks (feed_dict of
/// tf.train.SessionRunArgs). Holds no copies: what is fed must stay as it is until the step has ended.
///
/// Local: each rank feeds its own step, and may feed other values than the others.
class Feeds {
 public:
  /// Throws UsageError for a name that is fed already.
  template <class T>
  void add(std::string_view name, std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    add_bytes(name, typeid(T), std::as_bytes(values));
  }

  /// Throws UsageError when nothing of this name is fed, naming what is, or values of another type.
  template <class T>
  std::span<const T> get(std::string_view name) const {
    const auto bytes = find_bytes(name, typeid(T));
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }

  bool has(std::string_view name) const noexcept { return find(name) != nullptr; }
  std::size_t size() const noexcept { return fed_.size(); }
  void clear() noexcept { fed_.clear(); }

 private:
  struct Fed {
    std::string name;
    const std::type_info* type;
    std::span<const std::byte> bytes;
  };

  const Fed* find(std::string_view name) const noexcept;
  void add_bytes(std::string_view name, const std::type_info& type, std::span<const std::byte> bytes);
  std::span<const std::byte> find_bytes(std::string_view name, const std::type_info& type) const;

  std::vector<Fed> fed_;
};

}  // namespace lockstep
