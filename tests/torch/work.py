"""The trainings whose first losses are compared with PyTorch's: their data and the options of lockstep-train.

Every step sees the whole data set, so that the order of samples does not matter; where there is batch norm, as one
micro-batch.
"""
import pathlib
import random
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "apps"))
import harness  # noqa: E402  (its place is only known here)

STEPS = 50
RECORD = pathlib.Path(__file__).resolve().parent / "losses.json"


def images(folder):
    harness.write_idx(folder, "train", 60, 1)
    harness.write_idx(folder, "t10k", 10, 2)


def large_images(folder):
    harness.write_idx(folder, "train", 24, 1, side=28)
    harness.write_idx(folder, "t10k", 10, 2, side=28)


def colours(folder):
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        generator = random.Random(name)
        (folder / name).write_bytes(b"".join(bytes([i % 10]) + generator.randbytes(3072) for i in range(4)))


def fields(folder):
    harness.write_fields(folder, 12, 16)


def text(folder):
    (folder / "a.txt").write_bytes(b"".join(b"%d times %d is %d. " % (i, j, i * j) for i in range(4) for j in range(10)))


# What writes the data, and options beside it; global_batch is the number of training samples.
WORK = {
    "mlp": (images, {"dataset": "idx", "hidden": "64,32", "optimizer": "momentum", "learning_rate": 0.05,
                     "global_batch": 60, "micro_batch": 20}),
    "lenet": (large_images, {"dataset": "idx", "model": "lenet", "optimizer": "adam", "learning_rate": 0.0003,
                             "global_batch": 24, "micro_batch": 8}),
    "resnet": (colours, {"dataset": "cifar10", "model": "resnet", "depth": 8, "optimizer": "momentum",
                         "learning_rate": 0.003, "global_batch": 20, "micro_batch": 20}),
    "unet": (fields, {"dataset": "npy", "model": "unet", "levels": 3, "channels": 8, "optimizer": "sgd",
                      "learning_rate": 0.1, "global_batch": 12, "micro_batch": 4}),
    "gpt": (text, {"dataset": "text", "model": "gpt", "layers": 2, "width": 32, "heads": 2, "context": 16,
                   "optimizer": "adamw", "weight_decay": 0.1, "no_decay": "none", "learning_rate": 0.001,
                   "global_batch": 36, "micro_batch": 6}),
}

# The mlp again, with every optimizer and every schedule, and with what else is done to rates and gradients.
UPDATES = {
    "sgd, step": {"optimizer": "sgd", "learning_rate": 0.3, "schedule": "step", "schedule_steps": 15, "decay_factor": 0.5},
    "momentum, cosine": {"optimizer": "momentum", "momentum": 0.8, "schedule": "cosine", "end_learning_rate": 0.01},
    "nesterov, polynomial": {"optimizer": "nesterov", "schedule": "polynomial", "decay_power": 2},
    "adam, exponential": {"optimizer": "adam", "learning_rate": 0.003, "schedule": "exponential", "schedule_steps": 20,
                          "decay_factor": 0.5},
    "adamw, one-cycle, clipped norm": {"optimizer": "adamw", "learning_rate": 0.005, "weight_decay": 0.3, "no_decay": "bias",
                                       "schedule": "one-cycle", "clip_norm": 0.5},
    "rmsprop, clipped values": {"optimizer": "rmsprop", "learning_rate": 0.001, "clip_value": 0.002},
    "adagrad, warm-up, linear scaling": {"optimizer": "adagrad", "learning_rate": 0.01, "warmup_steps": 10,
                                         "scale_learning_rate": "linear", "base_batch": 30},
    "lars, root scaling, clipped": {"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 0.01, "no_decay": "bias",
                                    "scale_learning_rate": "sqrt", "base_batch": 15, "clip_norm": 0.8, "clip_value": 0.02},
    "lamb, clipped": {"optimizer": "lamb", "learning_rate": 0.005, "weight_decay": 0.1, "no_decay": "bias", "clip_norm": 0.5,
                      "clip_value": 0.02},
}


def options(name, folder, last_step, **more):
    """Writes the data into `folder`, and returns words for the command line."""
    write, chosen = WORK["mlp" if name in UPDATES else name]
    chosen = chosen | UPDATES.get(name, {})
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    chosen = {"data_dir": folder, **chosen, "last_step": last_step, "log_step_count_steps": 0, **more}
    return [word for key, value in chosen.items() for word in (f"--{key}", str(value))]


def fields_of(message):
    """The fields of a protocol buffer: (number, value), values of 32 bits as bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            yield key >> 3, message[at:at + size]
            at += size


def read_losses(folder):
    """The scalar "loss" of an event file, step by step."""
    content = next(folder.glob("events.out.tfevents.*")).read_bytes()
    losses = []
    at = 0
    while at < len(content):
        size = struct.unpack_from("<Q", content, at)[0]
        for number, summary in fields_of(content[at + 12:at + 12 + size]):
            for _, value in fields_of(summary) if number == 5 else ():
                scalar = dict(fields_of(value))
                if scalar.get(1) == b"loss":
                    losses.append(struct.unpack("<f", scalar[2])[0])
        at += 16 + size
    return losses
