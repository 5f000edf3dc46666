#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/page_buffer.hpp>
#include <lockstep/state/state.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kMaxNameLength = 200;
constexpr std::size_t kMaxDimensions = 8;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 40;  // far from overflow, beyond any memory

std::size_t aligned(std::size_t elements) {
  return (elements + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

void check_name(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == '/';
  };
  const bool good =
      !name.empty() && name.size() <= kMaxNameLength && name.front() != '/' && name.back() != '/' &&
      name.find("//") == std::string::npos && ("/" + name + "/").find("/./") == std::string::npos &&
      ("/" + name + "/").find("/../") == std::string::npos && std::all_of(name.begin(), name.end(), allowed);
  if (!good) {
    throw UsageError(fmt::format(
        "'{}' is no tensor name; use at most {} letters, digits, '_', '-', '.' with '/' between parts", name,
        kMaxNameLength));
  }
}

void check_shape(const std::string& name, const Shape& shape) {
  const bool good = shape.size() <= kMaxDimensions &&
                    std::all_of(shape.begin(), shape.end(), [](std::int64_t n) { return n >= 1; });
  if (!good) {
    throw UsageError(
        fmt::format("tensor '{}' has shape {}; every one of at most {} dimensions must be at least 1", name,
                    to_string(shape), kMaxDimensions));
  }
  std::int64_t room = kMaxElements;
  for (const std::int64_t n : shape) room /= n;
  if (room == 0) {
    throw UsageError(fmt::format("tensor '{}' has shape {}; a tensor has at most {} elements", name,
                                 to_string(shape), kMaxElements));
  }
}

const std::string& key_of(const std::string& name) {
  return name;
}
template <class Value>
const std::string& key_of(const std::pair<const std::string, Value>& item) {
  return item.first;
}

/// HDF5 stores paths: one name cannot also be the folder of another. `names` is ordered.
template <class Names>
void check_folders(std::string_view what, const std::string& name, const Names& names) {
  const auto refuse = [&](const std::string& folder, const std::string& inside) {
    throw UsageError(
        fmt::format("{} '{}' is a folder of {} '{}'; rename one of them", what, folder, what, inside));
  };
  for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    if (names.contains(name.substr(0, slash))) refuse(name.substr(0, slash), name);
  }
  const auto inside = names.lower_bound(name + "/");
  if (inside == names.end()) return;
  const std::string& other = key_of(*inside);
  if (other.starts_with(name + "/")) refuse(name, other);
}

}  // namespace

std::int64_t element_count(const Shape& shape) noexcept {
  std::int64_t count = 1;
  for (const std::int64_t n : shape) count *= n;
  return count;
}

std::string to_string(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::size_t size_in_bytes(ElementType type) noexcept {
  switch (type) {
    case ElementType::f32:
    case ElementType::i32:
      return 4;
    case ElementType::f64:
    case ElementType::i64:
      return 8;
    case ElementType::u8:
    case ElementType::text:
      return 1;
  }
  return 1;
}

std::string_view to_string(ElementType type) noexcept {
  switch (type) {
    case ElementType::f32:
      return "f32";
    case ElementType::f64:
      return "f64";
    case ElementType::i32:
      return "i32";
    case ElementType::i64:
      return "i64";
    case ElementType::u8:
      return "u8";
    case ElementType::text:
      return "text";
  }
  return "unknown";
}

Digest content_digest(std::span<const Entry> entries, std::string_view prefix) {
  std::vector<const Entry*> ordered;
  for (const Entry& entry : entries) {
    if (entry.path.starts_with(prefix)) ordered.push_back(&entry);
  }
  std::sort(ordered.begin(), ordered.end(),
            [](const Entry* left, const Entry* right) { return left->path < right->path; });
  Hasher hasher;
  for (const Entry* entry : ordered) {
    // Each part ends in a byte that cannot occur in it, so that no two contents give the same stream.
    hasher.update(entry->path);
    hasher.update(std::string_view("\0", 1));
    hasher.update(to_string(entry->type));
    hasher.update(to_string(entry->shape));
    hasher.update(std::string_view("\0", 1));
    hasher.update(std::span<const std::byte>(entry->data, entry->bytes()));
  }
  return hasher.digest();
}

Arena PlainAllocator::allocate(std::size_t elements) {
  if (elements == 0) return {};
  auto memory = std::make_shared<PageBuffer>(aligned(elements) * sizeof(float));
  std::memset(memory->data(), 0, memory->size());
  const std::span<float> values(reinterpret_cast<float*>(memory->data()), elements);
  return {std::move(memory), values};
}

struct State::Impl {
  struct Attached {
    std::string name;
    ElementType type;
    Shape shape;
    std::byte* data;
  };

  std::vector<std::shared_ptr<Tensor::Record>> parameter_records;
  std::vector<std::shared_ptr<Tensor::Record>> buffer_records;
  std::vector<Tensor> parameter_tensors;
  std::vector<Tensor> buffer_tensors;
  std::vector<std::string> slot_names;
  std::vector<Attached> attached;
  std::map<std::string, std::vector<double>> kept;
  std::map<std::string, std::string> settings;
  std::set<std::string> names;
  std::size_t parameter_elements = 0;
  std::size_t buffer_elements = 0;
  std::int64_t parameter_count = 0;
  bool frozen = false;
  Arena parameters;
  Arena buffers;
  std::vector<Arena> slots;
  std::string arenas_name;  // of those that are kept for nodes
  std::vector<Arena> node_arenas;
  std::vector<std::span<float>> node_values;
  std::int64_t global_step = 0;

  void check_open(const std::string& name) const {
    if (frozen) {
      throw UsageError(fmt::format(
          "'{}' was declared after the state was frozen; declare everything before the session is made",
          name));
    }
  }

  void take_name(const std::string& name) {
    check_open(name);
    check_name(name);
    if (names.count(name) != 0) {
      throw UsageError(fmt::format("tensor name '{}' was given twice; every name may be used once", name));
    }
    check_folders("tensor name", name, names);
    names.insert(name);
  }

  Tensor declare(std::vector<std::shared_ptr<Tensor::Record>>& records, std::vector<Tensor>& tensors,
                 std::size_t& elements, const std::string& name, const Shape& shape) {
    check_shape(name, shape);
    take_name(name);
    auto record = std::make_shared<Tensor::Record>();
    record->name = name;
    record->shape = shape;
    record->offset = elements;
    record->size = static_cast<std::size_t>(element_count(shape));
    elements += aligned(record->size);
    records.push_back(record);
    tensors.emplace_back(record);
    return tensors.back();
  }

  void attach(const std::string& name, ElementType type, std::byte* data, std::size_t count,
              const Shape& shape) {
    check_shape(name, shape);
    if (static_cast<std::size_t>(element_count(shape)) != count) {
      throw UsageError(fmt::format("attached tensor '{}' has {} elements (its shape {} says {})", name, count,
                                   to_string(shape), element_count(shape)));
    }
    take_name(name);
    attached.push_back({name, type, shape, data});
  }
};

State::State() : impl_(std::make_unique<Impl>()) {}
State::~State() = default;
State::State(State&&) noexcept = default;
State& State::operator=(State&&) noexcept = default;

Tensor State::parameter(const std::string& name, const Shape& shape) {
  const Tensor tensor = impl_->declare(impl_->parameter_records, impl_->parameter_tensors,
                                       impl_->parameter_elements, name, shape);
  impl_->parameter_count += element_count(shape);
  return tensor;
}

Tensor State::buffer(const std::string& name, const Shape& shape) {
  return impl_->declare(impl_->buffer_records, impl_->buffer_tensors, impl_->buffer_elements, name, shape);
}

void State::slot(const std::string& name) {
  impl_->check_open(name);
  check_name(name);
  // With a path as a name, slot "a" of tensor "b/c" and slot "a/b" of tensor "c" would be one entry.
  if (name.find('/') != std::string::npos) {
    throw UsageError(fmt::format("'{}' is no name of an optimizer slot; it may not contain '/'", name));
  }
  auto& slots = impl_->slot_names;
  if (std::find(slots.begin(), slots.end(), name) != slots.end()) {
    throw UsageError(fmt::format("optimizer slot '{}' was given twice", name));
  }
  slots.push_back(name);
}

void State::attach(const std::string& name, std::span<float> values, const Shape& shape) {
  impl_->attach(name, ElementType::f32, std::as_writable_bytes(values).data(), values.size(), shape);
}

void State::attach(const std::string& name, std::span<double> values, const Shape& shape) {
  impl_->attach(name, ElementType::f64, std::as_writable_bytes(values).data(), values.size(), shape);
}

void State::attach(const std::string& name, std::span<std::int64_t> values, const Shape& shape) {
  impl_->attach(name, ElementType::i64, std::as_writable_bytes(values).data(), values.size(), shape);
}

std::span<double> State::keep(const std::string& name, std::size_t count) {
  auto& kept = impl_->kept;
  if (const auto known = kept.find(name); known != kept.end()) {
    if (known->second.size() == count) return known->second;
    throw UsageError(
        fmt::format("'{}' was kept as {} numbers (now {} are asked for); give hooks of "
                    "different kinds different names",
                    name, known->second.size(), count));
  }
  impl_->check_open(name);
  check_name(name);
  check_shape(name, {static_cast<std::int64_t>(count)});
  check_folders("name", name, kept);
  return kept[name] = std::vector<double>(count);
}

void State::clear_kept() noexcept {
  for (auto& [name, values] : impl_->kept) std::ranges::fill(values, 0.0);
}

void State::keep_arenas(const std::string& name, int nodes) {
  impl_->check_open(name);
  check_name(name);
  if (!impl_->arenas_name.empty()) throw UsageError("arenas of nodes were declared twice");
  impl_->arenas_name = name;
  impl_->node_arenas.resize(static_cast<std::size_t>(nodes));
}

std::span<const std::span<float>> State::kept_arenas() const noexcept {
  return impl_->node_values;
}

void State::setting(const std::string& key, const std::string& value) {
  impl_->check_open(key);
  check_name(key);
  if (value.empty()) throw UsageError(fmt::format("setting '{}' has an empty value", key));
  check_folders("setting", key, impl_->settings);
  impl_->settings[key] = value;
}

const std::map<std::string, std::string>& State::settings() const noexcept {
  return impl_->settings;
}

void State::freeze(ArenaAllocator& allocator) {
  if (impl_->frozen) throw UsageError("the state was frozen twice");
  impl_->parameters = allocator.allocate(impl_->parameter_elements);
  impl_->buffers = allocator.allocate(impl_->buffer_elements);
  for (std::size_t i = 0; i < impl_->slot_names.size(); ++i) {
    impl_->slots.push_back(allocator.allocate_slot(impl_->parameter_elements));
  }
  for (std::size_t n = 0; n < impl_->node_arenas.size(); ++n) {
    impl_->node_arenas[n] = allocator.allocate_for_node(impl_->parameter_elements, static_cast<int>(n));
    impl_->node_values.push_back(impl_->node_arenas[n].values());
  }
  for (const auto& record : impl_->parameter_records) {
    record->data = impl_->parameters.values().data() + record->offset;
  }
  for (const auto& record : impl_->buffer_records) {
    record->data = impl_->buffers.values().data() + record->offset;
  }
  impl_->frozen = true;
}

bool State::frozen() const noexcept {
  return impl_->frozen;
}
std::span<float> State::parameters() const noexcept {
  return impl_->parameters.values();
}
std::span<float> State::buffers() const noexcept {
  return impl_->buffers.values();
}

std::span<float> State::slot_values(const std::string& name) const {
  const auto found = std::find(impl_->slot_names.begin(), impl_->slot_names.end(), name);
  if (found == impl_->slot_names.end() || !impl_->frozen) {
    throw InternalError("no values of optimizer slot '" + name + "'");
  }
  return impl_->slots[static_cast<std::size_t>(found - impl_->slot_names.begin())].values();
}

std::size_t State::parameter_elements() const noexcept {
  return impl_->parameter_elements;
}
std::size_t State::gradient_elements() const noexcept {
  return impl_->parameter_elements + impl_->buffer_elements;
}
std::int64_t State::parameter_count() const noexcept {
  return impl_->parameter_count;
}
const std::vector<Tensor>& State::parameter_tensors() const noexcept {
  return impl_->parameter_tensors;
}
const std::vector<Tensor>& State::buffer_tensors() const noexcept {
  return impl_->buffer_tensors;
}
const std::vector<std::string>& State::slot_names() const noexcept {
  return impl_->slot_names;
}
std::int64_t State::global_step() const noexcept {
  return impl_->global_step;
}
void State::set_global_step(std::int64_t step) noexcept {
  impl_->global_step = step;
}

std::vector<Entry> State::entries() const {
  if (!impl_->frozen) throw InternalError("State::entries before freeze");
  std::vector<Entry> entries;
  const auto bytes_of = [](float* data) { return reinterpret_cast<std::byte*>(data); };
  for (const Tensor& tensor : impl_->parameter_tensors) {
    entries.push_back(
        {"/model/" + tensor.name(), ElementType::f32, tensor.shape(), bytes_of(tensor.values().data())});
  }
  for (const auto& attached : impl_->attached) {
    entries.push_back({"/model/" + attached.name, attached.type, attached.shape, attached.data});
  }
  for (std::size_t i = 0; i < impl_->slots.size(); ++i) {
    for (const Tensor& tensor : impl_->parameter_tensors) {
      entries.push_back({"/slots/" + impl_->slot_names[i] + "/" + tensor.name(), ElementType::f32,
                         tensor.shape(), bytes_of(tensor.in(impl_->slots[i].values()).data())});
    }
  }
  for (const Tensor& tensor : impl_->buffer_tensors) {
    entries.push_back(
        {"/buffers/" + tensor.name(), ElementType::f32, tensor.shape(), bytes_of(tensor.values().data())});
  }
  entries.push_back(
      {"/session/global_step", ElementType::i64, {}, reinterpret_cast<std::byte*>(&impl_->global_step)});
  for (auto& [name, values] : impl_->kept) {
    entries.push_back({std::string(kHooksFolder) + name,
                       ElementType::f64,
                       {static_cast<std::int64_t>(values.size())},
                       std::as_writable_bytes(std::span(values)).data()});
  }
  for (std::size_t n = 0; n < impl_->node_values.size(); ++n) {
    const std::span<float> values = impl_->node_values[n];
    entries.push_back({fmt::format("{}{}/{}", kHooksFolder, impl_->arenas_name, n),
                       ElementType::f32,
                       {static_cast<std::int64_t>(values.size())},
                       bytes_of(values.data())});
  }
  for (auto& [key, value] : impl_->settings) {
    entries.push_back({"/config/" + key,
                       ElementType::text,
                       {static_cast<std::int64_t>(value.size())},
                       reinterpret_cast<std::byte*>(value.data())});
  }
  return entries;
}

Digest State::parameters_digest() const {
  return content_digest(entries(), "/model/");
}

}  // namespace lockstep
