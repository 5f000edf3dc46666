#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <stdlib.h>
#include <unistd.h>

#include <lockstep/base/files.hpp>

namespace lockstep::test {

/// Where folders of tests go: memory where there is some, since sessions sync hundreds of files.
inline std::filesystem::path scratch() {
  const char* memory = "/dev/shm";
  return ::access(memory, W_OK) == 0 ? std::filesystem::path(memory) : std::filesystem::temp_directory_path();
}

/// An empty folder that goes away with its content.
class Folder {
 public:
  Folder() {
    std::string name = (scratch() / "lockstep-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path path;
};

/// An event as far as these tests look: its step, and the tag of its first value (or what else it is).
struct Event {
  std::int64_t step = 0;
  std::string tag;  ///< or "start", "checkpoint"
  float value = 0;
};

namespace detail {

inline std::uint64_t varint(std::string_view& in) {
  std::uint64_t value = 0;
  for (int shift = 0; !in.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(in.front());
    in.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) break;
  }
  return value;
}

/// The next field of a message in the wire format of protocol buffers.
struct Field {
  std::uint64_t number = 0;
  std::uint64_t integer = 0;
  std::string_view bytes;
};

inline Field next_field(std::string_view& in) {
  Field field;
  const std::uint64_t key = varint(in);
  field.number = key >> 3;
  std::size_t length = 0;
  switch (key & 7) {
    case 0:
      field.integer = varint(in);
      return field;
    case 1:
      length = 8;
      break;
    case 5:
      length = 4;
      break;
    default:
      length = varint(in);
  }
  field.bytes = in.substr(0, length);
  in.remove_prefix(std::min(length, in.size()));
  return field;
}

}  // namespace detail

/// All events of all event files of a folder but the version.
inline std::vector<Event> events_in(const std::filesystem::path& folder) {
  std::vector<Event> events;
  PosixFileSystem files;
  for (const auto& entry : files.open_directory(folder)->list()) {
    if (!entry.name.starts_with("events.out.tfevents.")) continue;
    const auto bytes = read_all(*files.open_file(folder / entry.name), 1 << 26);
    std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    while (rest.size() >= 16) {
      std::uint64_t length = 0;
      std::memcpy(&length, rest.data(), sizeof length);
      std::string_view event = rest.substr(12, length);
      rest.remove_prefix(16 + length);
      Event found;
      bool is_version = false;
      while (!event.empty()) {
        const auto field = detail::next_field(event);
        if (field.number == 2) found.step = static_cast<std::int64_t>(field.integer);
        if (field.number == 3) is_version = true;
        if (field.number == 7) {  // SessionLog: START is 1, CHECKPOINT is 3
          std::string_view session = field.bytes;
          found.tag = detail::next_field(session).integer == 1 ? "start" : "checkpoint";
        }
        if (field.number != 5) continue;
        std::string_view summary = field.bytes;
        std::string_view value = detail::next_field(summary).bytes;
        while (!value.empty()) {
          const auto part = detail::next_field(value);
          if (part.number == 1) found.tag = part.bytes;
          if (part.number == 2) std::memcpy(&found.value, part.bytes.data(), sizeof found.value);
        }
      }
      if (!is_version) events.push_back(std::move(found));
    }
  }
  return events;
}

inline std::vector<std::int64_t> steps_of(const std::vector<Event>& events, std::string_view tag) {
  std::vector<std::int64_t> steps;
  for (const Event& event : events) {
    if (event.tag == tag) steps.push_back(event.step);
  }
  return steps;
}

}  // namespace lockstep::test
