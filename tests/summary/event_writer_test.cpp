#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <protozero/pbf_reader.hpp>

#include <lockstep/base/digest.hpp>
#include <lockstep/summary/event_writer.hpp>
#include <lockstep/summary/record.hpp>

using namespace lockstep;

namespace {

/// What a directory holds, and how much more fits before it is full.
struct Disk {
  std::map<std::string, std::string> files;
  std::size_t room = std::size_t{1} << 40;
  int writes = 0;
};

class DiskDirectory final : public Directory {
 public:
  explicit DiskDirectory(std::shared_ptr<Disk> disk) : disk_(std::move(disk)) {}

  const std::filesystem::path& path() const override { return path_; }
  std::unique_ptr<WritableFile> create(const std::string& name) override {
    if (!disk_->files.emplace(name, "").second) throw FileError("create", path_ / name, EEXIST);
    return std::make_unique<File>(disk_, name);
  }
  std::unique_ptr<ReadableFile> open(const std::string&) override { throw std::logic_error("open"); }
  bool exists(const std::string& name) override { return disk_->files.count(name) != 0; }
  std::vector<DirectoryEntry> list() override { return {}; }
  void replace(const std::string&, const std::string&) override { throw std::logic_error("replace"); }
  void rename(const std::string&, const std::string&) override { throw std::logic_error("rename"); }
  void remove(const std::string&) override { throw std::logic_error("remove"); }
  void sync() override {}
  std::uint64_t available_bytes() override { return disk_->room; }

 private:
  class File final : public WritableFile {
   public:
    File(std::shared_ptr<Disk> disk, std::string name) : disk_(std::move(disk)), name_(std::move(name)) {}
    void write(std::span<const std::byte> bytes) override {
      ++disk_->writes;
      const std::size_t count = std::min(bytes.size(), disk_->room);
      disk_->files[name_].append(reinterpret_cast<const char*>(bytes.data()), count);
      disk_->room -= count;
      if (count < bytes.size()) throw FileError("write", name_, ENOSPC);
    }
    void sync() override {}
    void close() override {}

   private:
    std::shared_ptr<Disk> disk_;
    std::string name_;
  };

  std::shared_ptr<Disk> disk_;
  std::filesystem::path path_ = "logs";
};

std::uint64_t little_endian(const std::string& bytes, std::size_t offset, std::size_t count) {
  std::uint64_t value = 0;
  for (std::size_t i = count; i > 0; --i) {
    value = value << 8 | static_cast<std::uint8_t>(bytes.at(offset + i - 1));
  }
  return value;
}

std::uint32_t unmasked(std::uint64_t masked) {
  const std::uint32_t rotated = static_cast<std::uint32_t>(masked) - 0xa282ead8;
  return rotated >> 17 | rotated << 15;
}

std::uint32_t checksum(const std::string& bytes) {
  return crc32c(std::as_bytes(std::span(bytes)));
}

/// The records of a file, up to the first that is damaged or cut.
std::vector<std::string> read_records(const std::string& file) {
  std::vector<std::string> records;
  std::size_t offset = 0;
  while (offset + 16 <= file.size()) {
    const auto length = static_cast<std::size_t>(little_endian(file, offset, 8));
    if (unmasked(little_endian(file, offset + 8, 4)) != checksum(file.substr(offset, 8))) break;
    if (offset + 16 + length > file.size()) break;
    records.push_back(file.substr(offset + 12, length));
    if (unmasked(little_endian(file, offset + 12 + length, 4)) != checksum(records.back())) {
      records.pop_back();
      break;
    }
    offset += 16 + length;
  }
  return records;
}

struct ReadEvent {
  double wall_time = 0;
  std::int64_t step = 0;
  std::string version;
  std::vector<std::pair<std::string, float>> scalars;
  std::string text;
  std::string plugin;
  int session = 0;
  std::string checkpoint;
};

ReadEvent parse(const std::string& record) {
  ReadEvent event;
  protozero::pbf_reader reader(record);
  while (reader.next()) {
    switch (reader.tag()) {
      case 1:
        event.wall_time = reader.get_double();
        break;
      case 2:
        event.step = reader.get_int64();
        break;
      case 3:
        event.version = reader.get_string();
        break;
      case 5: {
        auto summary = reader.get_message();
        while (summary.next(1)) {
          auto value = summary.get_message();
          std::string tag;
          while (value.next()) {
            if (value.tag() == 1) {
              tag = value.get_string();
            } else if (value.tag() == 2) {
              event.scalars.emplace_back(tag, value.get_float());
            } else if (value.tag() == 8) {
              auto tensor = value.get_message();
              while (tensor.next(8)) event.text = tag + "=" + tensor.get_string();
            } else {
              auto metadata = value.get_message();
              while (metadata.next(1)) {
                auto plugin = metadata.get_message();
                while (plugin.next(1)) event.plugin = plugin.get_string();
              }
            }
          }
        }
        break;
      }
      case 7: {
        auto log = reader.get_message();
        while (log.next()) {
          if (log.tag() == 1) {
            event.session = log.get_enum();
          } else {
            event.checkpoint = log.get_string();
          }
        }
        break;
      }
      default:
        reader.skip();
    }
  }
  return event;
}

std::vector<ReadEvent> read_events(const std::string& file) {
  std::vector<ReadEvent> events;
  for (const std::string& record : read_records(file)) events.push_back(parse(record));
  return events;
}

struct Setup {
  std::shared_ptr<Disk> disk = std::make_shared<Disk>();
  FakeClock clock{Seconds(0), 1234567890.5};
  std::unique_ptr<Directory> directory() const { return std::make_unique<DiskDirectory>(disk); }
};

}  // namespace

TEST_CASE("a record is framed as TensorFlow does it") {
  // From tensorflow/core/lib/io: the masked checksum of a length of 0 and of no data.
  std::string out;
  append_record(out, "");
  CHECK(out == std::string("\0\0\0\0\0\0\0\0\x29\x03\x98\x07\xd8\xea\x82\xa2", 16));
}

TEST_CASE("what was written is read back, after a record that says the version") {
  Setup setup;
  {
    EventWriter writer(setup.directory(), setup.clock, "node7", ".v2");
    CHECK(writer.file_name() == "events.out.tfevents.1234567890.node7.v2");
    writer.session_start(0);
    setup.clock.advance(Seconds(2));
    writer.scalar("loss", 0.25, 10);
    const Scalar two[] = {{"loss", 0.125}, {"global_step/sec", 1000}};
    writer.scalars(two, 20);
    writer.checkpoint_saved("ckpt-00000020.h5", 20);
    writer.text("configuration", "**bold**", 0);
  }
  const auto events = read_events(setup.disk->files.at("events.out.tfevents.1234567890.node7.v2"));
  REQUIRE(events.size() == 6);
  CHECK(events[0].version == "brain.Event:2");
  CHECK(events[0].wall_time == 1234567890.5);
  CHECK(events[1].session == 1);
  CHECK(events[2].step == 10);
  CHECK(events[2].wall_time == 1234567892.5);
  CHECK(events[2].scalars == std::vector<std::pair<std::string, float>>{{"loss", 0.25F}});
  CHECK(events[3].step == 20);
  CHECK(events[3].scalars ==
        std::vector<std::pair<std::string, float>>{{"loss", 0.125F}, {"global_step/sec", 1000.0F}});
  CHECK(events[4].session == 3);
  CHECK(events[4].checkpoint == "ckpt-00000020.h5");
  CHECK(events[5].text == "configuration=**bold**");
  CHECK(events[5].plugin == "text");
}

TEST_CASE("a second writer in the same second gets a name of its own") {
  Setup setup;
  EventWriter first(setup.directory(), setup.clock, "n");
  EventWriter second(setup.directory(), setup.clock, "n");
  EventWriter third(setup.directory(), setup.clock, "n");
  CHECK(first.file_name() == "events.out.tfevents.1234567890.n");
  CHECK(second.file_name() == "events.out.tfevents.1234567890.n.1");
  CHECK(third.file_name() == "events.out.tfevents.1234567890.n.2");
}

TEST_CASE("a host name with characters that a file name cannot have is made fit") {
  Setup setup;
  EventWriter writer(setup.directory(), setup.clock, "a/b c");
  CHECK(writer.file_name() == "events.out.tfevents.1234567890.a_b_c");
  EventWriter nameless(setup.directory(), setup.clock, "");
  CHECK(nameless.file_name() == "events.out.tfevents.1234567890.localhost");
}

TEST_CASE("events reach the file on flush, and by themselves when many have come together") {
  Setup setup;
  EventWriter writer(setup.directory(), setup.clock, "n");
  const std::string& file = setup.disk->files.at(writer.file_name());
  CHECK(read_records(file).size() == 1);
  writer.scalar("loss", 1, 1);
  CHECK(read_records(file).size() == 1);
  writer.flush();
  CHECK(read_records(file).size() == 2);
  for (int step = 0; step < 10000; ++step) writer.scalar("loss", 1, step);
  CHECK(read_records(file).size() > 5000);
  CHECK(setup.disk->writes < 20);
}

TEST_CASE("after a full disk no event is lost, and no file has half an event before a whole one") {
  // Wherever the write is cut.
  for (std::size_t room = 0; room < 200; ++room) {
    CAPTURE(room);
    Setup setup;
    EventWriter writer(setup.directory(), setup.clock, "n");
    setup.disk->room = room;
    bool failed = false;
    for (int step = 0; step < 5; ++step) {
      writer.scalar("loss", step, step);
      try {
        writer.flush();
      } catch (const FileError& error) {
        CHECK(error.code() == ENOSPC);
        failed = true;
      }
    }
    CHECK(failed);
    setup.disk->room = 10000;
    writer.scalar("loss", 5, 5);
    writer.flush();
    std::vector<bool> seen(6, false);
    for (const auto& [name, content] : setup.disk->files) {
      for (const ReadEvent& event : read_events(content)) {
        if (!event.scalars.empty()) seen.at(static_cast<std::size_t>(event.step)) = true;
      }
    }
    CHECK(seen == std::vector<bool>(6, true));
  }
}

TEST_CASE("while a disk stays full, memory stays bounded and not every event tries the disk") {
  Setup setup;
  EventWriter writer(setup.directory(), setup.clock, "n");
  setup.disk->room = 0;
  int failures = 0;
  const std::string long_text(1000, 'x');
  for (int step = 0; step < 10000; ++step) {
    try {
      writer.text("t", long_text, step);
    } catch (const FileError&) {
      ++failures;
    }
  }
  CHECK(failures > 0);
  CHECK(failures < 300);
  setup.disk->room = std::size_t{1} << 40;
  writer.flush();
  CHECK(setup.disk->files.at(writer.file_name()).size() < 2U << 20);
}

TEST_CASE("a directory in which no file can be created is a FileError from the constructor") {
  Setup setup;
  setup.disk->room = 0;
  CHECK_THROWS_AS(EventWriter(setup.directory(), setup.clock, "n"), FileError);
}
