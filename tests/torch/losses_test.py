"""Layers, losses and optimizers compute what PyTorch's do: the first losses of each model equal the recorded ones.

record.py made the record, from the same initial parameters and data.
"""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import work  # noqa: E402  (finds the harness, too)

harness = work.harness


class Losses(harness.EndToEnd):
    def losses(self, name, **more):
        folder = self.folder / "-".join([name.replace(", ", "-"), *more.values()])
        ended = harness.run(2, harness.TRAIN, *work.options(name, folder / "data", work.STEPS, **more,
                                                            summary_dir=folder / "events", save_summaries_steps=1))
        self.assertEqual(ended.code, 0, str(ended))
        losses = work.read_losses(folder / "events")
        self.assertEqual(len(losses), work.STEPS)
        return losses

    def test_first_losses_are_those_of_pytorch(self):
        record = json.loads(work.RECORD.read_text())
        self.assertEqual(set(record["models"]), set(work.WORK))
        for name, wanted in record["models"].items():
            for kernels in ("auto", "eigen"):
                with self.subTest(model=name, kernels=kernels):
                    losses = self.losses(name, kernels=kernels)
                    self.assertAlmostEqual(losses[0] / wanted[0], 1, delta=1e-5,
                                           msg="initial parameters have changed, or the data: run record.py again")
                    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(losses, wanted))
                    print(f"{name}, {kernels}: {worst:.1e}", flush=True)
                    self.assertLess(worst, 1e-4)
                    self.assertLess(losses[-1], 0.9 * losses[0], "it learns, so that there is something to compare")

    def test_every_update_is_that_of_pytorch(self):
        """LARS and LAMB are not in PyTorch: record.py has them as their papers do."""
        record = json.loads(work.RECORD.read_text())["updates"]
        self.assertEqual(set(record), set(work.UPDATES))
        for name, wanted in record.items():
            with self.subTest(update=name):
                losses = self.losses(name)
                worst = max(abs(ours / theirs - 1) for ours, theirs in zip(losses, wanted))
                print(f"{name}: {worst:.1e}", flush=True)
                self.assertLess(worst, 1e-4)
                self.assertLess(losses[-1], 0.9 * losses[0], "it learns, so that there is something to compare")

    def test_bf16_learns_as_well(self):
        for name, wanted in json.loads(work.RECORD.read_text())["models"].items():
            with self.subTest(model=name):
                losses = self.losses(name, precision="bf16")
                # Of the loss it began with: where the loss falls by far, shares of what is left say little.
                worst = max(abs(ours - theirs) / wanted[0] for ours, theirs in zip(losses, wanted))
                print(f"{name}, bf16: {worst:.1e}, {losses[-1]} {wanted[-1]}", flush=True)
                self.assertLess(worst, 0.02)


if __name__ == "__main__":
    harness.main()
