"""Promise P1 with real programs: one parameters_digest and one loss, however the work is spread."""

import random

import harness
from harness import EndToEnd

# What the ranks may change: everything that is reported but these.
BITS = ("parameters_digest", "buffers_digest", "loss", "test_accuracy", "test_loss", "global_step")


class SameBits(EndToEnd):
    def bits(self, ranks, **changes):
        report = self.train(ranks, **changes)
        self.assertEqual(report["ranks"], ranks)
        return {key: report[key] for key in BITS}

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
        for ranks, variant in [(3, {"threads": 2}), (4, {"ranks_per_node": 2})]:
            with self.subTest(ranks=ranks, **variant):
                self.assertEqual(self.bits(ranks, **changes, **variant), expected)

    def test_a_small_gpt(self):
        text = self.folder / "a.txt"
        text.write_bytes(b"".join(b"%d times %d is %d. " % (i, j, i * j) for i in range(30) for j in range(10)))
        changes = {"dataset": "text", "data_dir": text, "model": "gpt", "layers": 2, "width": 32, "heads": 2,
                   "context": 16, "hidden": None, "last_step": 40, "global_batch": 12, "micro_batch": 2,
                   "optimizer": "adamw", "learning_rate": 0.01}
        expected = self.bits(1, **changes)
        self.assertLess(expected["loss"], 3.0)
        for ranks in (2, 5):
            with self.subTest(ranks=ranks):
                self.assertEqual(self.bits(ranks, **changes), expected)

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
            for ranks in (2, 3):
                with self.subTest(kernels=kernels, ranks=ranks):
                    self.assertEqual(self.bits(ranks, kernels=kernels), expected)
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
