#include <string>

#include <lockstep/hooks/summary_writer.hpp>

namespace lockstep {

template <class Write>
void SummaryWriter::guarded(Write write) {
  if (!writer_) return;
  try {
    write();
    failing_ = false;
  } catch (const FileError& error) {
    if (!failing_) {
      log_.warn(std::string("summaries are not written: ") + error.what() + "; training goes on");
    }
    failing_ = true;
  }
}

void SummaryWriter::scalar(std::string_view tag, double value, std::int64_t step) {
  guarded([&] { writer_->scalar(tag, value, step); });
}

void SummaryWriter::session_start(std::int64_t first_step) {
  guarded([&] { writer_->session_start(first_step); });
}

void SummaryWriter::checkpoint_saved(std::string_view path, std::int64_t step) {
  guarded([&] { writer_->checkpoint_saved(path, step); });
}

void SummaryWriter::flush() {
  guarded([&] { writer_->flush(); });
}

}  // namespace lockstep
