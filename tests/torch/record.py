#!/usr/bin/env python3
"""Writes losses.json: the first losses of each model of lockstep-train, and of each optimizer, as PyTorch has them.

    build/bench-venv/bin/python tests/torch/record.py [BUILD]

Needs PyTorch (benchmarks/nn/run installs it there) and the built programs. Each network gets its initial parameters from
lockstep-train, exported with PyTorch's names, and trains on the same data in float32 with one thread. Also moves what
PyTorch has learned back (--import) and compares an evaluation.
"""
import json
import math
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


class Lars(torch.optim.Optimizer):
    """You, Gitman and Ginsburg 2017; biases (groups without decay) take plain momentum."""

    def step(self):
        for group in self.param_groups:
            decay = group["decay"]
            for p in group["params"]:
                ratio = 1.0
                if decay > 0:
                    ratio = 0.001 * p.data.norm() / (p.grad.norm() + decay * p.data.norm())
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(0.9).add_(ratio * (p.grad + decay * p.data))
                p.data.sub_(group["lr"] * v)


class Lamb(torch.optim.Optimizer):
    """You and others 2019, with Adam's corrections; biases as above."""

    def step(self):
        for group in self.param_groups:
            decay = group["decay"]
            for p in group["params"]:
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(0.1 * p.grad)
                v = state.setdefault("v", torch.zeros_like(p)).mul_(0.999).add_(0.001 * p.grad ** 2)
                update = (m / (1 - 0.9 ** t)) / ((v / (1 - 0.999 ** t)).sqrt() + 1e-6) + decay * p.data
                ratio = p.data.norm() / update.norm() if decay > 0 else 1.0
                p.data.sub_(group["lr"] * ratio * update)


def weights_and_biases(network, name, decay):
    named = list(network.named_parameters())
    return [{"params": [p for n, p in named if "bias" not in n], name: decay},
            {"params": [p for n, p in named if "bias" in n], name: 0.0}]


def one_cycle(step):
    """Of the largest rate: from 1/25 up in 30 % of the steps, then down to 1/250000, along half cosines."""
    at = step / work.STEPS
    first, last, part = (1 / 25, 1, at / 0.3) if at < 0.3 else (1, 1 / 250000, (at - 0.3) / 0.7)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * part))


optim, rates, clip = torch.optim, torch.optim.lr_scheduler, torch.nn.utils
# Optimizer, schedule, and what is done to gradients before.
UPDATES = {
    "sgd, step": (lambda n: optim.SGD(n.parameters(), 0.3), lambda o: rates.StepLR(o, 15, 0.5), None),
    "momentum, cosine": (lambda n: optim.SGD(n.parameters(), 0.05, 0.8),
                         lambda o: rates.CosineAnnealingLR(o, work.STEPS, 0.01), None),
    "nesterov, polynomial": (lambda n: optim.SGD(n.parameters(), 0.05, 0.9, nesterov=True),
                             lambda o: rates.PolynomialLR(o, work.STEPS, 2), None),
    "adam, exponential": (lambda n: optim.Adam(n.parameters(), 0.003),
                          lambda o: rates.ExponentialLR(o, 0.5 ** (1 / 20)), None),
    "adamw, one-cycle, clipped norm": (
        lambda n: optim.AdamW(weights_and_biases(n, "weight_decay", 0.3), 0.005),
        lambda o: rates.LambdaLR(o, one_cycle), lambda n: clip.clip_grad_norm_(n.parameters(), 0.5)),
    "rmsprop, clipped values": (lambda n: optim.RMSprop(n.parameters(), 0.001), None,
                                lambda n: clip.clip_grad_value_(n.parameters(), 0.002)),
    "adagrad, warm-up, linear scaling": (
        lambda n: optim.Adagrad(n.parameters(), 0.01 * 60 / 30),
        lambda o: rates.LambdaLR(o, lambda step: min(1, (step + 1) / 10)), None),
    "lars, root scaling, clipped": (
        lambda n: Lars(weights_and_biases(n, "decay", 0.01), {"lr": 0.3 * (60 / 15) ** 0.5}), None,
        lambda n: (clip.clip_grad_norm_(n.parameters(), 0.8), clip.clip_grad_value_(n.parameters(), 0.02))),
    "lamb, clipped": (
        lambda n: Lamb(weights_and_biases(n, "decay", 0.1), {"lr": 0.005}), None,
        lambda n: (clip.clip_grad_norm_(n.parameters(), 0.5), clip.clip_grad_value_(n.parameters(), 0.02))),
}


def start(name, model, folder):
    """The network of `model` with the initial parameters of lockstep-train, and its data."""
    make, read, loss_of, optimizer_of = SIDES[model]
    data = folder / "data"
    run("lockstep-train", *work.options(name, data, 0), "--checkpoint_dir", folder / "start")
    run("lockstep-inspect", "--export", folder / "start.safetensors", "--names", "torch", folder / "start")
    network = make()
    networks.load(network, folder / "start.safetensors")
    inputs, targets = read(data)
    if len(inputs) != work.WORK[model][1]["global_batch"]:
        raise SystemExit(f"{model} has {len(inputs)} samples; set global_batch to that")
    return network, inputs, targets, loss_of, optimizer_of


def steps(network, inputs, targets, loss_of, optimizer, schedule=None, change=None):
    losses = []
    for _ in range(work.STEPS):
        optimizer.zero_grad()
        loss = loss_of(network(inputs), targets)
        loss.backward()
        if change:
            change(network)
        optimizer.step()
        if schedule:
            schedule.step()
        losses.append(loss.item())
    return losses


def update(name, folder):
    network, inputs, targets, loss_of, _ = start(name, "mlp", folder)
    optimizer_of, schedule_of, change = UPDATES[name]
    optimizer = optimizer_of(network)
    return steps(network, inputs, targets, loss_of, optimizer, schedule_of and schedule_of(optimizer), change)


def train(name, folder):
    data = folder / "data"
    report = folder / "eval.json"
    network, inputs, targets, loss_of, optimizer_of = start(name, name, folder)
    losses = steps(network, inputs, targets, loss_of, optimizer_of(network.parameters()))
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
    record = {"torch": torch.__version__, "steps": work.STEPS, "models": {}, "updates": {}}
    for kind, names, work_of in (("models", work.WORK, train), ("updates", work.UPDATES, update)):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                record[kind][name] = work_of(name, pathlib.Path(folder))
            print(name, record[kind][name][0], record[kind][name][-1], flush=True)
    work.RECORD.write_text(json.dumps(record, indent=1) + "\n")


main()
