#!/usr/bin/env python3
"""Writes losses.json: the first losses of each model of lockstep-train as PyTorch has them.

    build/bench-venv/bin/python tests/torch/record.py [BUILD]

Needs PyTorch (benchmarks/nn/run installs it there) and the built programs. Each network gets its initial parameters from
lockstep-train, exported with PyTorch's names, and trains on the same data in float32 with one thread. Also moves what
PyTorch has learned back (--import) and compares an evaluation.
"""
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy
import torch
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks/nn"))
import torch_networks as networks  # noqa: E402
import work  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve() / "apps"


def run(program, *words):
    done = subprocess.run([BUILD / program, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{program} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def read_idx(folder):
    import gzip
    images = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    shape = struct.unpack(">III", images[4:16])
    pixels = numpy.frombuffer(images, numpy.uint8, -1, 16).reshape(shape[0], 1, *shape[1:]).astype(numpy.float32) / 255
    return torch.from_numpy(pixels), torch.from_numpy(numpy.frombuffer(labels, numpy.uint8, -1, 8).astype(numpy.int64))


def read_colours(folder):
    records = b"".join((folder / f"data_batch_{i}.bin").read_bytes() for i in range(1, 6))
    array = numpy.frombuffer(records, numpy.uint8).reshape(-1, 3073)
    return (torch.from_numpy(array[:, 1:].reshape(-1, 3, 32, 32).astype(numpy.float32) / 255),
            torch.from_numpy(array[:, 0].astype(numpy.int64)))


def read_fields(folder):
    return tuple(torch.from_numpy(numpy.load(folder / f"train_{what}.npy")).permute(0, 3, 1, 2).contiguous()
                 for what in ("inputs", "targets"))


def read_text(folder):
    content = (folder / "a.txt").read_bytes()
    content = content[:len(content) - len(content) // 10]
    tokens = torch.from_numpy(numpy.frombuffer(content, numpy.uint8).astype(numpy.int64))
    samples = (len(tokens) - 1) // 16
    return tokens[:samples * 16].view(samples, 16), tokens[1:samples * 16 + 1].view(samples, 16)


def gpt_loss(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


SIDES = {
    "mlp": (lambda: networks.mlp(144, [64, 32], 5), read_idx, functional.cross_entropy,
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "lenet": (lambda: networks.lenet(5), read_idx, functional.cross_entropy, lambda p: torch.optim.Adam(p, lr=0.0003)),
    "resnet": (lambda: networks.resnet(8), read_colours, functional.cross_entropy,
               lambda p: torch.optim.SGD(p, lr=0.003, momentum=0.9)),
    "unet": (lambda: networks.unet(1, 1, 3, 8), read_fields, functional.mse_loss, lambda p: torch.optim.SGD(p, lr=0.1)),
    "gpt": (lambda: networks.gpt(256, 2, 32, 2, 16), read_text, gpt_loss,
            lambda p: torch.optim.AdamW(p, lr=0.001, weight_decay=0.1)),
}


def train(name, folder):
    make, read, loss_of, optimizer_of = SIDES[name]
    data = folder / "data"
    report = folder / "eval.json"
    run("lockstep-train", *work.options(name, data, 0), "--checkpoint_dir", folder / "start")
    run("lockstep-inspect", "--export", folder / "start.safetensors", "--names", "torch", folder / "start")
    network = make()
    networks.load(network, folder / "start.safetensors")
    inputs, targets = read(data)
    if len(inputs) != work.WORK[name][1]["global_batch"]:
        raise SystemExit(f"{name} has {len(inputs)} samples; set global_batch to that")
    optimizer = optimizer_of(network.parameters())
    losses = []
    for _ in range(work.STEPS):
        optimizer.zero_grad()
        loss = loss_of(network(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # And back: what PyTorch has learned, evaluated by lockstep.
    state = {key: value.detach().numpy() for key, value in network.state_dict().items() if "num_batches" not in key}
    networks.write_safetensors(folder / "end.safetensors", state)
    run("lockstep-train", *work.options(name, data, 0), "--checkpoint_dir", folder / "end", "--import",
        folder / "end.safetensors")
    run("lockstep-eval", "--dataset", work.WORK[name][1]["dataset"], "--data_dir", data, "--checkpoint_dir", folder / "end",
        "--split", "train", "--report", report)
    judged = json.loads(report.read_text())["loss"]
    network.eval()
    with torch.no_grad():
        wanted = loss_of(network(inputs), targets).item()
    if abs(judged - wanted) > 1e-4 * wanted:
        raise SystemExit(f"{name}: an evaluation of what PyTorch learned gives {judged} here and {wanted} there")
    return losses


def main():
    torch.set_num_threads(1)
    record = {"torch": torch.__version__, "steps": work.STEPS, "models": {}}
    for name in work.WORK:
        with tempfile.TemporaryDirectory() as folder:
            record["models"][name] = train(name, pathlib.Path(folder))
        print(name, record["models"][name][0], record["models"][name][-1], flush=True)
    work.RECORD.write_text(json.dumps(record, indent=1) + "\n")


main()
