#pragma once

#include <span>
#include <string>
#include <utility>

#include <hdf5.h>

#include <lockstep/state/entry.hpp>

namespace lockstep {

/// Owns an HDF5 identifier.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);

  Hdf5Handle(hid_t id, Close close) noexcept : id_(id), close_(close) {}
  ~Hdf5Handle() { reset(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept
      : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;

  hid_t get() const noexcept { return id_; }
  bool valid() const noexcept { return id_ >= 0; }

  void reset() noexcept {
    if (id_ >= 0) close_(id_);
    id_ = H5I_INVALID_HID;
  }

 private:
  hid_t id_;
  Close close_;
};

/// While it lives HDF5 prints nothing and loads no plug-in. The earlier settings come back.
class QuietHdf5 {
 public:
  QuietHdf5() noexcept {
    H5open();
    H5Eget_auto2(H5E_DEFAULT, &report_, &report_data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    H5PLget_loading_state(&plugins_);
    H5PLset_loading_state(0);
  }
  ~QuietHdf5() {
    H5PLset_loading_state(plugins_);
    H5Eset_auto2(H5E_DEFAULT, report_, report_data_);
  }
  QuietHdf5(const QuietHdf5&) = delete;
  QuietHdf5& operator=(const QuietHdf5&) = delete;

 private:
  H5E_auto2_t report_ = nullptr;
  void* report_data_ = nullptr;
  unsigned plugins_ = 0;
};

/// The type of a number in the file; invalid for text. Not owned.
hid_t stored_number_type(ElementType type);

/// Opens bytes in memory as an HDF5 file, without a copy. They are not written to, and must outlive the
/// handle.
Hdf5Handle open_image(std::span<std::byte> bytes);

}  // namespace lockstep
