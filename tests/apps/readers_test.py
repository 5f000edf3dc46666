"""Others read what we write: h5py a checkpoint as it is, TensorBoard's own reader the summaries."""

import json
import os
import pathlib
import struct
import subprocess
import unittest
import zipfile

import harness
from harness import EndToEnd

try:
    import h5py
    import numpy
except ImportError:
    h5py = None

READ_EVENTS = pathlib.Path(__file__).resolve().parent.parent / "summary/read_events.py"
TENSORBOARD = os.environ.get("LOCKSTEP_TEST_PYTHON",
                             str(pathlib.Path(__file__).resolve().parents[2] / "build/venv/bin/python3"))


def has_tensorboard():
    try:
        return subprocess.run([TENSORBOARD, "-c", "import tensorboard"], capture_output=True).returncode == 0
    except OSError:
        return False


class Readers(EndToEnd):
    @unittest.skipIf(h5py is None, "h5py is not installed")
    def test_h5py_opens_a_checkpoint_as_it_is(self):
        directory = self.folder / "run"
        self.train(2, checkpoint_dir=directory, hidden="32,16")
        with h5py.File(directory / "ckpt-00000040.h5", "r") as file:
            shapes = {}
            file["model"].visititems(
                lambda name, item: shapes.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None)
            self.assertEqual(shapes, {
                "dense0/weight": (144, 32), "dense0/bias": (32,), "dense1/weight": (32, 16), "dense1/bias": (16,),
                "dense2/weight": (16, 5), "dense2/bias": (5,)})
            self.assertEqual(set(file["slots"]), {"velocity"})
            self.assertEqual(file["session/global_step"][()], 40)
            self.assertEqual(file["config/model"][()].decode(), "mlp")
            self.assertEqual(str(file["model/dense0/weight"].dtype), "float32")
            mean = float(file["model/dense0/weight"][:].mean(dtype="float64"))
        shown = harness.execute(harness.INSPECT, "--json", directory / "ckpt-00000040.h5")
        tensors = {tensor["name"]: tensor for tensor in json.loads(shown.out)[0]["tensors"]}
        self.assertAlmostEqual(tensors["/model/dense0/weight"]["mean"], mean, places=12)

    def exported(self, ending):
        """A checkpoint, and the file it was exported to."""
        directory = self.folder / "run"
        self.train(1, checkpoint_dir=directory, hidden="32,16")
        target = self.folder / ("all" + ending)
        ended = harness.execute(harness.INSPECT, "--export", target, directory)
        self.assertEqual(ended.code, 0, str(ended))
        self.assertEqual([file.name for file in self.folder.glob(".*")], [], "nothing temporary is left")
        # What is there is never replaced, and only formats that there are are taken.
        before = target.read_bytes()
        self.assertEqual(harness.execute(harness.INSPECT, "--export", target, directory).code, 64)
        self.assertEqual(harness.execute(harness.INSPECT, "--export", self.folder / "a.zip", directory).code, 64)
        self.assertEqual(target.read_bytes(), before)
        return directory / "ckpt-00000040.h5", target

    @unittest.skipIf(h5py is None, "h5py is not installed")
    def test_numpy_reads_an_npz_export(self):
        checkpoint, target = self.exported(".npz")
        self.assertIsNone(zipfile.ZipFile(target).testzip())
        with h5py.File(checkpoint, "r") as file, numpy.load(target) as arrays:
            paths = []
            file.visititems(lambda name, item: paths.append(name) if isinstance(item, h5py.Dataset) else None)
            self.assertEqual(sorted(arrays.files), sorted(paths))
            for name in paths:
                wanted, array = file[name][()], arrays[name]
                if name.startswith("config/"):
                    self.assertEqual(bytes(array[()]), wanted)
                    continue
                self.assertEqual((array.dtype, array.shape), (file[name].dtype, file[name].shape), name)
                self.assertEqual(array.tobytes(), numpy.asarray(wanted).tobytes(), name)

    @unittest.skipIf(h5py is None, "h5py is not installed")
    def test_a_reader_by_the_format_s_description_reads_a_safetensors_export(self):
        checkpoint, target = self.exported(".safetensors")
        content = target.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header, values = json.loads(content[8:8 + length]), content[8 + length:]
        self.assertEqual((8 + length) % 8, 0)
        settings = header.pop("__metadata__")
        types = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}
        with h5py.File(checkpoint, "r") as file:
            self.assertEqual(settings["config/seed"], file["config/seed"][()].decode())
            for name, tensor in header.items():
                first, last = tensor["data_offsets"]
                array = numpy.frombuffer(values[first:last], types[tensor["dtype"]]).reshape(tensor["shape"])
                self.assertEqual(array.tobytes(), numpy.asarray(file[name][()]).tobytes(), name)
            self.assertIn("slots/velocity/dense0/weight", header)
        # The format wants the values without holes.
        ranges = sorted(tuple(tensor["data_offsets"]) for tensor in header.values())
        self.assertEqual([first for first, _ in ranges], [0] + [last for _, last in ranges[:-1]])
        self.assertEqual(ranges[-1][1], len(values))

    @unittest.skipUnless(has_tensorboard(), "TensorBoard's reader is not installed")
    def test_tensorboard_reads_the_summaries(self):
        directory = self.folder / "run"
        intervals = {"save_summaries_steps": 10, "log_step_count_steps": 10}
        self.train(2, checkpoint_dir=directory, last_step=25, **intervals)
        # The second launch goes on in a second file.
        self.train(3, checkpoint_dir=directory, last_step=45, **intervals)
        done = subprocess.run([TENSORBOARD, str(READ_EVENTS), str(directory)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        scalars = json.loads(done.stdout)["scalars"]
        self.assertLessEqual({"loss", "global_step/sec"}, set(scalars))
        steps = [step for step, _ in scalars["loss"]]
        self.assertEqual(steps, sorted(set(steps)))
        self.assertGreaterEqual(len(steps), 4)
        self.assertLess(scalars["loss"][-1][1], scalars["loss"][0][1])
        self.assertTrue(all(value > 0 for _, value in scalars["global_step/sec"]))
        self.assertEqual(scalars["global_step/sec"][0][0], 11)

    def test_summaries_in_a_directory_of_their_own(self):
        directory = self.folder / "run"
        self.train(1, checkpoint_dir=directory, summary_dir=self.folder / "events", save_summaries_steps=10)
        self.assertEqual(list(directory.glob("events*")), [])
        self.assertEqual(len(list((self.folder / "events").glob("events.out.tfevents.*"))), 1)


if __name__ == "__main__":
    harness.main()
