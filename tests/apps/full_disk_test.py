"""A disk that is full while a run saves: training goes on, loudly at each interval; without its last save it fails."""

import os
import re
import signal
import subprocess

import harness
from harness import EndToEnd, Job


def mount(folder):
    """A disk of its own for a run; False where that is not allowed."""
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True).returncode == 0


class FullDisk(EndToEnd):

    def setUp(self):
        super().setUp()
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        if not mount(self.disk):
            self.skipTest("only root may mount a small disk; tests/failures/io_errors fails each call by itself")
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(self.disk)], check=True)
        self.directory = self.disk / "run"
        self.options_here = {"hidden": 32, "save_checkpoint_steps": 20, "checkpoint_dir": self.directory}

    def fill(self):
        with open(self.disk / "filler", "wb", buffering=0) as filler:
            for size in (65536, 1):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:
                    pass

    @staticmethod
    def failures(job):
        """Steps of the saves that failed for lack of space."""
        return [int(step) for step in re.findall(r"checkpoint of step (\d+) was not saved: .*No space left", job.text())]

    def wait_for(self, job, condition, what):
        harness.wait_for(lambda: condition() or job.process.poll() is not None, what)
        self.assertIsNone(job.process.poll(), job.text())

    def start(self, ranks):
        return Job(ranks, harness.TRAIN, *self.options(**self.options_here, last_step=10000000))

    def test_training_goes_on_and_saves_again_once_there_is_space(self):
        with self.start(2) as job:
            self.wait_for(job, lambda: harness.newest_step(self.directory) >= 20, "the first saves")
            self.fill()
            self.wait_for(job, lambda: len(self.failures(job)) >= 3, "three saves to fail")
            steps = self.failures(job)
            self.assertEqual(steps, sorted(set(steps)), "each interval once")
            kept = harness.newest_step(self.directory)
            self.assertGreater(steps[0], kept)
            (self.disk / "filler").unlink()
            self.wait_for(job, lambda: harness.newest_step(self.directory) > steps[-1], "a save")
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        self.check_goes_on()

    def test_without_its_last_save_it_fails(self):
        with self.start(3) as job:
            self.wait_for(job, lambda: harness.newest_step(self.directory) >= 20, "the first saves")
            self.fill()
            self.wait_for(job, lambda: self.failures(job), "a save to fail")
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 74, str(ended))
        self.assertIn("No space left", ended.errors()[-1])
        (self.disk / "filler").unlink()
        self.check_goes_on()

    def check_goes_on(self):
        newest = harness.newest_step(self.directory)
        shown = harness.execute(harness.INSPECT, "--verify", self.directory)
        self.assertEqual(shown.code, 0, str(shown))
        report = self.train(2, **self.options_here, last_step=newest + 20)
        self.assertEqual(report["restored_from"], f"ckpt-{newest:08}.h5")
        undisturbed = self.train(1, hidden=32, last_step=newest + 20)
        self.assertEqual(report["parameters_digest"], undisturbed["parameters_digest"])


if __name__ == "__main__":
    harness.main()
