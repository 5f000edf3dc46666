"""tools/run_until_done without Slurm: what it launches again, and what not."""

import os
import pathlib
import signal
import subprocess

import harness
from harness import EndToEnd

SUPERVISOR = pathlib.Path(__file__).resolve().parent.parent.parent / "tools/run_until_done"


class Supervised(harness.Job):
    """tools/run_until_done and what it launches, running beside the test."""

    def __init__(self, *words, **variables):
        super().__init__(1, "true")
        self.process.wait()
        self.process = subprocess.Popen([str(word) for word in (SUPERVISOR, *words)],
                                        env={**harness.environment(), **variables},
                                        stdin=subprocess.DEVNULL, stdout=self.error_file, stderr=self.error_file)


class Supervisor(EndToEnd):

    def command(self, directory, ranks=2, **changes):
        changes = {"hidden": 32, "last_step": 10000000, "save_checkpoint_steps": 20} | changes
        return [*harness.mpirun(ranks), harness.TRAIN, *self.options(**changes, checkpoint_dir=directory)]

    def wait_for(self, job, condition, what):
        harness.wait_for(lambda: condition() or job.process.poll() is not None, what)
        self.assertIsNone(job.process.poll(), job.text())

    def test_lost_ranks_a_bound_and_a_stop(self):
        directory = self.folder / "run"
        with Supervised("--pause", 0, "--max_restarts", 2, "--", *self.command(directory, ranks=3)) as job:
            for lost in range(2):
                newest = harness.newest_step(directory)
                self.wait_for(job, lambda newest=newest: harness.newest_step(directory) > newest and len(job.ranks()) == 3,
                              "a save")
                os.kill(job.ranks()[lost], signal.SIGKILL)
                self.wait_for(job, lambda lost=lost: f"restart {lost + 1} of at most 2" in job.text(), "a restart")
            newest = harness.newest_step(directory)
            self.wait_for(job, lambda: harness.newest_step(directory) > newest, "a save")
            job.process.send_signal(signal.SIGTERM)
            stopped = job.wait()
        self.assertEqual(stopped.code, 75, str(stopped))
        self.assertIn("by SIGTERM", stopped.err)
        status = harness.read_json(directory / "status.json")
        self.assertEqual((status["state"], status["restarts"]), ("stopped", 2), "a save, though mpirun would kill its ranks")

        last_step = harness.newest_step(directory) + 20
        ended = harness.execute(SUPERVISOR, *self.command(directory, last_step=last_step))
        self.assertEqual(ended.code, 0, str(ended))
        undisturbed = self.train(1, hidden=32, last_step=last_step)
        self.assertIn(undisturbed["parameters_digest"], ended.err + ended.out)

    def test_given_up(self):
        directory = self.folder / "run"
        with Supervised("--pause", 0, "--max_restarts", 0, "--", *self.command(directory)) as job:
            self.wait_for(job, lambda: harness.newest_step(directory) >= 20 and len(job.ranks()) == 2, "a save")
            os.kill(job.ranks()[0], signal.SIGKILL)
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        self.assertIn("given up", ended.err)

    def test_what_is_not_launched_again(self):
        ended = harness.execute(SUPERVISOR, *self.command(self.folder / "run", hidden="wide"))
        self.assertEqual(ended.code, 64, str(ended))
        self.assertNotIn("restart", ended.err)

    def test_numbers_with_leading_zeros_are_decimal(self):
        # Bash takes them for octal ones: 08 was no bound at all.
        ended = harness.execute(SUPERVISOR, "--pause", "00", "--max_pause", "08", "--max_restarts", "08", "--checkpoint_dir",
                                self.folder, "sh", "-c", "echo launched; exit 75")
        self.assertEqual(ended.code, 75, str(ended))
        self.assertIn("given up at step ? after 8 restarts in a row", ended.err)
        self.assertEqual(ended.out.count("launched"), 9, str(ended))

    def script(self, name, text):
        """A program in self.folder; returns what must be in the environment for it to be found first."""
        path = self.folder / name
        path.write_text("#!/bin/bash\nset -eu\ncd " + str(self.folder) + "\n" + text)
        path.chmod(0o755)
        return {"PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def test_a_signal_before_there_is_a_training_to_hear_it(self):
        # Slurm may signal a batch script as soon as it runs; here, while it asks when its allocation ends.
        self.script("mpirun", "trap 'exit 75' USR1\nfor ((;;)); do sleep 0.1; done\n")
        found = self.script("squeue", "until [[ -s pid ]]; do sleep 0.01; done\nkill -s USR1 $(< pid)\n")
        with Supervised("--checkpoint_dir", self.folder, "mpirun", **found) as job:
            (self.folder / "new").write_text(str(job.process.pid))
            (self.folder / "new").rename(self.folder / "pid")
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        self.assertIn("by SIGUSR1; launch again to go on", ended.err)

    def test_a_rank_that_is_lost_after_the_last_save(self):
        # What is launched again finds the run complete, evaluates it and writes its report.
        self.script("mpirun", """printf '{\n "global_step": 5,\n "state": "done",\n "updated": %s\n}\n' $BASHPID > status.json
if [[ ! -e again ]]; then touch again; kill -s KILL $BASHPID; fi
""")
        ended = harness.execute(SUPERVISOR, "--pause", 0, "--checkpoint_dir", self.folder, self.folder / "mpirun")
        self.assertEqual(ended.code, 0, str(ended))
        self.assertIn("exit code 137 at step 5: restart 1", ended.err)

    def test_slurm_does_not_always_answer(self):
        once = 'if [[ ! -e $1 ]]; then touch "$1"; echo "Socket timed out on send/recv operation" >&2; exit 1; fi\n'
        self.script("squeue", 'case $* in *%T) set -- squeue.failed; ' + once + ' echo RUNNING ;; *%A) echo 7 ;; esac\n')
        found = self.script("scontrol", 'echo "$*" >> asked\nset -- scontrol.failed\n' + once)
        words = ["--requeue", "--checkpoint_dir", self.folder, "sh", "-c", "exit 75"]
        with Supervised(*words, **found, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3") as job:
            self.wait_for(job, lambda: "queued again as job 7_3" in job.text(), "the job to be queued again")
        self.assertEqual((self.folder / "asked").read_text(), "requeue 7_3\n" * 2)
        # Submitted by a task of an array it has the task's variables, and is no task.
        (self.folder / "asked").unlink()
        with Supervised(*words, **{**found, "SLURM_JOB_ID": "8"}, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3") as job:
            self.wait_for(job, lambda: "queued again as job 8" in job.text(), "the job to be queued again")
        self.assertEqual((self.folder / "asked").read_text(), "requeue 8\n")

    def test_a_launcher_that_stays_behind_alone(self):
        """As Open MPI's may, when a rank dies while it makes itself known."""
        launcher = self.folder / "mpirun"
        launcher.write_text('#!/bin/bash\ncd "$(dirname "$0")"\n[[ ! -e again ]] || exit 78\ntouch again\nsleep 5\n'
                            'exec 3<> fifo\nread -r -u 3\n')
        launcher.chmod(0o755)
        os.mkfifo(self.folder / "fifo")
        ended = harness.execute(SUPERVISOR, "--pause", 0, "--checkpoint_dir", self.folder, launcher)
        self.assertEqual(ended.code, 78, str(ended))
        self.assertIn("it does not end: killing it", ended.err)
        self.assertIn("restart 1", ended.err)


if __name__ == "__main__":
    harness.main()
