#include "image_layout.hpp"

#include <map>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>

#include "hdf5_support.hpp"

namespace lockstep {
namespace {

template <class Id>
Id check(Id result, std::string_view what) {
  if (result < 0) throw InternalError(fmt::format("laying out a checkpoint: HDF5 cannot {}", what));
  return result;
}

/// The folders of a file, opened or created on the way to a path.
class Folders {
 public:
  explicit Folders(hid_t file)
      : properties_(check(H5Pcreate(H5P_GROUP_CREATE), "make properties"), H5Pclose), file_(file) {
    check(H5Pset_obj_track_times(properties_.get(), false), "leave out times");
  }

  hid_t parent_of(const std::string& path) {
    const auto slash = path.rfind('/');
    if (slash == 0 || slash == std::string::npos) return file_;
    const std::string folder = path.substr(0, slash);
    if (const auto found = open_.find(folder); found != open_.end()) return found->second.get();
    const hid_t parent = parent_of(folder);
    Hdf5Handle made(H5Gcreate2(parent, folder.substr(folder.rfind('/') + 1).c_str(), H5P_DEFAULT,
                               properties_.get(), H5P_DEFAULT),
                    H5Gclose);
    if (!made.valid()) {
      throw UsageError(fmt::format("'{}' is both a tensor and a folder of '{}'; rename one", folder, path));
    }
    return open_.emplace(folder, std::move(made)).first->second.get();
  }

 private:
  Hdf5Handle properties_;
  std::map<std::string, Hdf5Handle> open_;
  hid_t file_;
};

Hdf5Handle make_type(const Entry& entry) {
  if (entry.type != ElementType::text) {
    return {check(H5Tcopy(stored_number_type(entry.type)), "copy a type"), H5Tclose};
  }
  Hdf5Handle type(check(H5Tcopy(H5T_C_S1), "copy a type"), H5Tclose);
  check(H5Tset_size(type.get(), entry.bytes()), "set the length of a text");
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "set the end of a text");
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "set the encoding of a text");
  return type;
}

Hdf5Handle make_space(const Entry& entry) {
  if (entry.type == ElementType::text || entry.shape.empty()) {
    return {check(H5Screate(H5S_SCALAR), "make a shape"), H5Sclose};
  }
  const std::vector<hsize_t> dimensions(entry.shape.begin(), entry.shape.end());
  return {check(H5Screate_simple(static_cast<int>(dimensions.size()), dimensions.data(), nullptr),
                "make a shape"),
          H5Sclose};
}

}  // namespace

ImageLayout lay_out(const std::vector<Entry>& entries) {
  const QuietHdf5 quiet;
  ImageLayout layout;
  std::size_t data_bytes = 0;
  for (const Entry& entry : entries) data_bytes += entry.bytes();

  Hdf5Handle access(check(H5Pcreate(H5P_FILE_ACCESS), "make properties"), H5Pclose);
  // In memory alone. It grows in few steps: each may move everything.
  constexpr std::size_t kIncrement = 64 << 10;
  check(H5Pset_fapl_core(access.get(), kIncrement + data_bytes / 8, 0), "work in memory");
  // The old superblock: with the newer ones HDF5 1.10 hands out images whose superblock has a stale checksum.
  check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_EARLIEST, H5F_LIBVER_V18), "choose the format");
  // Values start on cache lines, which makes the copies of a snapshot faster.
  constexpr hsize_t kAlignFrom = 1024;
  constexpr hsize_t kAlignment = 64;
  check(H5Pset_alignment(access.get(), kAlignFrom, kAlignment), "align values");
  Hdf5Handle file(check(H5Fcreate("checkpoint-in-memory", H5F_ACC_TRUNC, H5P_DEFAULT, access.get()),
                        "make a file in memory"),
                  H5Fclose);

  Hdf5Handle properties(check(H5Pcreate(H5P_DATASET_CREATE), "make properties"), H5Pclose);
  check(H5Pset_layout(properties.get(), H5D_CONTIGUOUS), "choose a layout");
  check(H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY), "allocate early");
  check(H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER), "leave out fill values");
  check(H5Pset_obj_track_times(properties.get(), false), "leave out times");

  {
    Folders folders(file.get());
    layout.offsets.reserve(entries.size());
    for (const Entry& entry : entries) {
      const Hdf5Handle type = make_type(entry);
      const Hdf5Handle space = make_space(entry);
      const std::string leaf = entry.path.substr(entry.path.rfind('/') + 1);
      const Hdf5Handle dataset(H5Dcreate2(folders.parent_of(entry.path), leaf.c_str(), type.get(),
                                          space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                               H5Dclose);
      if (!dataset.valid()) {
        throw UsageError(fmt::format(
            "'{}' cannot be kept in a checkpoint: the name is taken by another tensor or a folder",
            entry.path));
      }
      const haddr_t offset = H5Dget_offset(dataset.get());
      if (offset == HADDR_UNDEF) {
        throw InternalError(fmt::format("laying out a checkpoint: HDF5 gave no place to '{}'", entry.path));
      }
      layout.offsets.push_back(static_cast<std::size_t>(offset));
    }
  }

  check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), "flush to memory");
  const ssize_t size = check(H5Fget_file_image(file.get(), nullptr, 0), "tell the size");
  layout.bytes = PageBuffer(static_cast<std::size_t>(size));
  check(H5Fget_file_image(file.get(), layout.bytes.data(), layout.bytes.size()), "hand out the bytes");
  return layout;
}

}  // namespace lockstep
