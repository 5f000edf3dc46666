#include <algorithm>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/hooks/feeds.hpp>

namespace lockstep {

const Feeds::Fed* Feeds::find(std::string_view name) const noexcept {
  const auto found = std::ranges::find(fed_, name, &Fed::name);
  return found == fed_.end() ? nullptr : &*found;
}

void Feeds::add_bytes(std::string_view name, const std::type_info& type, std::span<const std::byte> bytes) {
  if (find(name) != nullptr) {
    throw UsageError(
        fmt::format("'{}' is fed twice in one step; feed each name once, from the call of run or from one "
                    "hook",
                    name));
  }
  fed_.push_back({std::string(name), &type, bytes});
}

std::span<const std::byte> Feeds::find_bytes(std::string_view name, const std::type_info& type) const {
  const Fed* found = find(name);
  if (found == nullptr) {
    std::string known;
    for (const Fed& fed : fed_) known += (known.empty() ? "" : ", ") + fed.name;
    throw UsageError(fmt::format("nothing named '{}' is fed to this step; what is fed: {}", name,
                                 known.empty() ? "nothing" : known));
  }
  if (*found->type != type) {
    throw UsageError(fmt::format("'{}' is fed as values of another type than the step takes it for", name));
  }
  return found->bytes;
}

}  // namespace lockstep
