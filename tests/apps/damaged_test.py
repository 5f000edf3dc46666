"""Promise P2: damaged checkpoints are passed over aloud, kept aside, and never lead to a silent new start."""

import shutil

import harness
from harness import EndToEnd


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) * 2 // 3])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


class Damaged(EndToEnd):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.master = cls.scratch / "master"
        test = cls("options")
        test.folder = cls.scratch
        cls.finished = test.train(2, checkpoint_dir=cls.master, last_step=30, save_checkpoint_steps=10)
        cls.expected = test.train(1, last_step=40)["parameters_digest"]

    def copy(self, name="run"):
        return shutil.copytree(self.master, self.folder / name)

    def test_the_newest_is_damaged(self):
        for number, damage in enumerate((truncate, flip_a_bit)):
            with self.subTest(damage=damage.__name__):
                run = self.copy(f"run{number}")
                newest = run / "ckpt-00000030.h5"
                damage(newest)
                content = newest.read_bytes()
                verified = harness.execute(harness.INSPECT, "--verify", run)
                self.assertEqual(verified.code, 65, str(verified))
                self.assertIn("DAMAGED", verified.out)
                report = self.train(3, checkpoint_dir=run)
                self.assertEqual(report["restored_from"], "ckpt-00000020.h5")
                self.assertEqual(report["parameters_digest"], self.expected)
                self.assertRegex(report["stderr"], "warning: .*ckpt-00000030.h5.*older")
                self.assertIn("ckpt-00000030.h5.damaged-1", report["stderr"])
                self.assertEqual((run / "ckpt-00000030.h5.damaged-1").read_bytes(), content, "kept as it was")
                self.assertEqual(harness.execute(harness.INSPECT, "--verify", run).code, 0)
                self.assertIn("damaged-1", harness.execute(harness.INSPECT, run).out)

    def test_all_are_damaged(self):
        run = self.copy()
        for name in harness.checkpoints(run):
            flip_a_bit(run / name)
        before = harness.snapshot(run, without=("status.json",))
        for ranks in (1, 3):
            ended = harness.run_each(ranks, harness.TRAIN, *self.options(checkpoint_dir=run))
            self.assertEqual(ended.codes, [65] * ranks, str(ended))
            self.assertEqual(len(ended.errors()), 1, str(ended))
            for name in harness.checkpoints(run):
                self.assertIn(name, ended.err[ended.err.index("error: "):])
            self.assertIn("--fresh", ended.err)
            self.assertEqual(harness.snapshot(run, without=("status.json",)), before)
        measured = harness.run_each(2, harness.EVAL, "--checkpoint_dir", run, "--dataset", "idx", "--data_dir", self.data)
        self.assertEqual(measured.codes, [65, 65], str(measured))

    def test_checkpoints_that_are_gone(self):
        run = self.copy()
        for name in harness.checkpoints(run):
            (run / name).unlink()
        ended = harness.run_each(3, harness.TRAIN, *self.options(checkpoint_dir=run))
        self.assertEqual(ended.codes, [65] * 3, str(ended))
        self.assertIn("checkpoint.json", ended.err)

    def test_the_state_file_is_a_hint(self):
        for number, content in enumerate((None, b"garbage", b'{"format": 1, "checkpoints": [{"file": "../x"}]}')):
            with self.subTest(content=content):
                run = self.copy(f"run{number}")
                if content is None:
                    (run / "checkpoint.json").unlink()
                else:
                    (run / "checkpoint.json").write_bytes(content)
                report = self.train(2, checkpoint_dir=run)
                self.assertEqual(report["restored_from"], "ckpt-00000030.h5")
                self.assertEqual(report["parameters_digest"], self.expected)
                self.assertIn("checkpoint.json", report["stderr"])
                state = harness.read_json(run / "checkpoint.json")
                self.assertEqual([entry["file"] for entry in state["checkpoints"]], harness.checkpoints(run))

    def test_fresh_sets_all_aside(self):
        run = self.copy()
        old = {name: digest for name, digest in harness.snapshot(run).items() if name.startswith("ckpt")}
        report = self.train(3, checkpoint_dir=run, fresh=True)
        self.assertIsNone(report["restored_from"])
        self.assertEqual(report["parameters_digest"], self.expected)
        new = harness.snapshot(run)
        for name, digest in old.items():
            self.assertEqual(new[f"{name}.superseded-1"], digest)

    def test_restore_from_an_older_one(self):
        run = self.copy()
        report = self.train(3, checkpoint_dir=run, restore_from="ckpt-00000010.h5")
        self.assertEqual(report["restored_from"], "ckpt-00000010.h5")
        self.assertEqual(report["parameters_digest"], self.expected)
        for step in (20, 30):
            self.assertTrue((run / f"ckpt-000000{step}.h5.superseded-1").exists())
        before = harness.snapshot(run, without=("status.json",))
        for name, code in (("ckpt-00000099.h5", (65,)), ("../ckpt-00000010.h5", (64,))):
            ended = harness.run(2, harness.TRAIN, *self.options(checkpoint_dir=run, restore_from=name))
            self.assertIn(ended.code, code, str(ended))
            self.assertEqual(len(ended.errors()), 1, str(ended))
            self.assertEqual(harness.snapshot(run, without=("status.json",)), before)

    def test_a_renamed_checkpoint_does_not_pass_for_another_step(self):
        run = self.copy()
        (run / "ckpt-00000030.h5").rename(run / "ckpt-00000035.h5")
        report = self.train(2, checkpoint_dir=run)
        self.assertEqual(report["restored_from"], "ckpt-00000020.h5")
        self.assertEqual(report["parameters_digest"], self.expected)


if __name__ == "__main__":
    harness.main()
