#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <protozero/pbf_builder.hpp>
#include <protozero/pbf_writer.hpp>

#include <lockstep/summary/event_writer.hpp>
#include <lockstep/summary/record.hpp>

namespace lockstep {
namespace {

constexpr std::size_t kFlushBytes = std::size_t{64} << 10;
constexpr std::size_t kKeepBytes = std::size_t{1} << 20;
constexpr int kMostNames = 1000;

// The parts that are used here of TensorFlow's event.proto, summary.proto and tensor.proto.
enum class Event : protozero::pbf_tag_type {
  wall_time = 1,
  step = 2,
  file_version = 3,
  summary = 5,
  session_log = 7
};
enum class SessionLog : protozero::pbf_tag_type { status = 1, checkpoint_path = 2 };
enum class Status : std::int32_t { start = 1, checkpoint = 3 };
enum class Summary : protozero::pbf_tag_type { value = 1 };
enum class Value : protozero::pbf_tag_type { tag = 1, simple_value = 2, tensor = 8, metadata = 9 };
enum class Metadata : protozero::pbf_tag_type { plugin_data = 1, data_class = 4 };
enum class PluginData : protozero::pbf_tag_type { plugin_name = 1 };
enum class Tensor : protozero::pbf_tag_type { dtype = 1, shape = 2, string_value = 8 };
constexpr std::int32_t kDataClassTensor = 2;
constexpr std::int32_t kTypeString = 7;

template <class Message>
using Builder = protozero::pbf_builder<Message>;

/// As a part of a file name.
std::string plain(std::string_view text) {
  std::string result(text);
  const auto is_bad = [](char c) { return c == '/' || static_cast<unsigned char>(c) <= ' '; };
  std::replace_if(result.begin(), result.end(), is_bad, '_');
  return result;
}

}  // namespace

EventWriter::EventWriter(std::unique_ptr<Directory> directory, const Clock& clock, std::string_view host,
                         std::string_view suffix)
    : directory_(std::move(directory)),
      clock_(clock),
      host_(host.empty() ? "localhost" : plain(host)),
      suffix_(plain(suffix)),
      flush_at_(kFlushBytes) {
  open_file();
}

EventWriter::~EventWriter() {
  try {
    flush();
  } catch (const std::exception&) {
    // Nobody is left to tell; call flush to see errors.
  }
}

void EventWriter::open_file() {
  const auto seconds = static_cast<std::int64_t>(clock_.wall_seconds());
  const std::string base = fmt::format("events.out.tfevents.{:010}.{}{}", seconds, host_, suffix_);
  for (int number = 0;; ++number) {
    file_name_ = number == 0 ? base : fmt::format("{}.{}", base, number);
    try {
      file_ = directory_->create(file_name_);
      break;
    } catch (const FileError& error) {
      if (error.code() != EEXIST || number == kMostNames) throw;
    }
  }
  std::string first;
  event_.clear();
  {
    Builder<Event> event(event_);
    event.add_double(Event::wall_time, clock_.wall_seconds());
    event.add_string(Event::file_version, "brain.Event:2");
  }
  append_record(first, event_);
  try {
    file_->write(std::as_bytes(std::span(first)));
  } catch (...) {
    file_.reset();
    throw;
  }
}

void EventWriter::append(std::string_view event) {
  append_record(pending_, event);
  if (pending_.size() >= flush_at_) flush();
}

void EventWriter::flush() {
  if (pending_.empty()) return;
  try {
    if (!file_) open_file();
    file_->write(std::as_bytes(std::span(pending_)));
  } catch (...) {
    file_.reset();
    if (pending_.size() > kKeepBytes) pending_.clear();
    flush_at_ = pending_.size() + kFlushBytes;  // not again at every event
    throw;
  }
  pending_.clear();
  flush_at_ = kFlushBytes;
}

template <class Fill>
void EventWriter::event(std::int64_t step, Fill fill) {
  event_.clear();
  {
    Builder<Event> event(event_);
    event.add_double(Event::wall_time, clock_.wall_seconds());
    event.add_int64(Event::step, step);
    fill(event);
  }
  append(event_);
}

void EventWriter::scalar(std::string_view tag, double value, std::int64_t step) {
  const Scalar one{tag, value};
  scalars({&one, 1}, step);
}

void EventWriter::scalars(std::span<const Scalar> values, std::int64_t step) {
  event(step, [&](Builder<Event>& event) {
    Builder<Summary> summary(event, Event::summary);
    for (const Scalar& scalar : values) {
      Builder<Value> value(summary, Summary::value);
      value.add_string(Value::tag, scalar.tag.data(), scalar.tag.size());
      value.add_float(Value::simple_value, static_cast<float>(scalar.value));
    }
  });
}

void EventWriter::text(std::string_view tag, std::string_view text, std::int64_t step) {
  event(step, [&](Builder<Event>& event) {
    Builder<Summary> summary(event, Event::summary);
    Builder<Value> value(summary, Summary::value);
    value.add_string(Value::tag, tag.data(), tag.size());
    {
      Builder<Metadata> metadata(value, Value::metadata);
      {
        Builder<PluginData> plugin(metadata, Metadata::plugin_data);
        plugin.add_string(PluginData::plugin_name, "text");
      }
      metadata.add_enum(Metadata::data_class, kDataClassTensor);
    }
    Builder<Tensor> tensor(value, Value::tensor);
    tensor.add_enum(Tensor::dtype, kTypeString);
    tensor.add_message(Tensor::shape, "", 0);  // no dimensions: one string
    tensor.add_bytes(Tensor::string_value, text.data(), text.size());
  });
}

void EventWriter::session_start(std::int64_t first_step) {
  event(first_step, [&](Builder<Event>& event) {
    Builder<SessionLog> log(event, Event::session_log);
    log.add_enum(SessionLog::status, static_cast<std::int32_t>(Status::start));
  });
}

void EventWriter::checkpoint_saved(std::string_view path, std::int64_t step) {
  event(step, [&](Builder<Event>& event) {
    Builder<SessionLog> log(event, Event::session_log);
    log.add_enum(SessionLog::status, static_cast<std::int32_t>(Status::checkpoint));
    log.add_string(SessionLog::checkpoint_path, path.data(), path.size());
  });
}

}  // namespace lockstep
