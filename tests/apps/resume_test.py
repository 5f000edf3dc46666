"""Promises P1 and P2 with real programs: killed or stopped at any moment, a run goes on to the same bits."""

import os
import random
import signal
import time

import harness
from harness import EndToEnd, Job

SEED = int(os.environ.get("LOCKSTEP_TEST_SEED", random.SystemRandom().randrange(1 << 30)))


class Resume(EndToEnd):
    """Jobs that would never end are killed or stopped, on however fast a machine; the next goes on to some step."""

    LONG = {"hidden": "256,128", "last_step": 1000000, "save_checkpoint_steps": 7}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        print(f"LOCKSTEP_TEST_SEED={SEED}", flush=True)
        cls.draw = random.Random(SEED)

    def start(self, ranks, directory, **changes):
        return Job(ranks, harness.TRAIN, *self.options(**self.LONG | {"checkpoint_dir": directory} | changes))

    def finish(self, ranks, directory):
        """Goes on for 40 steps more and compares with a run that nothing disturbed."""
        newest = harness.newest_step(directory)
        changes = self.LONG | {"last_step": newest + 40}
        report = self.train(ranks, **changes, checkpoint_dir=directory)
        self.assertEqual(report["restored_from"], f"ckpt-{newest:08}.h5")
        undisturbed = self.train(2, **changes | {"save_checkpoint_steps": 0})
        for key in ("parameters_digest", "loss", "test_accuracy", "global_step"):
            self.assertEqual(report[key], undisturbed[key], key)
        self.assertEqual(harness.read_json(directory / "status.json")["state"], "done")
        return undisturbed

    # TF: Sharded.partitioned_variables
    def test_killed_again_and_again_on_changing_ranks(self):
        directory = self.folder / "run"
        for ranks in (2, 3, 1, 4, 2):
            before = harness.newest_step(directory)
            with self.start(ranks, directory) as job:
                harness.wait_for(lambda: harness.newest_step(directory) > before or job.process.poll() is not None,
                                 "a checkpoint")
                time.sleep(self.draw.uniform(0, 0.25))  # so that the kill comes at any moment
                self.assertIsNone(job.process.poll(), job.text())
                job.kill()
                if before >= 0:
                    self.assertIn("restored checkpoint", job.text())
            acknowledged = [int(line.split("(step ")[1].split(",")[0]) for line in job.text().splitlines()
                            if line.startswith("saved checkpoint")]
            if acknowledged:
                self.assertGreaterEqual(harness.newest_step(directory), max(acknowledged), "an acknowledged save is lost")
            self.assertTrue((directory / ".lock").exists(), "the killed job held the directory")
            status = harness.read_json(directory / "status.json")
            self.assertEqual(status["state"], "running")
            shown = harness.execute(harness.INSPECT, directory)
            self.assertIn("lost: it was running", shown.out)
        self.finish(3, directory)

    def test_running_statistics_go_on_where_they_were(self):
        """Batch norm: the same bits of parameters, statistics and evaluation as without an interruption."""
        folder = self.folder / "cifar"
        folder.mkdir()
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            generator = random.Random(name)
            (folder / name).write_bytes(b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(8)))
        changes = {"dataset": "cifar10", "data_dir": folder, "model": "resnet", "depth": 8, "hidden": None,
                   "global_batch": 12, "micro_batch": 2, "learning_rate": 0.02}
        once = self.train(2, **changes, last_step=7)
        directory = self.folder / "run"
        for ranks, last_step in ((3, 2), (1, 5), (4, 7)):
            report = self.train(ranks, **changes, checkpoint_dir=directory, last_step=last_step)
        for key in ("parameters_digest", "buffers_digest", "loss", "test_loss"):
            self.assertEqual(report[key], once[key], key)
        self.assertNotEqual(once["buffers_digest"], self.train(1, **changes, last_step=6)["buffers_digest"])

    # TF: MaxToKeep.testSharded
    def test_the_newest_stay_where_ranks_share_out_the_state(self):
        """Disk and state file agree, also when the next launch has other shards and keeps fewer."""
        directory = self.folder / "run"
        changes = {"checkpoint_dir": directory, "optimizer": "momentum", "save_checkpoint_steps": 5, "shard_optimizer": 1}
        for ranks, per_node, last_step, keep, kept in ((3, 1, 20, 3, (10, 15, 20)), (4, 2, 30, 2, (25, 30))):
            self.train(ranks, ranks_per_node=per_node, last_step=last_step, max_to_keep=keep, **changes)
            names = [f"ckpt-{step:08d}.h5" for step in kept]
            self.assertEqual(harness.checkpoints(directory), names)
            state = harness.read_json(directory / "checkpoint.json")
            self.assertEqual([checkpoint["file"] for checkpoint in state["checkpoints"]], names)
            others = {path.name for path in directory.iterdir()} - set(names)
            self.assertEqual({name for name in others if not name.startswith("events.")},
                             {"checkpoint.json", "status.json"})
            for name in names:
                shown = harness.execute(harness.INSPECT, "--verify", directory / name)
                self.assertEqual(shown.code, 0, str(shown))

    def test_killed_at_the_very_start(self):
        """Before, while and after the first save: the next launch begins or goes on, but never fails."""
        directory = self.folder / "run"
        changes = {"last_step": 20, "hidden": 32, "save_checkpoint_steps": 1}
        expected = self.train(1, **changes)["parameters_digest"]
        for _ in range(4):
            with self.start(2, directory, **{**changes, "last_step": 100000}) as job:
                harness.wait_for(lambda: len(job.ranks()) == 2 or job.process.poll() is not None, "the ranks")
                time.sleep(self.draw.uniform(0, 0.4))  # so that the kill or signal comes at any moment
                job.kill()
            had = harness.newest_step(directory)
            if had >= 20:
                break
        if harness.newest_step(directory) <= 20:
            report = self.train(2, **changes, checkpoint_dir=directory)
            self.assertEqual(report["parameters_digest"], expected)
        else:
            report = self.train(2, **changes, checkpoint_dir=directory, max_to_keep=0)
            self.assertIsNone(report["loss"])

    def test_a_signal_to_mpirun_stops_with_a_save(self):
        directory = self.folder / "run"
        with self.start(2, directory, save_checkpoint_steps=0) as job:
            harness.wait_for(lambda: harness.newest_step(directory) >= 0, "the first save")
            time.sleep(self.draw.uniform(0.05, 0.3))  # so that the signal comes at any moment
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        self.assertIn("launch again", ended.err)
        status = harness.read_json(directory / "status.json")
        self.assertEqual((status["state"], status["exit_code"]), ("stopped", 75))
        self.assertEqual(status["global_step"], harness.newest_step(directory))
        self.finish(3, directory)

    def test_a_time_limit_stops_with_a_save_and_a_complete_run_does_nothing(self):
        directory = self.folder / "run"
        report_file = self.folder / "stopped.json"
        ended = harness.run(3, harness.TRAIN, *self.options(**self.LONG | {
            "checkpoint_dir": directory, "save_checkpoint_steps": 0, "max_run_secs": 0.3, "report": report_file}))
        self.assertEqual(ended.code, 75, str(ended))
        report = harness.read_json(report_file)
        self.assertIsNone(report["test_accuracy"], "null unless the run ended by itself")
        self.assertEqual(harness.newest_step(directory), report["global_step"])
        self.assertEqual(harness.read_json(directory / "status.json")["state"], "stopped")
        undisturbed = self.finish(2, directory)

        # The state file gets the token of its new owner: nothing that an earlier one may still write counts from then on.
        before = harness.snapshot(directory, without=("status.json", "checkpoint.json"))
        again = self.train(2, **self.LONG | {"last_step": undisturbed["global_step"]}, checkpoint_dir=directory)
        self.assertEqual(again["global_step"], undisturbed["global_step"])
        self.assertIsNone(again["loss"], "no step, no loss")
        self.assertEqual(again["parameters_digest"], undisturbed["parameters_digest"])
        self.assertEqual(again["test_accuracy"], undisturbed["test_accuracy"])
        self.assertIn("complete", again["stderr"])
        after = harness.snapshot(directory, without=("status.json", "checkpoint.json"))
        self.assertEqual({name for name in after if not name.startswith("events")},
                         {name for name in before if not name.startswith("events")})
        for name, digest in before.items():
            self.assertEqual(after[name], digest, name)

    def test_going_on_further_and_with_other_intervals(self):
        directory = self.folder / "run"
        self.train(3, last_step=17, checkpoint_dir=directory, save_checkpoint_steps=5)
        report = self.train(2, last_step=40, checkpoint_dir=directory, save_checkpoint_steps=11, max_to_keep=2,
                            prefetch=2)
        self.assertEqual(report["restored_from"], "ckpt-00000017.h5")
        self.assertEqual(report["parameters_digest"], self.train(1)["parameters_digest"])
        self.assertEqual(len(harness.checkpoints(directory)), 2)


if __name__ == "__main__":
    harness.main()
