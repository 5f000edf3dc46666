"""The batch scripts under a real Slurm: whatever happens to a job, it ends with the bits of an undisturbed run.

No job here ends before its time: it is told to train for ever, and how far only once it was stopped.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import cluster  # noqa: E402
import harness  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOR_EVER = 100_000_000
FURTHER = 30  # steps that a job still has to do after it was stopped


@unittest.skipIf(cluster.why_not(), cluster.why_not())
class Slurm(harness.EndToEnd):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.slurm = cluster.Cluster(cls.scratch / "slurm")
        cls.addClassCleanup(cls.slurm.close)

    def setUp(self):
        super().setUp()
        self.directory = self.folder / "run"
        self.config = self.folder / "train.cfg"
        self.write_config(FOR_EVER)

    def write_config(self, last_step, **changes):
        words = {"dataset": "idx", "data_dir": self.data, "hidden": "256,128", "global_batch": 240, "micro_batch": 30,
                 "last_step": last_step, "log_step_count_steps": 0, "save_summaries_steps": 0,
                 "report": self.folder / "report.json", **changes}
        self.config.write_text("".join(f"{name} = {value}\n" for name, value in words.items()))

    def submit(self, script, *words, options=(), **settings):
        """Submits slurm/SCRIPT; returns the number of the job."""
        settings = {"LOCKSTEP": str(ROOT), "TRAIN": os.path.abspath(harness.TRAIN), "CONFIG": str(self.config),
                    "CHECKPOINT_DIR": str(self.directory), **settings}
        said = self.slurm.call("sbatch", "--parsable", f"--chdir={self.folder}", "--output=%j.out", *options,
                               ROOT / "slurm" / script, *words, **settings).stdout
        return said.strip().split(";")[0]

    def printed(self, job):
        path = self.folder / f"{job}.out"
        if path.exists():
            return path.read_text(errors="replace")
        # A task of an array has a number of its own.
        return "\n".join(f"--- {other.name}\n{other.read_text(errors='replace')}" for other in sorted(self.folder.glob("*.out")))

    def state(self, job):
        return self.slurm.job(job)["JobState"]

    def wait_for(self, condition, what, job, ended_well=False):
        """Waits; a job that fails meanwhile is the end of the test."""
        def look():
            if condition():
                return True
            state = self.state(job)
            bad = ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY") + (() if ended_well else ("COMPLETED",))
            self.assertNotIn(state, bad, f"{what}\n{self.printed(job)}\n{self.slurm.logs()}")
            return False
        harness.wait_for(look, f"{what}\n{self.printed(job)}", limit=100)

    def wait_until_training(self, job, after=-1):
        """Until the job runs and has saved a step beyond `after`, so that it can be disturbed."""
        self.wait_for(lambda: harness.newest_step(self.directory) > after and self.status().get("state") == "running",
                      "a training with a checkpoint", job)

    def status(self):
        path = self.directory / "status.json"
        return harness.read_json(path) if path.exists() else {}

    def go_on(self, job):
        """Waits until the job is queued again, and lets it run to some steps further, without Slurm's pause."""
        self.wait_for(lambda: self.state(job) == "PENDING", "the job to be queued again", job)
        # Slurm numbers the steps of the second start from 0 again, and fails when the old 0 is still being cleared.
        self.wait_for(lambda: not self.slurm.processes(job), "what is left of the first start to end", job)
        last = harness.newest_step(self.directory) + FURTHER
        self.write_config(last)
        self.slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        self.wait_for(lambda: self.state(job) == "COMPLETED", "the job to complete", job, ended_well=True)
        self.assertEqual(self.slurm.job(job)["Restarts"], "1")
        self.assertEqual(self.status()["restarts"], 1)
        self.check_done(job, last)

    def check_done(self, job, last):
        """The run in the directory is done, and has the bits of one that nothing disturbed."""
        report = harness.read_json(self.folder / "report.json")
        self.assertEqual(report["global_step"], last, self.printed(job))
        self.assertEqual((self.status()["state"], self.status()["exit_code"]), ("done", 0))
        expected = self.train(1, hidden="256,128", last_step=last)
        for key in ("parameters_digest", "loss", "test_accuracy"):
            self.assertEqual(report[key], expected[key], key)

    def test_signalled_saved_queued_again_resumed(self):
        job = self.submit("train.sbatch", options=["--ntasks=2"])
        self.wait_until_training(job)
        self.slurm.call("scancel", "--batch", "--signal=USR1", job)
        self.wait_for(lambda: self.status()["state"] == "stopped", "a save", job)
        step = harness.newest_step(self.directory)
        self.assertEqual((self.status()["exit_code"], self.status()["global_step"]), (75, step))
        self.assertIn("SIGUSR1 on rank", self.status()["reason"])
        self.go_on(job)
        self.assertIn(f"restored checkpoint ckpt-{step:08}.h5", self.printed(job))

    def test_signalled_under_mpirun(self):
        job = self.submit("train.sbatch", options=["--ntasks=3"], LAUNCH="mpirun",
                          LAUNCH_OPTIONS="--oversubscribe --bind-to none")
        self.wait_until_training(job)
        self.slurm.call("scancel", "--batch", "--signal=USR1", job)
        self.go_on(job)

    def test_a_rank_is_killed(self):
        job = self.submit("train.sbatch", options=["--ntasks=3"])
        self.wait_until_training(job)
        ranks = [pid for pid in self.slurm.processes(job) if harness.Job.is_program(pid)]
        self.assertEqual(len(ranks), 3)
        os.kill(ranks[-1], signal.SIGKILL)
        self.wait_for(lambda: self.state(job) == "PENDING", "the job to be queued again", job)
        self.assertEqual(self.status()["state"], "running")
        self.go_on(job)

    def test_the_time_limit_as_slurm_signals_it(self):
        # Slurm looks at the limits every 30 s; 55 s before the limit is the earliest that leaves a first step.
        job = self.submit("train.sbatch", "--time_margin_secs", 0, options=["--ntasks=1", "--time=1",
                                                                         "--signal=B:USR1@55"])
        self.wait_until_training(job)
        self.wait_for(lambda: self.status()["state"] == "stopped", "Slurm's signal", job)
        self.go_on(job)

    def test_scancel_saves_and_is_not_queued_again(self):
        job = self.submit("train.sbatch", options=["--ntasks=2"])
        self.wait_until_training(job)
        self.slurm.call("scancel", job)
        self.wait_for(lambda: self.slurm.job(job)["JobState"] == "CANCELLED"
                      and not self.slurm.call("squeue", "-h", "-j", job, check=False).stdout, "the job to end", job)
        self.assertEqual(self.slurm.job(job)["Restarts"], "0")
        if self.status()["state"] == "stopped":
            # SIGTERM goes to the ranks and to the script, which passes it on as SIGUSR1: either may come first.
            self.assertRegex(self.status()["reason"], "^SIG(TERM|USR1) on rank")
            self.assertEqual(harness.newest_step(self.directory), self.status()["global_step"])
        else:
            self.assertEqual(self.status()["state"], "running", "killed by Slurm before it had saved")
        last = harness.newest_step(self.directory) + FURTHER
        self.write_config(last)
        again = self.submit("train.sbatch", options=["--ntasks=2"])
        self.wait_for(lambda: self.state(again) == "COMPLETED", "the job to complete", again, ended_well=True)
        self.check_done(again, last)

    def test_ranks_that_do_not_know_of_each_other_are_refused(self):
        ended = self.slurm.call("srun", "-n3", "--mpi=none", os.path.abspath(harness.TRAIN),
                                *self.options(checkpoint_dir=self.directory), check=False)
        self.assertEqual(ended.returncode, 78, ended.stderr)
        self.assertEqual(ended.stderr.count("do not know of each other"), 1, ended.stderr)
        self.assertIn("srun --mpi=pmix", ended.stderr)
        self.assertFalse(self.directory.exists(), "nothing is written")

    def test_the_run_knows_when_the_allocation_ends(self):
        # A margin of nearly the whole minute: it leaves at once, long before Slurm would say anything.
        job = self.submit("train.sbatch", "--time_margin_secs", 59, options=["--ntasks=2", "--time=1"])
        self.wait_for(lambda: self.status().get("state") == "stopped", "the run to leave", job)
        self.assertEqual(self.status()["reason"], "the time of the allocation")
        self.slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        self.go_on(job)

    def test_wrong_settings_are_refused_before_anything_starts(self):
        for settings, said in [({"LAUNCH": "rsh"}, "give srun or mpirun"), ({"MAX_RESTARTS": "many"}, "no whole number"),
                               ({"TRAIN": "no-such-program"}, "which is no program"),
                               ({"CONFIG": "no-such-file"}, "which cannot be read")]:
            with self.subTest(**settings):
                job = self.submit("train.sbatch", **settings)
                harness.wait_for(lambda: self.state(job) == "FAILED", "the job to be refused")
                self.assertEqual(self.slurm.job(job)["ExitCode"], "64:0")
                self.assertIn(said, self.printed(job))
                self.assertNotIn("lockstep 0", self.printed(job))

    def test_an_array_trains_each_value(self):
        first = self.submit("array.sbatch", options=["--ntasks=1", "--array=0-1"], RUNS=str(self.folder), OPTION="seed",
                            VALUES="3 4")
        runs = {f"{first}_{task}": self.folder / f"seed-{seed}" for task, seed in enumerate((3, 4))}
        for task, directory in runs.items():
            self.wait_for(lambda directory=directory: harness.newest_step(directory) >= 0, "a training task", task)
        # The last first: its number is that of the whole array, and yet the other task is left alone.
        for at, (task, directory) in enumerate(reversed(runs.items())):
            self.slurm.call("scancel", "--batch", "--signal=USR1", task)
            self.wait_for(lambda task=task: self.state(task) == "PENDING", "the task to be queued again", task)
            if at == 0:
                self.assertEqual(self.state(f"{first}_0"), "RUNNING")
        numbers = [self.slurm.job(task)["JobId"] for task in runs]
        for number in numbers:
            harness.wait_for(lambda number=number: not self.slurm.processes(number), "what is left of the first start to end")
        last = max(harness.newest_step(directory) for directory in runs.values()) + FURTHER
        self.write_config(last)
        for task, directory in runs.items():
            self.slurm.call("scontrol", "update", f"JobId={task}", "StartTime=now")
            self.wait_for(lambda task=task: self.state(task) == "COMPLETED", "the task to complete", task, ended_well=True)
            self.assertEqual(self.slurm.job(task)["Restarts"], "1")
            self.assertEqual(harness.newest_step(directory), last)

    def test_a_scaling_study(self):
        out = self.folder / "study"
        job = self.submit("scaling.sbatch", options=["--ntasks=3"], OUT=str(out), GLOBAL_BATCH="240", STEPS="20", REPEATS="1",
                          SCALING=os.path.join(os.path.dirname(os.path.abspath(harness.TRAIN)), "lockstep-scaling"))
        harness.wait_for(lambda: self.state(job) in ("COMPLETED", "FAILED"), "the study", 100)
        self.assertEqual(self.state(job), "COMPLETED", self.printed(job))
        self.assertIn("All runs of a batch size ended with the same bits.", self.printed(job))
        samples = harness.read_json(out / "samples.json")
        self.assertEqual([(sample["ranks"], sample["nodes"]) for sample in samples], [(1, 1), (2, 1), (3, 1)])
        self.assertEqual([rank["rank"] for rank in harness.read_json(out / "probe.json")], [0, 1, 2])
        self.assertIn("<svg", (out / "report" / "report.html").read_text())


class Scripts(unittest.TestCase):
    SCRIPTS = sorted([*ROOT.glob("slurm/*.sbatch"), ROOT / "slurm/common.sh", ROOT / "tools/run_until_done"])

    @unittest.skipUnless(shutil.which("shellcheck"), "shellcheck is not installed (tools/install_packages test)")
    def test_shellcheck(self):
        self.assertEqual(len(self.SCRIPTS), 7)
        checked = harness.execute("shellcheck", "-x", f"--source-path={ROOT}", *self.SCRIPTS)
        self.assertEqual(checked.code, 0, checked.out)

    def test_srun_may_say_more_after_pmix(self):
        with tempfile.TemporaryDirectory() as folder:
            srun = pathlib.Path(folder, "srun")
            srun.write_text("#!/bin/sh\necho pmix\nyes none | head -c 1000000\n")  # more than a pipe holds
            srun.chmod(0o755)
            words = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "LOCKSTEP": str(ROOT), "TRAIN": "true",
                     "CONFIG": os.devnull, "LAUNCH": "srun"}
            for said, code in (("pmix", 0), ("pmi2", 64)):
                srun.write_text(srun.read_text().replace("pmix", said))
                checked = subprocess.run(["bash", "-c", 'set -euo pipefail; source "$LOCKSTEP/slurm/common.sh"; need_training'],
                                         env=words, capture_output=True, text=True, timeout=harness.LIMIT)
                self.assertEqual(checked.returncode, code, checked.stderr)

    def test_settings_that_contradict_are_refused(self):
        words = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": "4",
                 "LOCKSTEP": str(ROOT), "TRAIN": "true", "SCALING": "true", "CONFIG": os.devnull, "LAUNCH": "mpirun"}
        for script, settings, said in [
                ("array", {"VALUES": "3 4 3 5 4"}, "VALUES has '3 4' more than once"),
                ("array", {"VALUES": " "}, "VALUES is blank"),
                ("array", {"VALUES": "1 2", "SLURM_ARRAY_TASK_ID": "2"}, "submit with --array=0-1"),
                ("array", {"VALUES": "1 ../2", "SLURM_ARRAY_TASK_ID": "1"}, "a directory elsewhere"),
                ("scaling", {"REPEATS": "0"}, "REPEATS is 0"),
                ("scaling", {"STEPS": "00"}, "STEPS is 0"),
                ("scaling", {"SIZES": "1 2 1"}, "SIZES has 1 more than once"),
                ("scaling", {"SIZES": "1 5"}, "the allocation has 4 tasks")]:
            with self.subTest(script=script, **settings):
                refused = subprocess.run(["bash", ROOT / f"slurm/{script}.sbatch"], env=words | settings, capture_output=True,
                                         text=True, timeout=harness.LIMIT)
                self.assertEqual(refused.returncode, 64, refused.stderr)
                self.assertIn(said, refused.stderr)

    def test_no_absolute_path(self):
        for script in self.SCRIPTS:
            for line in script.read_text().splitlines()[1:]:
                self.assertNotRegex(line, r"(?<![\w}.])/(bin|etc|home|lib|mnt|opt|root|scratch|tmp|usr|var)\b", script.name)
            self.assertTrue(script.name == "common.sh" or "set -euo pipefail" in script.read_text(), script.name)


if __name__ == "__main__":
    harness.main()
