#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <lockstep/base/files.hpp>

namespace lockstep::test {

/// A directory in memory that remembers what would survive a power cut, and can be told to fail.
struct MemoryDisk {
  struct Inode {
    std::vector<std::byte> data;
    std::vector<std::byte> durable;  // as of the last sync
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  Names names;
  Names durable_names;
  std::uint64_t free_bytes = std::uint64_t{1} << 40;

  // Mutating calls are counted from 1. At `fail_at` one fails with `fail_code`; with `dies` it and all calls
  // after it do, as if the process were gone.
  long operations = 0;
  long fail_at = 0;
  int fail_code = EIO;
  bool dies = false;
  bool dead = false;
  bool failed = false;

  /// True when this call is the one that fails.
  bool strikes() {
    ++operations;
    if (dead) return true;
    if (operations != fail_at) return false;
    failed = true;
    dead = dies;
    return true;
  }

  enum class End { kill, cut_forgets_names, cut_keeps_names };

  /// What the next process finds.
  std::shared_ptr<MemoryDisk> reboot(End end) const {
    auto next = std::make_shared<MemoryDisk>();
    std::map<Inode*, std::shared_ptr<Inode>> copies;
    for (const auto& [name, inode] : end == End::cut_forgets_names ? durable_names : names) {
      const auto& data = end == End::kill ? inode->data : inode->durable;
      next->names[name] = std::make_shared<Inode>(Inode{data, data});
    }
    next->durable_names = next->names;
    return next;
  }
};

class MemoryDirectory final : public Directory {
 public:
  explicit MemoryDirectory(std::shared_ptr<MemoryDisk> disk = std::make_shared<MemoryDisk>())
      : disk_(std::move(disk)) {}

  MemoryDisk& disk() { return *disk_; }
  std::vector<std::byte>& content(const std::string& name) { return disk_->names.at(name)->data; }

  const std::filesystem::path& path() const override { return path_; }

  std::unique_ptr<WritableFile> create(const std::string& name) override {
    mutate("create", name);
    if (disk_->names.contains(name)) throw FileError("create", path_ / name, EEXIST);
    auto inode = std::make_shared<MemoryDisk::Inode>();
    disk_->names[name] = inode;
    return std::make_unique<Writable>(*this, inode, name);
  }

  std::unique_ptr<ReadableFile> open(const std::string& name) override {
    return std::make_unique<Readable>(find("open", name));
  }

  bool exists(const std::string& name) override { return disk_->names.contains(name); }

  std::vector<DirectoryEntry> list() override {
    std::vector<DirectoryEntry> entries;
    for (const auto& [name, inode] : disk_->names) entries.push_back({name, inode->data.size(), true});
    return entries;
  }

  void replace(const std::string& from, const std::string& to) override {
    mutate("rename", from);
    const auto inode = find("rename", from);
    disk_->names.erase(from);
    disk_->names[to] = inode;
  }

  void rename(const std::string& from, const std::string& to) override {
    mutate("rename", from);
    const auto inode = find("rename", from);
    if (disk_->names.contains(to)) throw FileError("rename to " + to, path_ / from, EEXIST);
    disk_->names.erase(from);
    disk_->names[to] = inode;
  }

  void remove(const std::string& name) override {
    mutate("remove", name);
    find("remove", name);
    disk_->names.erase(name);
  }

  void sync() override {
    mutate("sync", "");
    disk_->durable_names = disk_->names;
  }

  std::uint64_t available_bytes() override { return disk_->free_bytes; }

 private:
  class Writable final : public WritableFile {
   public:
    Writable(MemoryDirectory& directory, std::shared_ptr<MemoryDisk::Inode> inode, std::string name)
        : directory_(directory), inode_(std::move(inode)), name_(std::move(name)) {}

    void write(std::span<const std::byte> bytes) override {
      const bool strikes = directory_.disk_->strikes();
      // A write that fails has done something nevertheless, unless the process was gone before.
      const auto done = strikes ? bytes.first(bytes.size() / 2) : bytes;
      if (!strikes || directory_.disk_->failed)
        inode_->data.insert(inode_->data.end(), done.begin(), done.end());
      if (strikes) throw FileError("write", name_, directory_.disk_->fail_code);
    }
    void sync() override {
      directory_.mutate("sync", name_);
      inode_->durable = inode_->data;
    }
    void close() override {
      if (directory_.disk_->dead) throw FileError("close", name_, EIO);
    }

   private:
    MemoryDirectory& directory_;
    std::shared_ptr<MemoryDisk::Inode> inode_;
    std::string name_;
  };

  class Readable final : public ReadableFile {
   public:
    explicit Readable(std::shared_ptr<MemoryDisk::Inode> inode) : inode_(std::move(inode)) {}
    std::uint64_t size() const override { return inode_->data.size(); }
    std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) override {
      if (offset >= inode_->data.size()) return 0;
      const std::size_t count =
          std::min(bytes.size(), inode_->data.size() - static_cast<std::size_t>(offset));
      std::copy_n(inode_->data.begin() + static_cast<std::ptrdiff_t>(offset), count, bytes.begin());
      return count;
    }

   private:
    std::shared_ptr<MemoryDisk::Inode> inode_;
  };

  void mutate(const char* operation, const std::string& name) {
    if (disk_->strikes()) throw FileError(operation, path_ / name, disk_->fail_code);
  }

  std::shared_ptr<MemoryDisk::Inode> find(const char* operation, const std::string& name) {
    const auto found = disk_->names.find(name);
    if (found == disk_->names.end()) throw FileError(operation, path_ / name, ENOENT);
    return found->second;
  }

  std::shared_ptr<MemoryDisk> disk_;
  std::filesystem::path path_ = "memory";
};

}  // namespace lockstep::test
