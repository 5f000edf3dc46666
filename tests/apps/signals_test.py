"""Signals to one rank alone, whichever and whenever: all stop after the same step, save, and end with exit code 75."""

import os
import pathlib
import signal
import time

import harness
from harness import EndToEnd, Job

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
RANKS = 3


def catches(pid, number):
    status = pathlib.Path("/proc", str(pid), "status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(mask >> (number - 1) & 1)


class Signals(EndToEnd):
    """Jobs that would never end by themselves; each goes on where the one before was stopped."""

    LONG = {"hidden": 32, "last_step": 10000000, "save_checkpoint_steps": 0, "max_to_keep": 2}

    def start(self, directory):
        """A job, and a function that gives the exit code of each rank once it has ended (mpirun hides them)."""
        codes = self.folder / "codes"
        codes.mkdir(exist_ok=True)
        for code in codes.iterdir():
            code.unlink()
        script = 'folder=$1; shift; "$@"; echo $? > "$folder/$OMPI_COMM_WORLD_RANK"'
        job = Job(RANKS, "sh", "-c", script, "sh", codes, harness.TRAIN,
                  *self.options(**self.LONG, checkpoint_dir=directory))
        return job, lambda: [int((codes / str(rank)).read_text()) for rank in range(RANKS)]

    @staticmethod
    def rank(job, wanted, number):
        """The process of a rank, once it is past the moment in which it has no handler yet."""
        found = []

        def there():
            found[:] = [pid for pid in job.ranks() if harness.rank_of(pid) == wanted and catches(pid, number)]
            return found or job.process.poll() is not None
        harness.wait_for(there, f"rank {wanted}")
        return found[0]

    def test_each_signal_to_each_rank_alone(self):
        directory = self.folder / "run"
        moment = 0
        for number in STOP:
            for wanted in range(RANKS):
                with self.subTest(signal=number.name, rank=wanted):
                    before = harness.newest_step(directory)
                    job, codes = self.start(directory)
                    with job:
                        pid = self.rank(job, wanted, number)
                        moment += 1
                        if moment % 3:  # else while ranks still meet and read data
                            harness.wait_for(lambda job=job: "hooks:" in job.text() or job.process.poll() is not None,
                                             "the session")
                        os.kill(pid, number)
                        ended = job.wait()
                    self.assertEqual(codes(), [75] * RANKS, str(ended))
                    self.assertIn(f"{number.name} on rank {wanted}", ended.err, str(ended))
                    status = harness.read_json(directory / "status.json")
                    newest = harness.newest_step(directory)
                    self.assertEqual((status["state"], status["exit_code"], status["global_step"]),
                                     ("stopped", 75, newest))
                    self.assertGreater(newest, before, "at least one step")
        last_step = newest + 20
        changes = {"hidden": 32, "last_step": last_step}
        report = self.train(2, **changes, checkpoint_dir=directory)
        undisturbed = self.train(1, **changes)
        self.assertEqual(report["parameters_digest"], undisturbed["parameters_digest"])

    def test_a_second_interrupt_means_now(self):
        directory = self.folder / "run"
        job, codes = self.start(directory)
        with job:
            # A stopped neighbour holds the others in their step: the first signal cannot be heeded.
            pids = [self.rank(job, wanted, signal.SIGINT) for wanted in range(RANKS)]
            harness.wait_for(lambda: "hooks:" in job.text() or job.process.poll() is not None, "the session")
            os.kill(pids[2], signal.SIGSTOP)
            harness.wait_for(lambda: harness.stands_still(pids[2]), "a stopped rank to stand still")
            os.kill(pids[1], signal.SIGINT)
            # A signal that has not been delivered yet would swallow the second.
            harness.wait_for(lambda: not self.pending(pids[1], signal.SIGINT), "the first signal")
            interrupted = time.monotonic()
            os.kill(pids[1], signal.SIGINT)
            ended = job.wait()
            seconds = time.monotonic() - interrupted
        self.assertNotEqual(ended.code, 0, str(ended))
        self.assertLess(seconds, 20, "now")
        self.assertEqual(harness.read_json(directory / "status.json")["state"], "running", "scripts launch again")
        newest = harness.newest_step(directory)
        report = self.train(2, hidden=32, last_step=newest + 20, checkpoint_dir=directory)
        self.assertEqual(report["restored_from"], f"ckpt-{newest:08}.h5")

    @staticmethod
    def pending(pid, number):
        for line in pathlib.Path("/proc", str(pid), "status").read_text().splitlines():
            if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) >> (number - 1) & 1:
                return True
        return False


if __name__ == "__main__":
    harness.main()
