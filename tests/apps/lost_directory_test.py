"""A checkpoint directory that turns read-only, or is removed, under a run: loud at each interval, nothing else is lost."""

import os
import re
import shutil
import signal
import subprocess

import harness
from harness import EndToEnd, Job


class LostDirectory(EndToEnd):

    def setUp(self):
        super().setUp()
        self.directory = self.folder / "disk" / "run"
        # Summaries elsewhere: an open event file would keep the disk from turning read-only.
        self.options_here = {"hidden": 32, "save_checkpoint_steps": 20, "checkpoint_dir": self.directory,
                             "summary_dir": self.folder / "events"}

    def start(self, ranks, **changes):
        return Job(ranks, harness.TRAIN, *self.options(**self.options_here, **changes, last_step=10000000))

    @staticmethod
    def failures(job, reason):
        return [int(step) for step in re.findall(r"checkpoint of step (\d+) was not saved: .*" + reason, job.text())]

    def wait_for(self, job, condition, what):
        harness.wait_for(lambda: condition() or job.process.poll() is not None, what)
        self.assertIsNone(job.process.poll(), job.text())

    def remove(self):
        """True once the directory is gone; while it is emptied a save may put something into it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        return not self.directory.exists()

    def test_a_disk_that_turns_read_only(self):
        disk = self.directory.parent
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", disk], capture_output=True).returncode:
            self.skipTest("only root may mount a disk; tests/failures/io_errors has EROFS at each call by itself")
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(disk)], check=True)

        def remount(how):
            return subprocess.run(["mount", "-o", f"remount,{how}", disk], capture_output=True).returncode == 0

        with self.start(2) as job:
            self.wait_for(job, lambda: harness.newest_step(self.directory) >= 20, "the first saves")
            self.wait_for(job, lambda: remount("ro"), "the disk to be read-only")  # not while a file is being written
            before = {file.name: file.read_bytes() for file in self.directory.glob("*.h5")}
            self.wait_for(job, lambda: len(self.failures(job, "Read-only")) >= 3, "three saves to fail")
            steps = self.failures(job, "Read-only")
            self.assertEqual(steps, sorted(set(steps)), "each interval once")
            self.assertTrue(all(b - a >= 20 and b % 20 == 0 for a, b in zip(steps, steps[1:])), steps)
            self.assertEqual({file.name: file.read_bytes() for file in self.directory.glob("*.h5")}, before)
            self.assertTrue(remount("rw"))
            self.wait_for(job, lambda: harness.newest_step(self.directory) > steps[-1], "a save")
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        self.assertEqual(harness.execute(harness.INSPECT, "--verify", self.directory).code, 0)

    def test_a_directory_that_is_removed(self):
        with self.start(2) as job:
            self.wait_for(job, lambda: harness.newest_step(self.directory) >= 20, "the first saves")
            self.wait_for(job, self.remove, "the directory to be gone")
            self.wait_for(job, lambda: len(self.failures(job, "No such file")) >= 3, "three saves to fail")
            steps = self.failures(job, "No such file")
            self.assertEqual(steps, sorted(set(steps)), "each interval once")
            # Without its last save it has not stopped in good order.
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 74, str(ended))
        self.assertIn("No such file", ended.errors()[-1])
        self.assertFalse(self.directory.exists(), "nobody makes it again behind the user's back")

    def test_a_failed_save_ends_the_run_where_that_is_wanted(self):
        with self.start(3, on_save_failure="stop") as job:
            self.wait_for(job, lambda: harness.newest_step(self.directory) >= 20, "the first saves")
            harness.wait_for(self.remove, "the directory to be gone")
            ended = job.wait()
        self.assertEqual(ended.code, 74, str(ended))
        self.assertIn("was not saved", ended.errors()[-1])


if __name__ == "__main__":
    harness.main()
