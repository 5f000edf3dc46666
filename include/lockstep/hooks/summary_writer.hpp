#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <lockstep/base/log.hpp>
#include <lockstep/summary/event_writer.hpp>

namespace lockstep {

/// What hooks and users write summaries to. Local: on the chief the values go to the event file, elsewhere
/// nowhere. A full disk costs summaries, not the run: failures are logged once until a write works again.
class SummaryWriter {
 public:
  SummaryWriter() = default;
  SummaryWriter(std::unique_ptr<EventWriter> writer, Log log)
      : writer_(std::move(writer)), log_(std::move(log)) {}

  bool active() const noexcept { return writer_ != nullptr; }
  void scalar(std::string_view tag, double value, std::int64_t step);
  void session_start(std::int64_t first_step);
  void checkpoint_saved(std::string_view path, std::int64_t step);
  void flush();

 private:
  template <class Write>
  void guarded(Write write);

  std::unique_ptr<EventWriter> writer_;
  Log log_;
  bool failing_ = false;
};

}  // namespace lockstep
