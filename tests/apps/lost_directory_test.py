"""A checkpoint directory that turns read-only, or is removed or unmounted, under a run: loud at each interval, nothing else
is lost."""

import os
import re
import shutil
import signal
import subprocess

import harness
from harness import EndToEnd, Job


LOST = "is not the directory any more that this job writes to"


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
    def unmount_all(disk):
        while os.path.ismount(disk) or subprocess.run(["mountpoint", "-q", disk]).returncode == 0:
            subprocess.run(["umount", "--lazy", disk], check=True)

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
        if not harness.own_mounts():
            self.skipTest("only root may mount a disk; tests/failures/io_errors has EROFS at each call by itself")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", disk], check=True)
        self.addCleanup(self.unmount_all, disk)

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

    def lose(self, lose, **changes):
        """A run whose directory lies in a mount of its own, until `lose` takes it away. Returns what is really there."""
        if not harness.own_mounts():
            self.skipTest("only root may mount; checkpoint/manager moves the directory away from under a saver")
        disk, real = self.directory.parent, self.folder / "real"
        disk.mkdir()
        real.mkdir()
        subprocess.run(["mount", "--bind", real, disk], check=True)
        self.addCleanup(self.unmount_all, disk)
        with self.start(2, max_to_keep=3, **changes) as job:
            self.wait_for(job, lambda: harness.newest_step(self.directory) >= 20, "the first saves")
            lose(disk)
            self.assertEqual(harness.newest_step(self.directory), -1, "it is gone")
            self.wait_for(job, lambda: len(self.failures(job, LOST)) >= 3, "three saves to fail")
            steps = self.failures(job, LOST)
            self.assertEqual(steps, sorted(set(steps)), "each interval once")
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 74, str(ended))
        self.assertIn(LOST, ended.errors()[-1])
        self.assertFalse((disk / "run" / "checkpoint.json").exists(), "nothing is saved to what is there now")
        # All that was said to be saved is in what was taken away, whole, and nothing that was not.
        said = [int(step) for step in re.findall(r"^saved checkpoint \S+ \(step (\d+),", ended.err, re.MULTILINE)]
        self.assertLess(said[-1], steps[0])
        # A save may have got its name just before.
        self.assertIn(harness.newest_step(real / "run"), (said[-1], steps[0]))
        self.assertEqual(harness.execute(harness.INSPECT, "--verify", real / "run").code, 0)
        return real / "run"

    def test_a_disk_that_is_unmounted_and_comes_back(self):
        real = self.lose(lambda disk: subprocess.run(["umount", "--lazy", disk], check=True))
        before = harness.newest_step(real)
        changes = self.options_here | {"checkpoint_dir": real, "last_step": before + 5}
        self.assertEqual(self.train(1, **changes)["restored_from"], f"ckpt-{before:08}.h5")

    def test_a_disk_that_is_unmounted_under_shards(self):
        self.lose(lambda disk: subprocess.run(["umount", "--lazy", disk], check=True), shard_bytes=1000)

    def test_a_disk_that_is_mounted_over(self):
        def mount_over(disk):
            subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
            self.directory.mkdir()
        self.lose(mount_over)

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
