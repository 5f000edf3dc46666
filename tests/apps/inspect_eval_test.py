"""lockstep-inspect and lockstep-eval: what they say is what the training said, and they change nothing."""

import json
import random
import shutil

import harness
from harness import EndToEnd, Job


class InspectAndEval(EndToEnd):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.runs = {}
        test = cls("options")
        test.folder = cls.scratch
        for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 2})):
            directory = cls.scratch / f"run-{name}"
            ranks = 3 if name == "b" else 1
            cls.runs[name] = (directory, test.train(ranks, checkpoint_dir=directory, save_checkpoint_steps=20, **changes))

    def inspect(self, *words, code=0):
        ended = harness.execute(harness.INSPECT, *words)
        self.assertEqual(ended.code, code, str(ended))
        return ended

    def test_a_directory(self):
        directory, _ = self.runs["a"]
        before = harness.snapshot(directory)
        text = self.inspect(directory).out
        for words in ("ckpt-00000020.h5", "ckpt-00000040.h5", "verified", "done: reached step 40", "by nobody"):
            self.assertIn(words, text)
        lines = [line for line in text.splitlines() if line.lstrip().startswith("ckpt")]
        self.assertEqual(len(lines), 3)
        self.assertEqual(len({line.index("verified") for line in lines}), 1, "columns are aligned")
        listed = json.loads(self.inspect("--json", directory).out)[0]
        self.assertEqual([c["step"] for c in listed["checkpoints"]], [0, 20, 40])
        self.assertTrue(all(c["verified"] for c in listed["checkpoints"]))
        self.assertEqual((listed["status"]["state"], listed["status"]["exit_code"]), ("done", 0))
        self.assertIsNone(listed["holder"])
        self.inspect("--verify", directory, self.runs["b"][0])
        self.assertEqual(harness.snapshot(directory), before)
        ended = self.inspect(self.folder / "none", code=65)
        self.assertEqual(len(ended.errors()), 1)
        self.assertIn("no checkpoint", self.inspect(self.folder).out)
        self.inspect(code=64)
        self.inspect("--diff", directory, code=64)
        self.assertIn("did you mean --verify", self.inspect("--verfy", directory, code=64).err)

    def test_a_file(self):
        directory, report = self.runs["a"]
        file = directory / "ckpt-00000040.h5"
        text = self.inspect(file).out
        for words in ("step 40", "/model/dense0/weight", "[144, 32]", "f32", "momentum 0.9",
                      report["parameters_digest"]):
            self.assertIn(words, text)
        shown = json.loads(self.inspect("--json", file).out)[0]
        self.assertEqual((shown["step"], shown["parameters_digest"]), (40, report["parameters_digest"]))
        self.assertEqual(shown["settings"]["hidden"], "32")
        weights = next(t for t in shown["tensors"] if t["name"] == "/model/dense0/weight")
        self.assertEqual((weights["shape"], weights["nan"]), ([144, 32], 0))
        self.assertTrue(weights["min"] < weights["mean"] < weights["max"])
        # Starts fast: reading and showing a small one takes milliseconds more than saying its version.
        version = min(harness.execute(harness.INSPECT, "--version").seconds for _ in range(5))
        self.assertLess(min(self.inspect(file).seconds for _ in range(5)), version + 0.25)

    def test_digest_and_diff(self):
        (a, of_a), (b, _), (c, of_c) = (self.runs[name] for name in "abc")
        digests = {name: self.inspect("--digest", self.runs[name][0] / "ckpt-00000040.h5").out for name in "abc"}
        self.assertEqual(digests["a"], digests["b"], "independent of the ranks")
        self.assertNotEqual(digests["a"], digests["c"])
        self.assertIn(of_a["parameters_digest"], digests["a"])
        self.assertIn(of_c["parameters_digest"], digests["c"])
        self.assertEqual(self.inspect("--digest", a).out, digests["a"], "a directory stands for its newest")

        self.assertIn("equal", self.inspect("--diff", a, b).out.splitlines()[-1])
        different = self.inspect("--diff", a, c, code=1).out
        self.assertRegex(different, r"/config/seed +'1' and '2'")
        listed = json.loads(self.inspect("--diff", "--json", a, a / "ckpt-00000020.h5", code=1).out)
        self.assertFalse(listed["equal"])
        by_name = {tensor["name"]: tensor for tensor in listed["tensors"]}
        self.assertEqual(by_name["/config/seed"]["verdict"], "equal")
        self.assertEqual(by_name["/session/global_step"]["max_difference"], 20)
        self.assertGreater(by_name["/model/dense1/weight"]["max_ulp"], 0)

    def test_digests_of_tensors(self):
        a, c = self.runs["a"][0], self.runs["c"][0]
        lines = [line.split("  ") for line in self.inspect("--digests", a).out.splitlines()]
        digests = {name.split(":")[1]: digest for digest, name in lines if ":/" in name}
        self.assertEqual(lines[0][0], self.inspect("--digest", a).out.split()[0])
        shown = json.loads(self.inspect("--json", a / "ckpt-00000040.h5").out)[0]
        for tensor in shown["tensors"]:
            self.assertEqual(digests[tensor["name"]], tensor["digest"])
        others = json.loads(self.inspect("--digests", "--json", c).out)[0]["tensors"]
        self.assertEqual(set(others), {name for name in digests if name != "/model/"})
        self.assertNotEqual(others["/model/dense0/weight"], digests["/model/dense0/weight"])
        self.assertEqual(others["/config/hidden"], digests["/config/hidden"])

    def test_with_a_key_only_what_was_signed_counts(self):
        keys = [self.folder / name for name in ("key", "other")]
        for number, key in enumerate(keys):
            key.write_bytes(bytes([number]) * 32)
            key.chmod(0o600)
        directory = self.folder / "run"
        self.train(1, checkpoint_dir=directory, key_file=keys[0])
        file = directory / "ckpt-00000040.h5"
        self.inspect("--verify", directory)
        for words in (["--verify", directory], ["--verify", file], [file], ["--digest", directory],
                      ["--diff", directory, file]):
            self.inspect("--key_file", keys[0], *words)
            self.inspect("--key_file", keys[1], *words, code=65)
        self.assertIn("signed with another key", self.inspect("--key_file", keys[1], directory).out)
        self.assertIn("not signed", self.inspect("--key_file", keys[0], self.runs["a"][0]).out)
        self.inspect("--key_file", self.folder / "none", directory, code=74)

    def test_verify_finds_what_is_missing(self):
        directory = shutil.copytree(self.runs["a"][0], self.folder / "run")
        self.assertEqual(json.loads(self.inspect("--verify", "--json", directory).out)[0]["problems"], [])
        self.assertIn("--checkpoint_basename",
                      self.inspect("--verify", "--checkpoint_basename", "other", directory, code=65).out)
        (directory / "ckpt-00000020.h5").unlink()
        self.assertIn("ckpt-00000020.h5 is named in checkpoint.json", self.inspect("--verify", directory, code=65).out)
        self.inspect(directory)
        self.inspect("--digest", directory)
        for name in harness.checkpoints(directory):
            (directory / name).unlink()
        self.assertEqual(len(json.loads(self.inspect("--verify", "--json", directory, code=65).out)[0]["problems"]), 3)
        (directory / "checkpoint.json").write_text("{")
        self.inspect("--verify", directory)  # then nothing says that there was anything

    def test_verify_finds_damage(self):
        directory = self.folder / "run"
        directory.mkdir()
        file = directory / "ckpt-00000040.h5"
        good = (self.runs["a"][0] / "ckpt-00000040.h5").read_bytes()
        draw = random.Random(5)
        for _ in range(12):
            bad = bytearray(good)
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
            file.write_bytes(bad)
            self.assertIn("DAMAGED", self.inspect("--verify", directory, code=65).out)
            self.inspect("--verify", file, code=65)
            self.inspect("--digest", file, code=65)
        for length in (0, 1, len(good) // 2, len(good) - 1):
            file.write_bytes(good[:length])
            self.inspect("--verify", directory, code=65)
        file.write_bytes(good)
        self.inspect("--verify", directory)

    def test_evaluation_is_that_of_the_training(self):
        directory, report = self.runs["b"]
        before = harness.snapshot(directory)
        for ranks in (1, 2, 3):
            out = self.folder / f"e{ranks}.json"
            ended = harness.run(ranks, harness.EVAL, "--checkpoint_dir", directory, "--dataset", "idx", "--data_dir",
                                self.data, "--report", out)
            self.assertEqual(ended.code, 0, str(ended))
            result = harness.read_json(out)
            self.assertEqual(result["accuracy"], report["test_accuracy"])
            self.assertEqual(result["loss"], report["test_loss"])
            self.assertEqual(result["parameters_digest"], report["parameters_digest"])
            self.assertEqual((result["checkpoint"], result["global_step"]), ("ckpt-00000040.h5", 40))
            self.assertIn(f"accuracy {report['test_accuracy']:.4f}", ended.out)
        at_start = self.folder / "start.json"
        ended = harness.run(2, harness.EVAL, "--checkpoint_dir", directory, "--checkpoint", "ckpt-00000000.h5",
                            "--dataset", "idx", "--data_dir", self.data, "--split", "train", "--report", at_start)
        self.assertEqual(ended.code, 0, str(ended))
        result = harness.read_json(at_start)
        self.assertEqual((result["global_step"], result["samples"]), (0, 720))
        self.assertLess(result["accuracy"], 0.6)
        self.assertEqual(harness.snapshot(directory), before, "evaluation writes nothing")

    def test_evaluation_of_what_does_not_fit(self):
        directory, _ = self.runs["a"]
        small = harness.make_data(self.folder / "small", side=8)
        data = ["--dataset", "idx", "--data_dir", self.data]
        for words, code, expected in [
                (["--checkpoint_dir", directory, "--dataset", "idx", "--data_dir", small], 78, "dense0/weight"),
                (["--checkpoint_dir", directory, "--checkpoint", "ckpt-00000077.h5", *data], 65, "ckpt-00000077.h5"),
                (["--checkpoint_dir", self.folder / "none", *data], 65, "none"),
                (["--checkpoint_dir", self.folder, *data], 65, "no checkpoint"),
                (data, 64, "--checkpoint_dir"),
                (["--checkpoint_dir", directory, "--dataset", "idx", "--data_dir", self.folder], 65, "t10k-images"),
        ]:
            with self.subTest(expected=expected):
                ended = harness.run_each(3, harness.EVAL, *words)
                self.assertEqual(ended.codes, [code] * 3, str(ended))
                self.assertEqual(len(ended.errors()), 1, str(ended))
                self.assertIn(expected, ended.err)

    def test_beside_a_training_that_saves(self):
        directory = self.folder / "run"
        options = self.options(checkpoint_dir=directory, hidden="64", last_step=1000000, save_checkpoint_steps=1,
                               max_to_keep=2)
        with Job(1, harness.TRAIN, *options) as job:
            harness.wait_for(lambda: harness.newest_step(directory) >= 3, "some saves")
            for _ in range(3):
                ended = harness.run(1, harness.EVAL, "--checkpoint_dir", directory, "--dataset", "idx", "--data_dir",
                                    self.data)
                self.assertEqual(ended.code, 0, str(ended))
                shown = self.inspect("--verify", directory)
                self.assertIn("running", shown.out)
                self.assertIn(f"pid {job.ranks()[0]}", shown.out)
            self.assertIsNone(job.process.poll(), job.text())


if __name__ == "__main__":
    harness.main()
