"""Networks move to other programs and back: exports with PyTorch's names, imports that name all that does not fit."""

import json
import random
import struct

import harness
from harness import EndToEnd


def read(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], content[8 + length:][slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def write(path, tensors):
    header, values = {}, b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(values), len(values) + len(content)]}
        values += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


def floats(content):
    return struct.unpack(f"<{len(content) // 4}f", content)


class Import(EndToEnd):
    def setUp(self):
        super().setUp()
        cifar = self.folder / "cifar"
        cifar.mkdir()
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            generator = random.Random(name)
            (cifar / name).write_bytes(b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(2)))
        self.resnet = {"dataset": "cifar10", "data_dir": cifar, "model": "resnet", "depth": 8, "hidden": None,
                       "global_batch": 10, "micro_batch": 5}
        self.trained = self.train(1, checkpoint_dir=self.folder / "run", last_step=2, **self.resnet)

    def export(self, names):
        target = self.folder / f"{names}.safetensors"
        ended = harness.execute(harness.INSPECT, "--export", target, "--names", names, self.folder / "run")
        self.assertEqual(ended.code, 0, str(ended))
        return target

    def refused(self, code, words, launch=lambda *words: harness.run(2, *words), **changes):
        ended = launch(harness.TRAIN, *self.options(**self.resnet, last_step=0, **changes))
        self.assertEqual(ended.code, code, str(ended))
        self.assertEqual(len(ended.errors()), 1, str(ended))
        for word in words:
            self.assertRegex(ended.err, word)

    def test_there_and_back_with_either_names(self):
        for names in ("lockstep", "torch"):
            with self.subTest(names=names):
                report = self.train(2, **self.resnet | {"import": self.export(names)}, last_step=0, seed=7)
                for digest in ("parameters_digest", "buffers_digest"):
                    self.assertEqual(report[digest], self.trained[digest])
        ended = harness.execute(harness.INSPECT, "--export", self.folder / "a.npz", "--names", "torch",
                                self.folder / "run")
        self.assertEqual(ended.code, 64, str(ended))

    def test_pytorch_has_channels_first(self):
        ours, theirs = read(self.export("lockstep")), read(self.export("torch"))
        self.assertFalse([name for name in theirs if "velocity" in name or "/" in name])
        for name in ("residual1.shortcut.norm0.running_var", "residual1.main.norm1.weight", "norm0.bias"):
            self.assertIn(name, theirs)
        kind, shape, values = theirs["residual1.main.conv0.weight"]
        self.assertEqual((kind, shape), ("F32", [32, 16, 3, 3]))
        here, there = floats(ours["model/residual1/main/conv0/weight"][2]), floats(values)
        for o, i, y, x in [(0, 0, 0, 0), (31, 15, 2, 2), (5, 3, 1, 2), (7, 11, 2, 0)]:
            self.assertEqual(there[((o * 16 + i) * 3 + y) * 3 + x], here[((y * 3 + x) * 16 + i) * 32 + o])
        here, there = floats(ours["model/dense0/weight"][2]), floats(theirs["dense0.weight"][2])
        self.assertEqual([there[3 * 64 + i] for i in range(64)], [here[i * 10 + 3] for i in range(64)])

    def test_all_that_does_not_fit_is_listed(self):
        tensors = read(self.export("torch"))
        kind, shape, values = tensors.pop("norm0.bias")
        tensors["norm0.beta"] = (kind, shape, values)
        tensors["norm0.num_batches_tracked"] = ("I64", [], bytes(8))
        kind, shape, values = tensors["dense0.weight"]
        tensors["dense0.weight"] = (kind, shape[::-1], values)
        tensors["conv0.weight"] = ("I32", *tensors["conv0.weight"][1:])
        file = self.folder / "other.safetensors"
        write(file, tensors)
        self.refused(78, [r"missing 'norm0.bias' \[16\]", r"left over 'norm0.beta'", r"'dense0.weight': \[64, 10\]",
                          r"expects \[10, 64\]", r"'conv0.weight': I32"], **{"import": file})
        # What is named is taken, also by another name, and nothing else.
        start = self.train(1, **self.resnet, last_step=0, checkpoint_dir=self.folder / "start")
        words = [*self.options(**self.resnet, last_step=0, checkpoint_dir=self.folder / "part"), "--import", file,
                 "--import_tensors", "/model/norm0/shift=norm0.beta", "--import_tensors", "/model/residual0/"]
        self.assertEqual(harness.run(2, harness.TRAIN, *words).code, 0)
        shown = {folder: harness.execute(harness.INSPECT, "--digests", "--json", self.folder / folder).out
                 for folder in ("run", "start", "part")}
        digests = {folder: json.loads(text)[0]["tensors"] for folder, text in shown.items()}
        for name, digest in digests["part"].items():
            if name.startswith("/model/"):
                taken = name == "/model/norm0/shift" or name.startswith("/model/residual0/")
                self.assertEqual(digest, digests["run" if taken else "start"][name], name)
        self.assertEqual(start["global_step"], 0)
        self.refused(64, ["no such parameter", "/model/conv0/weight"],
                     **{"import": file, "import_tensors": "/model/conv9/weight"})
        self.refused(64, ["--import_tensors", "--import"], import_tensors="/model/conv0/weight")

    def test_other_types_and_damage(self):
        tensors = read(self.export("torch"))
        values = [0.5, -1.75, 2**-20, 65504.0, 0.0, -0.0, 1.0, 3.0, -2**-24, 1.5, 2.0, 8.0, 0.25, -4.0, 7.0, 9.0]
        for kind, content in [("F16", struct.pack("<16e", *values)), ("F64", struct.pack("<16d", *values)),
                              ("BF16", b"".join(struct.pack("<f", value)[2:] for value in values))]:
            tensors["norm0.bias"] = (kind, [16], content)
            file = self.folder / f"{kind}.safetensors"
            write(file, tensors)
            self.train(1, **self.resnet | {"import": file}, last_step=0, checkpoint_dir=self.folder / kind)
            target = self.folder / f"{kind}-back.safetensors"
            harness.execute(harness.INSPECT, "--export", target, "--names", "torch", self.folder / kind)
            expected = struct.unpack("<16f", b"".join(b"\0\0" + content[i:i + 2] for i in range(0, 32, 2))) \
                if kind == "BF16" else tuple(values)
            self.assertEqual(floats(read(target)["norm0.bias"][2]), expected, kind)
        good = file.read_bytes()
        damaged = self.folder / "damaged.safetensors"
        length = struct.unpack("<Q", good[:8])[0]

        def moved(change):
            """The same values with another header."""
            header = json.loads(good[8:8 + length])
            text = json.dumps(change(header) or header).encode()
            return struct.pack("<Q", len(text)) + text + good[8 + length:]

        def places(header, name, offsets):
            header[name]["data_offsets"] = offsets

        first, second = sorted(read(file), key=lambda name: json.loads(good[8:8 + length])[name]["data_offsets"])[:2]
        begin, end = json.loads(good[8:8 + length])[second]["data_offsets"]
        twice = good[8:9] + json.dumps(first).encode() + b": {}, " + good[9:8 + length]
        for content, word in [(b"", "too short"), (good[:100], "cut off"), (good[:-1], "lie outside"),
                              (struct.pack("<Q", 2**64 - 1) + good[8:], "cut off"),
                              (struct.pack("<Q", 2**62) + good[8:], "cut off"),
                              (struct.pack("<Q", 0), "no JSON"), (good + b"abcd", "4 bytes belong to no tensor"),
                              (moved(lambda header: places(header, second, [begin - 4, end - 4])), "tensors overlap at byte"),
                              (moved(lambda header: header.pop(second) and None), "there is a hole at byte"),
                              (moved(lambda header: places(header, second, [-4, end - begin - 4])), "no type, shape and offsets"),
                              (moved(lambda header: places(header, second, [begin + 0.5, end + 0.5])), "no type, shape and"),
                              (moved(lambda header: places(header, second, [end, begin])), "lie outside"),
                              (moved(lambda header: places(header, second, [begin])), "lie outside"),
                              (moved(lambda header: header[second].update(shape=[2**62, 8])), "not what its shape says"),
                              (moved(lambda header: header[second].update(shape=[-1, -16])), "no type, shape and offsets"),
                              (struct.pack("<Q", len(twice)) + twice + good[8 + length:], "stands in it twice"),
                              (good[:-4] + struct.pack("<f", float("nan")), "1 of the .* not finite"),
                              (good[:-4] + struct.pack("<f", float("-inf")), "1 of the .* not finite"),
                              (good.replace(b'"shape": [16]', b'"shape": [15]', 1), "not what its shape says"),
                              (good.replace(b"{", b"[", 1), "no JSON"), (good.replace(b"dtype", b"dtypo", 1), "no type")]:
            damaged.write_bytes(content)
            # Alone: mpirun takes two seconds to end when a program fails.
            self.refused(65, ["damaged.safetensors", word], launch=harness.execute, **{"import": damaged})
        self.refused(65, ["there is no"], **{"import": self.folder / "none.safetensors"})


if __name__ == "__main__":
    harness.main()
