"""Real programs on two nodes with TCP between them, as far as one machine can have those: see network/two_nodes."""

import pathlib
import unittest

import harness
from harness import EndToEnd

TWO_NODES = pathlib.Path(__file__).parent.parent / "network" / "two_nodes"


class TwoNodes(EndToEnd):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        probe = harness.execute(TWO_NODES, 1, "true")
        if probe.code == harness.SKIPPED:
            raise unittest.SkipTest(probe.err.strip())

    def on_two_nodes(self, ranks_per_node, **changes):
        report = self.folder / "two.json"
        ended = harness.execute(TWO_NODES, ranks_per_node, harness.TRAIN, *self.options(report=report, **changes))
        self.assertEqual(ended.code, 0, str(ended))
        result = harness.read_json(report)
        self.assertEqual((result["nodes"], result["ranks"]), (2, 2 * ranks_per_node))
        return result["parameters_digest"], result["loss"]

    def test_the_bits_of_one_rank(self):
        one = self.train(1, hidden=128)
        expected = one["parameters_digest"], one["loss"]
        self.assertEqual(self.on_two_nodes(1, hidden=128), expected)
        self.assertEqual(self.on_two_nodes(2, hidden=128, shard_optimizer=1, bucket_bytes=16384), expected)

    def test_the_bits_of_two_simulated_nodes(self):
        """Of rounded gradients, too."""
        simulated = self.train(4, hidden=128, gradient_dtype="bf16", ranks_per_node=2)
        self.assertEqual(self.on_two_nodes(2, hidden=128, gradient_dtype="bf16"),
                         (simulated["parameters_digest"], simulated["loss"]))


if __name__ == "__main__":
    harness.main()
