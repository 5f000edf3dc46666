#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace lockstep {

enum class LogLevel { info, warning, error };

/// Where messages go. A value that is cheap to copy; copies share the destination. The default one is silent.
/// Any thread may call. One message is one call, so lines of several ranks do not mix.
class Log {
 public:
  Log() = default;
  explicit operator bool() const noexcept { return sink_ != nullptr; }  ///< false: silent

  void info(std::string_view message) const { write(LogLevel::info, message); }
  void warn(std::string_view message) const { write(LogLevel::warning, message); }
  void error(std::string_view message) const { write(LogLevel::error, message); }
  void write(LogLevel level, std::string_view message) const;

  /// A line that replaces itself on a terminal (progress) and is not kept anywhere else. Ended by the next
  /// message.
  void progress(std::string_view line) const;

  /// True when `progress` is seen by a person.
  bool interactive() const noexcept;

  class Sink {
   public:
    virtual ~Sink() = default;
    virtual void write(LogLevel level, std::string_view message) = 0;
    virtual void progress(std::string_view) {}
    virtual bool interactive() const noexcept { return false; }
  };

  explicit Log(std::shared_ptr<Sink> sink) : sink_(std::move(sink)) {}

  /// Standard error, with colours and progress on a terminal, and plain dated lines into `file` if it is not
  /// empty. Messages start with `prefix` (such as "[rank 3] ").
  static Log standard(const std::string& prefix, const std::filesystem::path& file = {});

 private:
  std::shared_ptr<Sink> sink_;
};

}  // namespace lockstep
