#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

/// Messages that were under way when a wait reached its limit may still be written: a barrier and
/// a fold leave their buffers as they are, which LeakSanitizer would report.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:lockstep::Communicator::barrier\nleak:lockstep::fold_bytes\n";
}
