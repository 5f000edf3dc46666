// Writes two event files, of a run and of its continuation, to the directory given: input of
// tensorboard_test.py.
#include <cstdio>
#include <exception>

#include <lockstep/summary/event_writer.hpp>

using namespace lockstep;

int main(int argc, char** argv) try {
  if (argc != 2) return 64;
  PosixFileSystem files;
  FakeClock clock(Seconds(0), 1.7e9);
  {
    EventWriter writer(files.open_directory(argv[1]), clock, "host");
    writer.session_start(0);
    writer.text("configuration", "global_batch: **128**", 0);
    for (int step = 10; step <= 50; step += 10) writer.scalar("loss", 1.0 / step, step);
    writer.checkpoint_saved("ckpt-00000030.h5", 30);
  }
  clock.advance(Seconds(5));
  EventWriter writer(files.open_directory(argv[1]), clock, "host");
  writer.session_start(31);  // what followed the checkpoint at 30 was lost
  const Scalar two[] = {{"loss", 7.0}, {"global_step/sec", 123.5}};
  writer.scalars(two, 40);
  writer.flush();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 70;
}
