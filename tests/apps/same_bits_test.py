"""Promise P1 with real programs: one parameters_digest and one loss, however the work is spread."""

import json
import os
import random
import shutil
import unittest.mock

import harness
from harness import EndToEnd

# What the ranks may change: everything that is reported but these.
BITS = ("parameters_digest", "buffers_digest", "loss", "test_accuracy", "test_rmse", "test_loss", "global_step")


class SameBits(EndToEnd):
    def bits(self, ranks, **changes):
        report = self.train(ranks, **changes)
        self.assertEqual(report["ranks"], ranks)
        return {key: report[key] for key in BITS if key in report}

    def test_fashion_mnist_on_any_number_of_ranks(self):
        """The run that the README shows."""
        changes = {"dataset": "fashion-mnist", "data_dir": None, "hidden": 64, "last_step": 60}
        expected = self.bits(1, **changes)
        self.assertLess(expected["loss"], 1.0)
        self.assertGreater(expected["test_accuracy"], 0.7)
        for ranks in (2, 3, 4, 5, 7, 8):
            with self.subTest(ranks=ranks):
                self.assertEqual(self.bits(ranks, **changes), expected)

    def test_convolutions(self):
        changes = {"dataset": "fashion-mnist", "data_dir": None, "model": "lenet", "hidden": None, "last_step": 6,
                   "global_batch": 24, "micro_batch": 4, "learning_rate": 0.02}
        expected = self.bits(1, **changes)
        for ranks in (2, 5):
            with self.subTest(ranks=ranks):
                self.assertEqual(self.bits(ranks, **changes), expected)
        self.assertEqual(self.bits(1, **changes, threads=4), expected)

    def test_batch_norm_and_its_running_statistics(self):
        folder = self.folder / "cifar"
        folder.mkdir()
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            generator = random.Random(name)
            (folder / name).write_bytes(b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(8)))
        changes = {"dataset": "cifar10", "data_dir": folder, "model": "resnet", "depth": 8, "hidden": None,
                   "last_step": 4, "global_batch": 12, "micro_batch": 2, "learning_rate": 0.05}
        expected = self.bits(1, **changes)
        self.assertNotEqual(expected, self.bits(1, **changes | {"micro_batch": 3}))
        for ranks, variant in [(3, {"threads": 2}), (4, {"ranks_per_node": 2}),
                               (3, {"ranks_per_node": 1, "shard_optimizer": 1}),
                               (4, {"ranks_per_node": 3, "shard_optimizer": 1, "bucket_bytes": 16384})]:
            with self.subTest(ranks=ranks, **variant):
                self.assertEqual(self.bits(ranks, **changes, **variant), expected)
        # Rounded gradients: same bits on one layout, also after a stop; statistics themselves are not rounded.
        rounded = {**changes, "ranks_per_node": 2, "shard_optimizer": 1, "gradient_dtype": "bf16"}
        once = self.bits(3, **rounded)
        self.assertNotEqual(once["parameters_digest"], expected["parameters_digest"])
        self.assertAlmostEqual(once["loss"], expected["loss"], delta=0.02 * expected["loss"])
        directory = self.folder / "rounded"
        self.train(3, checkpoint_dir=directory, **{**rounded, "last_step": 2})
        self.assertEqual(self.bits(3, checkpoint_dir=directory, **rounded), once)
        first = {**changes, "last_step": 1}
        self.assertEqual(self.bits(3, **{**rounded, "last_step": 1})["buffers_digest"], self.bits(1, **first)["buffers_digest"])

    def test_a_small_gpt(self):
        text = self.folder / "a.txt"
        text.write_bytes(b"".join(b"%d times %d is %d. " % (i, j, i * j) for i in range(30) for j in range(10)))
        changes = {"dataset": "text", "data_dir": text, "model": "gpt", "layers": 2, "width": 32, "heads": 2,
                   "context": 16, "hidden": None, "last_step": 40, "global_batch": 12, "micro_batch": 2,
                   "optimizer": "adamw", "learning_rate": 0.01, "dropout": 0.1}
        expected = self.bits(1, **changes)
        self.assertLess(expected["loss"], 3.2)
        self.assertNotEqual(expected, self.bits(1, **changes | {"dropout": 0}))
        for ranks, variant in [(2, {"threads": 2}), (5, {})]:
            with self.subTest(ranks=ranks, **variant):
                self.assertEqual(self.bits(ranks, **changes, **variant), expected)

    def test_a_unet_learns_to_smooth_fields(self):
        folder = harness.write_fields(self.folder / "fields", 24, 16)
        changes = {"dataset": "npy", "data_dir": folder, "model": "unet", "levels": 2, "channels": 4, "hidden": None,
                   "last_step": 300, "global_batch": 12, "micro_batch": 2, "optimizer": "adam", "learning_rate": 0.01}
        expected = self.bits(1, **changes)
        report = self.train(1, **changes)
        self.assertGreater(report["test_r_squared"], 0.5)
        self.assertAlmostEqual(report["test_rmse"]**2, report["test_loss"], delta=1e-5 * report["test_loss"])
        for ranks, variant in [(2, {"threads": 2}), (5, {"ranks_per_node": 2})]:
            with self.subTest(ranks=ranks, **variant):
                self.assertEqual(self.bits(ranks, **changes, **variant), expected)
        directory = self.folder / "unet"
        self.train(2, checkpoint_dir=directory, **changes)
        ended = harness.run(2, harness.EVAL, "--checkpoint_dir", directory, "--dataset", "npy", "--data_dir", folder,
                            "--report", self.folder / "eval.json")
        self.assertEqual(ended.code, 0, str(ended))
        judged = json.loads((self.folder / "eval.json").read_text())
        self.assertEqual((judged["rmse"], judged["loss"]), (report["test_rmse"], report["test_loss"]))

    def test_bf16(self):
        text = self.folder / "a.txt"
        text.write_bytes(b"".join(b"%d times %d is %d. " % (i, j, i * j) for i in range(30) for j in range(10)))
        for changes in ({"dataset": "fashion-mnist", "data_dir": None, "model": "lenet", "hidden": None, "last_step": 6,
                         "global_batch": 24, "micro_batch": 4, "learning_rate": 0.02},
                        {"dataset": "text", "data_dir": text, "model": "gpt", "layers": 2, "width": 32, "heads": 2,
                         "context": 16, "hidden": None, "last_step": 10, "global_batch": 12, "micro_batch": 2,
                         "optimizer": "adamw", "learning_rate": 0.01}):
            exact = self.bits(1, **changes)
            report = self.train(1, **changes, precision="bf16")
            self.assertEqual(report["precision"], "bf16")
            self.assertEqual(report["precision_emulated"], "bf16 is emulated" in report["stderr"])
            expected = {key: report[key] for key in BITS if key in report}
            self.assertNotEqual(expected["parameters_digest"], exact["parameters_digest"])
            for ranks, variant in ((2, {"threads": 2}), (5, {})):
                with self.subTest(model=changes["model"], ranks=ranks, **variant):
                    self.assertEqual(self.bits(ranks, **changes, **variant, precision="bf16"), expected)

    def test_bf16_is_emulated_where_onednn_is_kept_from_its_instructions(self):
        changes = {"dataset": "fashion-mnist", "data_dir": None, "model": "lenet", "hidden": None, "last_step": 4,
                   "global_batch": 24, "micro_batch": 4, "learning_rate": 0.02}
        exact = self.bits(1, **changes)
        with unittest.mock.patch.dict(os.environ, ONEDNN_MAX_CPU_ISA="AVX2"):
            report = self.train(2, **changes, precision="bf16")
        if not report["kernels"].startswith("oneDNN"):
            self.skipTest("this build has no oneDNN")
        self.assertTrue(report["precision_emulated"])
        self.assertIn("bf16 is emulated", report["stderr"])
        self.assertNotEqual(report["loss"], exact["loss"])
        self.assertAlmostEqual(report["loss"], exact["loss"], delta=0.02 * exact["loss"])

    def test_a_checkpoint_goes_on_in_its_precision_or_where_a_change_is_allowed(self):
        directory = self.folder / "run"
        exact = self.bits(1)
        rounded = self.bits(1, precision="bf16")
        self.train(2, checkpoint_dir=directory, last_step=13, precision="bf16")
        before = harness.snapshot(directory)
        refused = harness.run_each(2, harness.TRAIN, *self.options(checkpoint_dir=directory))
        self.assertEqual(refused.codes, [78, 78], str(refused))
        self.assertRegex(refused.err, "precision.*bf16.*f32")
        self.assertEqual(harness.snapshot(directory).keys(), before.keys())
        self.assertEqual(self.bits(3, checkpoint_dir=directory, precision="bf16"), rounded)
        ended = harness.run(1, harness.EVAL, "--checkpoint_dir", directory, "--dataset", "idx", "--data_dir", self.data,
                            "--report", self.folder / "eval.json")
        self.assertEqual(ended.code, 0, str(ended))
        judged = json.loads((self.folder / "eval.json").read_text())
        self.assertEqual((judged["precision"], judged["accuracy"]), ("bf16", rounded["test_accuracy"]))
        shutil.rmtree(directory)
        self.train(2, checkpoint_dir=directory, last_step=13, precision="bf16")
        moved = self.train(1, checkpoint_dir=directory, allow_change="precision")
        self.assertEqual(moved["precision"], "f32")
        self.assertAlmostEqual(moved["loss"], exact["loss"], delta=0.02 * exact["loss"])

    def test_nodes_prefetch_and_optimizers(self):
        for optimizer, rate in (("momentum", 0.1), ("adam", 0.001)):
            changes = {"optimizer": optimizer, "learning_rate": rate}
            expected = self.bits(1, **changes)
            variants = [(2, {"ranks_per_node": 1}), (3, {"ranks_per_node": 2, "prefetch": 3}), (3, {"prefetch": 1})]
            if optimizer == "momentum":
                variants += [(5, {"ranks_per_node": 2}), (4, {"ranks_per_node": 1, "prefetch": 1}), (7, {"prefetch": 3})]
            for ranks, variant in variants:
                with self.subTest(optimizer=optimizer, ranks=ranks, **variant):
                    self.assertEqual(self.bits(ranks, **changes, **variant), expected)

    def test_sharded_optimizers_and_buckets(self):
        """Also of everything that a checkpoint holds: the slots come together from all nodes."""
        for changes in ({"optimizer": "lamb", "learning_rate": 0.01, "clip_norm": 0.5}, {"optimizer": "momentum"}):
            contents = set()
            expected = None
            changes["hidden"] = 128  # several blocks to share out
            for ranks, variant in ((1, {}), (2, {"ranks_per_node": 1, "shard_optimizer": 1}),
                                   (5, {"ranks_per_node": 2, "shard_optimizer": 1, "bucket_bytes": 16384}),
                                   (2, {"shard_optimizer": 1}), (3, {"ranks_per_node": 1, "bucket_bytes": 65536})):
                with self.subTest(ranks=ranks, **changes, **variant):
                    directory = self.folder / f"{changes['optimizer']}-{ranks}-{len(variant)}"
                    bits = self.bits(ranks, checkpoint_dir=directory, save_checkpoint_steps=25, **changes, **variant)
                    expected = expected or bits
                    self.assertEqual(bits, expected)
                    for step in (25, 40):
                        shown = harness.execute(harness.INSPECT, directory / f"ckpt-{step:08d}.h5", "--digest")
                        self.assertEqual(shown.code, 0, str(shown))
                        contents.add((step, shown.out.split()[0]))
            self.assertEqual(len(contents), 2, str(contents))

    def test_a_sharded_run_goes_on_with_other_shards(self):
        expected = self.bits(1)
        directory = self.folder / "run"
        self.train(4, checkpoint_dir=directory, last_step=13, ranks_per_node=2, shard_optimizer=1)
        self.train(3, checkpoint_dir=directory, last_step=29, ranks_per_node=1, shard_optimizer=1)
        self.assertEqual(self.bits(2, checkpoint_dir=directory), expected)

    def test_bf16_between_nodes(self):
        """Same bits on the same layout, also when it was interrupted; as good a loss as without; and on one node
        nothing is rounded."""
        exact = self.bits(1, hidden=128)
        self.assertEqual(self.bits(3, hidden=128, gradient_dtype="bf16"), exact)
        for layout in ({"ranks_per_node": 1}, {"ranks_per_node": 2, "shard_optimizer": 1}):
            with self.subTest(**layout):
                changes = {"hidden": 128, "gradient_dtype": "bf16", **layout}
                once = self.bits(3, **changes)
                self.assertNotEqual(once["parameters_digest"], exact["parameters_digest"])
                self.assertAlmostEqual(once["loss"], exact["loss"], delta=0.02 * exact["loss"])
                directory = self.folder / f"run{len(layout)}"
                self.train(3, checkpoint_dir=directory, **{**changes, "last_step": 17})
                self.assertEqual(self.bits(3, checkpoint_dir=directory, bucket_bytes=16384, **changes), once)
                # On other nodes it goes on, too.
                shutil.rmtree(directory)
                self.train(3, checkpoint_dir=directory, **{**changes, "last_step": 17})
                moved = self.train(2, checkpoint_dir=directory, **changes)
                self.assertAlmostEqual(moved["loss"], exact["loss"], delta=0.02 * exact["loss"])
                self.assertIn("the bits depend on", moved["stderr"])

    def test_more_ranks_than_micro_batches(self):
        changes = {"global_batch": 60, "micro_batch": 30}
        expected = self.bits(1, **changes)
        self.assertEqual(self.bits(3, **changes), expected)

    def test_each_kernel_library(self):
        seen = set()
        for kernels in ("eigen", "onednn"):
            probe = harness.run(1, harness.TRAIN, *self.options(kernels=kernels, dry_run=True))
            if probe.code == 64 and kernels == "onednn":
                continue  # not in this build
            self.assertEqual(probe.code, 0, str(probe))
            expected = self.bits(1, kernels=kernels)
            seen.add(expected["parameters_digest"])
            for ranks, threads in ((2, 1), (3, 2)):
                with self.subTest(kernels=kernels, ranks=ranks, threads=threads):
                    self.assertEqual(self.bits(ranks, kernels=kernels, threads=threads), expected)
        self.assertGreaterEqual(len(seen), 1)

    def test_what_must_change_the_bits_does(self):
        """Otherwise the tests above would prove nothing."""
        expected = self.bits(1)["parameters_digest"]
        for changes in ({"seed": 2}, {"last_step": 41}, {"learning_rate": 0.101}, {"micro_batch": 60}):
            with self.subTest(**changes):
                self.assertNotEqual(self.bits(2, **changes)["parameters_digest"], expected)

    def test_reduction_of_mpi(self):
        """Same bits on the same layout, and close to the canonical ones on any."""
        canonical = self.bits(1)
        for ranks in (2, 3):
            with self.subTest(ranks=ranks):
                once = self.bits(ranks, reduction="mpi")
                self.assertEqual(self.bits(ranks, reduction="mpi"), once)
                self.assertAlmostEqual(once["loss"], canonical["loss"], delta=1e-3 * canonical["loss"])


if __name__ == "__main__":
    harness.main()
