"""Checkpoints in shards with real programs: any layout writes and reads them, and nothing in them is taken unseen."""

import json
import os
import signal

import harness
from harness import EndToEnd, Job


class Shards(EndToEnd):
    CHANGES = {"optimizer": "momentum", "save_checkpoint_steps": 10, "shard_bytes": 9000, "last_step": 30}

    @staticmethod
    def shards(directory):
        return sorted(path.name for path in directory.glob("ckpt.*.shard*.h5"))

    def inspect(self, *words, code=0):
        ended = harness.execute(harness.INSPECT, *words)
        self.assertEqual(ended.code, code, str(ended))
        return ended.out

    def test_any_layout_writes_and_any_other_goes_on_to_the_same_bits(self):
        changes = self.CHANGES | {"last_step": 50}
        expected = self.train(2, **changes)
        whole = self.folder / "whole"
        self.train(1, **changes | {"last_step": 30, "shard_bytes": 1 << 30}, checkpoint_dir=whole)
        self.assertEqual(self.shards(whole), [])
        # The nodes of the last share out pieces of 4,096 parameters, of which there are two.
        layouts = ((1, {}, 1), (4, {}, 4), (4, {"ranks_per_node": 2, "shard_optimizer": 1}, 4),
                   (3, {"ranks_per_node": 1, "shard_optimizer": 1}, 2))
        for number, (ranks, layout, shards) in enumerate(layouts):
            directory = self.folder / f"run{number}"
            self.train(ranks, **self.CHANGES | layout, checkpoint_dir=directory, max_to_keep=2)
            manifests = harness.checkpoints(directory)  # a save waits for the one before, so which there are depends
            self.assertEqual((len(manifests), manifests[-1]), (2, "ckpt-00000030.h5"))
            shown = json.loads(self.inspect("--json", directory / manifests[-1]))[0]
            self.assertEqual(len(shown["shards"]), shards)
            self.assertEqual(len(self.shards(directory)), 2 * shards, "those of other checkpoints are gone")
            self.inspect("--verify", directory)
            self.assertEqual(self.inspect("--digest", directory).splitlines()[-1].split()[0],
                             self.inspect("--digest", whole).splitlines()[-1].split()[0])
            self.inspect("--diff", whole, directory)
            following, others, _ = layouts[number - 1]
            report = self.train(following, **changes | others, checkpoint_dir=directory)
            self.assertEqual(report["restored_from"], "ckpt-00000030.h5")
            for key in ("parameters_digest", "loss", "test_accuracy"):
                self.assertEqual(report[key], expected[key], key)
        # One that shards wrote goes on in one file, and its shards go with it.
        report = self.train(2, **changes | {"last_step": 80, "shard_bytes": 1 << 30}, checkpoint_dir=directory,
                            max_to_keep=2)
        self.assertEqual(report["restored_from"], "ckpt-00000050.h5")
        self.assertEqual(self.shards(directory), [])

    def test_a_damaged_shard_falls_back_and_inspect_says_which(self):
        directory = self.folder / "run"
        self.train(3, **self.CHANGES, checkpoint_dir=directory)
        manifests = harness.checkpoints(directory)
        shown = json.loads(self.inspect("--json", directory / "ckpt-00000030.h5"))[0]
        victim = directory / shown["shards"][1]
        good = bytearray(victim.read_bytes())
        good[5000] ^= 4
        victim.write_bytes(good)
        self.assertIn(victim.name, self.inspect("--verify", directory, code=65))
        report = self.train(2, **self.CHANGES, checkpoint_dir=directory)
        self.assertEqual(report["restored_from"], manifests[-2])
        self.assertIn(victim.name, report["stderr"])
        (directory / json.loads(self.inspect("--json", directory / "ckpt-00000030.h5"))[0]["shards"][0]).unlink()
        self.assertIn("is not there", self.inspect("--verify", directory, code=65))
        exported = self.folder / "old.npz"
        self.inspect("--export", exported, directory / manifests[-2])
        self.assertTrue(exported.exists())

    def test_signed_with_a_key_that_the_chief_alone_reads(self):
        keys = [self.folder / name for name in ("key", "other")]
        for number, key in enumerate(keys):
            key.write_bytes(bytes([number + 1]) * 32)
            key.chmod(0o600)
        directory = self.folder / "run"
        self.train(3, **self.CHANGES, checkpoint_dir=directory, key_file=keys[0], max_to_keep=2)
        newest = "ckpt-00000030.h5"
        shown = json.loads(self.inspect("--json", directory / newest))[0]
        self.assertEqual(len(shown["shards"]), 3)
        for shard in shown["shards"]:
            self.inspect("--key_file", keys[0], "--verify", directory / shard)
        self.inspect("--verify", directory)
        self.inspect("--key_file", keys[0], "--verify", directory)
        self.assertIn("another key", self.inspect("--key_file", keys[1], "--verify", directory, code=65))

        # Nobody goes on from them without the key, and nothing is touched.
        before = harness.snapshot(directory, without=("status.json",))
        for key in (keys[1], self.folder / "none"):
            ended = harness.run_each(2, harness.TRAIN, *self.options(**self.CHANGES, checkpoint_dir=directory, key_file=key))
            self.assertEqual(ended.codes, [65 if key == keys[1] else 74] * 2, str(ended))
            self.assertEqual(harness.snapshot(directory, without=("status.json",)), before)
        unsigned = self.folder / "unsigned"
        self.train(3, **self.CHANGES, checkpoint_dir=unsigned)
        ended = harness.run(2, harness.TRAIN, *self.options(**self.CHANGES, checkpoint_dir=unsigned, key_file=keys[0]))
        self.assertEqual(ended.code, 65, str(ended))
        self.assertIn("is not signed", ended.err)

        # A shard of the save before in the place of the newest one's: both are signed.
        older = json.loads(self.inspect("--json", directory / harness.checkpoints(directory)[-2]))[0]
        good = (directory / shown["shards"][1]).read_bytes()
        (directory / shown["shards"][1]).write_bytes((directory / older["shards"][1]).read_bytes())
        self.assertIn("another file", self.inspect("--key_file", keys[0], "--verify", directory, code=65))
        (directory / shown["shards"][1]).write_bytes(good)
        changes = self.CHANGES | {"last_step": 50}
        report = self.train(2, **changes, checkpoint_dir=directory, key_file=keys[0])
        self.assertEqual(report["restored_from"], newest)
        self.assertEqual(report["parameters_digest"], self.train(1, **changes)["parameters_digest"])

    def test_killed_while_shards_are_written_and_stopped_with_a_save(self):
        directory = self.folder / "run"
        changes = self.CHANGES | {"save_checkpoint_steps": 3, "last_step": 1000000, "max_to_keep": 3}
        for ranks in (3, 2, 4):
            before = harness.newest_step(directory)
            with Job(ranks, harness.TRAIN, *self.options(**changes, checkpoint_dir=directory)) as job:
                harness.wait_for(lambda: harness.newest_step(directory) > before or job.process.poll() is not None,
                                 "a checkpoint")
                self.assertIsNone(job.process.poll(), job.text())
                job.kill()
            said = [int(line.split("(step ")[1].split(",")[0]) for line in job.text().splitlines()
                    if line.startswith("saved checkpoint")]
            self.assertGreaterEqual(harness.newest_step(directory), max(said, default=-1))
        with Job(3, harness.TRAIN, *self.options(**changes, checkpoint_dir=directory)) as job:
            before = harness.newest_step(directory)
            harness.wait_for(lambda: harness.newest_step(directory) > before or job.process.poll() is not None,
                             "a checkpoint")
            os.kill(job.process.pid, signal.SIGUSR1)
            ended = job.wait()
        self.assertEqual(ended.code, 75, str(ended))
        status = harness.read_json(directory / "status.json")
        self.assertEqual(status["global_step"], harness.newest_step(directory))
        named = []
        for path in directory.glob("ckpt-*.h5*"):  # one that a kill kept from being deleted is set aside
            named += json.loads(self.inspect("--json", path))[0]["shards"]
        self.assertEqual(self.shards(directory), sorted(named), "none is left over")


if __name__ == "__main__":
    harness.main()
