"""A rank that stands still: named within the limit with its host and what it was doing, then the job ends and can go on."""

import os
import signal
import socket
import time

import harness
from harness import EndToEnd, Job


class Hang(EndToEnd):
    """Jobs that would never end, of which one rank is stopped."""

    def test_a_stopped_rank_is_named_and_the_job_ends(self):
        limit = 4  # far above what a busy machine makes ranks wait
        for ranks, hung in ((2, 0), (3, 2)):
            with self.subTest(ranks=ranks, hung=hung):
                directory = self.folder / f"run-{ranks}-{hung}"
                changes = {"hidden": 64, "checkpoint_dir": directory, "save_checkpoint_steps": 20}
                with Job(ranks, harness.TRAIN,
                         *self.options(**changes, last_step=10000000, hang_limit_secs=limit)) as job:
                    harness.wait_for(lambda: harness.newest_step(directory) >= 20, "the first saves")
                    # Children of mpirun, in the order of their ranks.
                    by_rank = {harness.rank_of(pid): pid for pid in job.ranks()}
                    stopped = time.monotonic()
                    os.kill(by_rank[hung], signal.SIGSTOP)
                    ended = job.wait()
                    seconds = time.monotonic() - stopped
                self.assertNotEqual(ended.code, 0, str(ended))
                self.assertRegex(ended.err, r"in step \d+: rank \d waited [\d.]+ s \(the limit\)", str(ended))
                self.assertRegex(ended.err, rf"missing: [^\n]*rank {hung} on {socket.gethostname()} \(last seen ", str(ended))
                self.assertLess(seconds, limit + 10, "then the job ends")
                self.assertEqual(harness.read_json(directory / "status.json")["state"], "running", "scripts launch again")
                newest = harness.newest_step(directory)
                report = self.train(2, **changes, last_step=newest + 20)
                self.assertEqual(report["restored_from"], f"ckpt-{newest:08}.h5")
                undisturbed = self.train(1, **changes | {"checkpoint_dir": None}, last_step=newest + 20)
                self.assertEqual(report["parameters_digest"], undisturbed["parameters_digest"])

    def test_a_rank_that_stands_still_before_mpi_has_started_ends_the_job(self):
        stop = 'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then kill -STOP $$; fi; exec "$@"'
        directory = self.folder / "never-begun"
        options = self.options(checkpoint_dir=directory, last_step=5, hang_limit_secs=1, max_wait_secs=1)
        with Job(2, "/bin/sh", "-c", stop, "sh", harness.TRAIN, *options) as job:
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        self.assertRegex(ended.err, r"error: pid \d+ on \S+ has waited [\d.]+ s \(the limit\) for MPI to start on all ranks", str(ended))
        self.assertFalse(directory.exists(), "nothing was begun")


if __name__ == "__main__":
    harness.main()
