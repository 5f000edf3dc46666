#include "image_file.hpp"

#include <algorithm>
#include <cstddef>

#include <lockstep/base/error.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{256} << 10;    // stays in the second-level cache
constexpr std::size_t kWriteBackBytes = std::size_t{8} << 20;  // the disk works while the rest is digested

}  // namespace

Trailer write_image_file(Directory& directory, const std::string& name, const CheckpointImage& image,
                         const Stamp& stamp, const MacKey* key, bool verify) {
  TrailerWriter trailer(image.index(), key);
  const auto file = directory.create(name);
  std::size_t waiting = 0;
  for (auto rest = image.bytes(); !rest.empty();) {
    const auto piece = rest.first(std::min(rest.size(), kPieceBytes));
    trailer.add(piece);  // just before the piece is written, so that it is read from memory once
    file->write(piece);
    rest = rest.subspan(piece.size());
    if (waiting += piece.size(); waiting >= kWriteBackBytes) {
      file->start_writing_back();
      waiting = 0;
    }
  }
  const auto end = trailer.finish(stamp);
  file->write(end);
  file->sync();
  file->close();
  Trailer whole;
  static_cast<Stamp&>(whole) = stamp;
  whole.file_bytes = image.bytes().size() + end.size();
  whole.digest = trailer.digest();
  if (verify && verify_file(*directory.open(name), name, key).digest != whole.digest) {
    throw DataError(name + " does not hold what was just written to it");
  }
  return whole;
}

}  // namespace lockstep
