// Any bytes as a state file: refused with a message, or understood and written again as the same.

#include <cstdlib>
#include <string>

#include <lockstep/checkpoint/names.hpp>
#include <lockstep/checkpoint/state_file.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lockstep;
  const ParsedStateFile parsed = parse_state_file(std::as_bytes(std::span(data, size)));
  if (parsed.state.has_value() == !parsed.problem.empty()) std::abort();
  if (!parsed.state) return 0;
  for (const CheckpointRecord& record : parsed.state->checkpoints) {
    if (!is_plain_name(record.file)) std::abort();
  }
  for (const RetiredCheckpoint& retired : parsed.state->retired) {
    if (!is_plain_name(retired.file)) std::abort();
  }
  const std::string text = to_json(*parsed.state);
  const ParsedStateFile again = parse_state_file(std::as_bytes(std::span(text)));
  if (!again.state || to_json(*again.state) != text) std::abort();
  return 0;
}
