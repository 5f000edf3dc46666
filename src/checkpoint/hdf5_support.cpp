#include "hdf5_support.hpp"

#include <cstring>

namespace lockstep {
namespace {

// HDF5 asks these for memory whenever it would copy the image; all its copies are the one that we have.

void* image_allocate(std::size_t size, H5FD_file_image_op_t, void* user) {
  const auto* image = static_cast<std::span<std::byte>*>(user);
  return size == image->size() ? image->data() : nullptr;
}

void* image_copy(void* to, const void* from, std::size_t size, H5FD_file_image_op_t, void*) {
  if (to != from) std::memcpy(to, from, size);
  return to;
}

void* image_resize(void*, std::size_t, H5FD_file_image_op_t, void*) {
  return nullptr;
}
herr_t image_free(void*, H5FD_file_image_op_t, void*) {
  return 0;
}
void* same_user_data(void* user) {
  return user;
}
herr_t keep_user_data(void*) {
  return 0;
}

}  // namespace

hid_t stored_number_type(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return H5T_IEEE_F32LE;
    case ElementType::f64:
      return H5T_IEEE_F64LE;
    case ElementType::i32:
      return H5T_STD_I32LE;
    case ElementType::i64:
      return H5T_STD_I64LE;
    case ElementType::u8:
      return H5T_STD_U8LE;
    case ElementType::text:
      break;
  }
  return H5I_INVALID_HID;
}

Hdf5Handle open_image(std::span<std::byte> bytes) {
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // No backing store: the name below is never opened.
  constexpr std::size_t kIncrement = 64 << 10;
  if (H5Pset_fapl_core(access.get(), kIncrement, 0) < 0) return {H5I_INVALID_HID, H5Fclose};
  // HDF5 keeps a pointer to the span only as long as the property list or the file is open; both end with the
  // call or copy the pointer into the file, which has done all its copies by then.
  H5FD_file_image_callbacks_t callbacks{};
  callbacks.image_malloc = image_allocate;
  callbacks.image_memcpy = image_copy;
  callbacks.image_realloc = image_resize;
  callbacks.image_free = image_free;
  callbacks.udata_copy = same_user_data;
  callbacks.udata_free = keep_user_data;
  callbacks.udata = &bytes;
  if (H5Pset_file_image_callbacks(access.get(), &callbacks) < 0 ||
      H5Pset_file_image(access.get(), bytes.data(), bytes.size()) < 0) {
    return {H5I_INVALID_HID, H5Fclose};
  }
  return {H5Fopen("checkpoint-in-memory", H5F_ACC_RDONLY, access.get()), H5Fclose};
}

}  // namespace lockstep
