// In place of checkpoint/image_layout.cpp: HDF5 lays out the same entries once, and again in each thousandth
// job, to see that what was kept is still what it makes.

#define lay_out lay_out_by_hdf5
#include "../../src/checkpoint/image_layout.cpp"
#undef lay_out

#include <algorithm>
#include <cstring>
#include <utility>

namespace lockstep {

ImageLayout lay_out(const std::vector<Entry>& entries);

namespace {

struct Kept {
  std::string key;
  ImageLayout layout;
};

std::string key_of(const std::vector<Entry>& entries) {
  std::string key;
  for (const Entry& entry : entries) {
    key += entry.path;
    key += static_cast<char>('0' + static_cast<int>(entry.type));
    for (const std::int64_t length : entry.shape)
      key.append(reinterpret_cast<const char*>(&length), sizeof length);
    key += '\n';
  }
  return key;
}

ImageLayout copy_of(const ImageLayout& layout) {
  ImageLayout copy{layout.offsets, PageBuffer(layout.bytes.size())};
  std::ranges::copy(layout.bytes.bytes(), copy.bytes.data());
  return copy;
}

}  // namespace

ImageLayout lay_out(const std::vector<Entry>& entries) {
  constexpr long kEach = 1000;
  static long calls = 0;
  static std::vector<Kept> kept;
  const std::string key = key_of(entries);
  auto found = std::ranges::find(kept, key, &Kept::key);
  const bool anew = ++calls % kEach == 0;
  if (found == kept.end()) {
    kept.push_back({key, lay_out_by_hdf5(entries)});
    found = kept.end() - 1;
  } else if (anew) {
    const ImageLayout again = lay_out_by_hdf5(entries);
    if (again.offsets != found->layout.offsets ||
        !std::ranges::equal(again.bytes.bytes(), found->layout.bytes.bytes())) {
      throw InternalError("equal entries are laid out in two ways");
    }
  }
  return copy_of(found->layout);
}

}  // namespace lockstep
