#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <string>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lockstep/base/files.hpp>
#include <lockstep/base/process.hpp>

using namespace lockstep;

namespace {

/// A folder that is gone after the test.
class Scratch {
 public:
  Scratch()
      : path_(std::filesystem::temp_directory_path() /
              ("lockstep_test_" + std::to_string(SystemIdentity().nonce()))) {
    std::filesystem::create_directory(path_);
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

void write(Directory& directory, const std::string& name, const std::string& text) {
  const auto file = directory.create(name);
  file->write(bytes_of(text));
  file->close();
}

std::string content(Directory& directory, const std::string& name) {
  const auto bytes = read_all(*directory.open(name), 1 << 20);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The errno of the FileError that `call` throws, or 0.
int code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const FileError& error) {
    return error.code();
  }
  return 0;
}

/// A file that says it has `claimed` bytes, and has fewer.
class LyingFile final : public ReadableFile {
 public:
  explicit LyingFile(std::uint64_t claimed) : claimed_(claimed) {}
  std::uint64_t size() const override { return claimed_; }
  std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) override {
    return offset < 10 ? std::min<std::size_t>(10 - offset, bytes.size()) : 0;
  }

 private:
  std::uint64_t claimed_;
};

}  // namespace

TEST_CASE("one of several that have a directory open keeps the others out, until it ends that or goes") {
  const Scratch scratch;
  PosixFileSystem files;
  auto first = files.open_directory(scratch.path());
  const auto second = files.open_directory(scratch.path());
  CHECK(first->try_exclude());
  CHECK_FALSE(second->try_exclude());
  first->end_exclusion();
  CHECK(second->try_exclude());
  CHECK_FALSE(first->try_exclude());
  second->end_exclusion();
  CHECK(first->try_exclude());
  first.reset();
  CHECK(second->try_exclude());
}

TEST_CASE("what was written is read back, whole and in parts") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  {
    const auto file = directory->create("f");
    file->write(bytes_of("hello "));
    file->write(bytes_of("world"));
    file->sync();
    file->close();
    file->close();  // twice does no harm
  }
  directory->sync();
  CHECK(content(*directory, "f") == "hello world");
  const auto file = directory->open("f");
  CHECK(file->size() == 11);
  std::string part(5, ' ');
  CHECK(file->read(6, std::as_writable_bytes(std::span(part))) == 5);
  CHECK(part == "world");
  CHECK(file->read(9, std::as_writable_bytes(std::span(part))) == 2);
  CHECK(file->read(100, std::as_writable_bytes(std::span(part))) == 0);
}

TEST_CASE("create refuses a name that is taken, also by a link that leads nowhere") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  write(*directory, "f", "old");
  CHECK(code_of([&] { directory->create("f"); }) == EEXIST);
  std::filesystem::create_symlink("nowhere", scratch.path() / "link");
  CHECK(code_of([&] { directory->create("link"); }) == EEXIST);
  CHECK_FALSE(std::filesystem::exists(scratch.path() / "nowhere"));
  CHECK(content(*directory, "f") == "old");
}

TEST_CASE("files are readable by the owner's group at most") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  const mode_t before = ::umask(0);
  write(*directory, "f", "x");
  ::umask(before);
  struct stat status {};
  REQUIRE(::stat((scratch.path() / "f").c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0640);
}

TEST_CASE("in a directory links are not followed, pipes do not block and folders are no files") {
  const Scratch scratch;
  PosixFileSystem files;
  const auto directory = files.open_directory(scratch.path());
  write(*directory, "target", "x");
  std::filesystem::create_symlink("target", scratch.path() / "link");
  CHECK(code_of([&] { directory->open("link"); }) == ELOOP);
  REQUIRE(::mkfifo((scratch.path() / "pipe").c_str(), 0600) == 0);
  CHECK(code_of([&] { directory->open("pipe"); }) == EINVAL);
  CHECK(code_of([&] { files.open_file(scratch.path() / "pipe"); }) == EINVAL);
  std::filesystem::create_directory(scratch.path() / "folder");
  CHECK(code_of([&] { directory->open("folder"); }) == EINVAL);
  CHECK(code_of([&] { directory->open("missing"); }) == ENOENT);
  CHECK(files.open_file(scratch.path() / "link")->size() == 1);  // what the user names is followed
}

TEST_CASE("only base names are names of a directory's files") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("a/b"),
                                  std::string("/etc/passwd"), std::string("a\0b", 3)}) {
    CAPTURE(name);
    CHECK_THROWS_AS(directory->create(name), InternalError);
    CHECK_THROWS_AS(directory->open(name), InternalError);
    CHECK_THROWS_AS(directory->exists(name), InternalError);
    CHECK_THROWS_AS(directory->remove(name), InternalError);
    CHECK_THROWS_AS(directory->rename(name, "x"), InternalError);
    CHECK_THROWS_AS(directory->replace("x", name), InternalError);
  }
}

TEST_CASE("a directory that was renamed while open is still the same directory") {
  const Scratch scratch;
  PosixFileSystem files;
  const auto directory = files.create_directory(scratch.path() / "a");
  std::filesystem::rename(scratch.path() / "a", scratch.path() / "b");
  std::filesystem::create_directory(scratch.path() / "a");
  write(*directory, "f", "x");
  CHECK(std::filesystem::exists(scratch.path() / "b" / "f"));
  CHECK_FALSE(std::filesystem::exists(scratch.path() / "a" / "f"));
}

TEST_CASE("rename refuses a name that is taken, replace takes it") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  write(*directory, "a", "first");
  write(*directory, "b", "second");
  CHECK(code_of([&] { directory->rename("a", "b"); }) == EEXIST);
  CHECK(content(*directory, "b") == "second");
  directory->replace("a", "b");
  CHECK(content(*directory, "b") == "first");
  CHECK_FALSE(directory->exists("a"));
  directory->rename("b", "c");
  CHECK(directory->exists("c"));
  directory->remove("c");
  CHECK_FALSE(directory->exists("c"));
  CHECK(code_of([&] { directory->remove("c"); }) == ENOENT);
  CHECK(code_of([&] { directory->rename("c", "d"); }) == ENOENT);
}

TEST_CASE("a listing is in the order of the names and tells plain files from others, as often as asked") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  write(*directory, "b", "12345");
  write(*directory, "a", "");
  std::filesystem::create_symlink("b", scratch.path() / "c");
  std::filesystem::create_directory(scratch.path() / "d");
  for (int i = 0; i < 2; ++i) {
    const auto entries = directory->list();
    REQUIRE(entries.size() == 4);
    CHECK(entries[0].name == "a");
    CHECK(entries[1].name == "b");
    CHECK(entries[1].size == 5);
    CHECK(entries[1].is_regular);
    CHECK_FALSE(entries[2].is_regular);
    CHECK_FALSE(entries[3].is_regular);
  }
}

TEST_CASE("directories are created with their parents, and errors name path and reason") {
  const Scratch scratch;
  PosixFileSystem files;
  const auto path = scratch.path() / "x" / "y";
  CHECK(files.create_directory(path)->path() == path);
  CHECK(files.create_directory(path)->available_bytes() > 0);
  CHECK(code_of([&] { files.open_directory(scratch.path() / "none"); }) == ENOENT);
  write(*files.open_directory(path), "file", "x");
  CHECK(code_of([&] { files.open_directory(path / "file"); }) == ENOTDIR);
  CHECK(code_of([&] { files.create_directory(path / "file" / "z"); }) == ENOTDIR);
  CHECK_THROWS_WITH_AS(
      files.create_directory(path / "file" / "z" / "zz"),
      ("cannot create directories below '" + (path / "file").string() + "', which are needed for '" +
       (path / "file" / "z" / "zz").string() + "' (Not a directory)")
          .c_str(),
      FileError);
  CHECK_THROWS_WITH_AS(files.open_file("/no/such/file"),
                       "cannot open '/no/such/file' (No such file or directory)", FileError);
}

TEST_CASE("a FileError says what was tried, where, and the system's reason") {
  const FileError error("write", "runs/ckpt", ENOSPC);
  CHECK(error.what() == std::string("cannot write 'runs/ckpt' (No space left on device)"));
  CHECK(error.path() == "runs/ckpt");
  CHECK(error.exit_code() == ExitCode::io);
}

TEST_CASE("read_all keeps to its limit and to what the file really has") {
  LyingFile liar(std::uint64_t{1} << 30);
  CHECK(read_all(liar, std::uint64_t{1} << 31).size() == 10);
  CHECK_THROWS_AS(read_all(liar, 1000), DataError);
}

TEST_CASE("replace_file leaves the new content and nothing else, also after a run that died in it") {
  const Scratch scratch;
  const auto directory = PosixFileSystem().open_directory(scratch.path());
  replace_file(*directory, "f", bytes_of("one"));
  CHECK(content(*directory, "f") == "one");
  write(*directory, ".f.tmp", "half");
  replace_file(*directory, "f", bytes_of("two"));
  CHECK(content(*directory, "f") == "two");
  CHECK(directory->list().size() == 1);
}
