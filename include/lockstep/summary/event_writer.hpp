#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <lockstep/base/clock.hpp>
#include <lockstep/base/files.hpp>

namespace lockstep {

/// One line of a chart: the tag names the chart.
struct Scalar {
  std::string_view tag;
  double value = 0;
};

/// Writes an event file that TensorBoard reads. Steps need not increase.
///
/// Local; meant for the chief. One thread at a time. Events are collected in memory and go to the file when
/// enough have come together, on `flush` and at the end; nothing is synced to the disk, since summaries are
/// no promise.
///
/// Every function may throw FileError. The events that could not be written are then kept, up to a mebibyte,
/// and go into a new file with the next flush: half an event in the middle of a file would hide all that
/// follow it.
class EventWriter {
 public:
  /// Creates events.out.tfevents.SECONDS.HOST[SUFFIX] in `directory`. A name that is taken gets a number
  /// (".1", ".2"
  /// ...) at its end; no file is ever overwritten. `clock` must outlive this.
  EventWriter(std::unique_ptr<Directory> directory, const Clock& clock, std::string_view host,
              std::string_view suffix = "");

  /// Flushes, ignoring errors.
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalar(std::string_view tag, double value, std::int64_t step);

  /// Several values of one step, in one event.
  void scalars(std::span<const Scalar> values, std::int64_t step);

  /// Markdown, for TensorBoard's text page.
  void text(std::string_view tag, std::string_view text, std::int64_t step);

  /// Says that a run begins, or goes on, and that its first event will be of `first_step`. TensorBoard then
  /// hides what earlier files hold of this step and later ones: the interrupted run did these, but nobody
  /// kept them.
  void session_start(std::int64_t first_step);

  void checkpoint_saved(std::string_view path, std::int64_t step);

  void flush();

  /// Base name of the file being written.
  const std::string& file_name() const noexcept { return file_name_; }

 private:
  template <class Fill>
  void event(std::int64_t step, Fill fill);
  void append(std::string_view event);
  void open_file();

  std::unique_ptr<Directory> directory_;
  const Clock& clock_;
  std::string host_;
  std::string suffix_;
  std::string file_name_;
  std::unique_ptr<WritableFile> file_;
  std::string pending_;  ///< whole records, not yet written
  std::string event_;    ///< the event being put together
  std::size_t flush_at_;
};

}  // namespace lockstep
