#pragma once

#include <atomic>

namespace lockstep::test {

/// What the shim does to the process that it is in. Plain memory, so that it may be shared with a parent that
/// outlives the process.
///
/// Counted is every system call that changes the folder: open that creates or cuts, mkdir, write, truncate,
/// fsync of a file or folder, link, rename, unlink, and close of a file that was written.
struct Faults {
  enum Kind : int {
    count,         ///< nothing
    kill,          ///< SIGKILL instead of the call
    tear,          ///< as kill, but half of a write is done before
    fail,          ///< the call is not made and returns `code`
    fail_late,     ///< the call is made and returns `code` nevertheless, as NFS may
    shorten,       ///< a write takes only half; other calls are left alone
    stop,          ///< SIGSTOP before the call: the process sleeps until it gets SIGCONT
    kill_rank,     ///< before the call the rank `code` of the same mpirun gets SIGKILL
    cut,           ///< power cut before the call: the file system is shut down, `code` tells how
    cut_and_live,  ///< the same, but the process lives on
  };

  char folder[256] = "";  ///< absolute, links resolved; what is elsewhere is left alone
  int kind = count;
  long at = 0;  ///< strikes at this call, from 1
  int code = 0;
  bool forever = false;  ///< strikes at every later call, too
  long kill_at = 0;      ///< and SIGKILL at this one
  std::atomic<long> calls = 0;
  std::atomic<long> bytes = 0;    ///< written
  std::atomic<long> foreign = 0;  ///< bytes written to files other than a proposal for the lock
  std::atomic<bool> struck = false;
  std::atomic<bool> ended = false;  ///< by SIGKILL
  char what[160] = "";              ///< the call that was struck
  char initials[2048] = "";         ///< of the calls so far: 'w' is a write
};

/// The memory that the shim of this process obeys; null: it does nothing. A process that was not told gets
/// it from LOCKSTEP_FAULTS="FOLDER:KIND:AT:CODE:FOREVER".
extern "C" void lockstep_set_faults(Faults* faults);

}  // namespace lockstep::test
