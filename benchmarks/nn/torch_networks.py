"""The networks of lockstep-train as PyTorch modules, whose state_dict has the names of
`lockstep-inspect --export FILE.safetensors --names torch`.
"""
import json
import pathlib
import struct

import numpy
import torch
from torch import nn
from torch.nn import functional


class Chain(nn.Module):
    """Layers in order, each with its name; those without parameters are plain functions."""

    def __init__(self, *layers):
        super().__init__()
        self.steps = []
        for layer in layers:
            if isinstance(layer, tuple):
                name, module = layer
                self.add_module(name, module)
                self.steps.append(module)
            else:
                self.steps.append(layer)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def flatten(x):
    """Channels last, as lockstep has its samples."""
    return x.permute(0, 2, 3, 1).flatten(1)


def mlp(inputs, widths, classes):
    sizes = [inputs, *widths]
    layers = [lambda x: x.flatten(1)]
    for number, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
        layers += [(f'dense{number}', nn.Linear(fan_in, fan_out)), functional.relu]
    return Chain(*layers, (f'dense{len(widths)}', nn.Linear(sizes[-1], classes)))


def lenet(classes=10):
    pool = nn.MaxPool2d(2)
    return Chain(('conv0', nn.Conv2d(1, 32, 5)), functional.relu, pool, ('conv1', nn.Conv2d(32, 64, 5)), functional.relu,
                 pool, flatten, ('dense0', nn.Linear(1024, 128)), functional.relu, ('dense1', nn.Linear(128, classes)))


class Residual(nn.Module):
    def __init__(self, main, shortcut=None, relu=False):
        super().__init__()
        self.main = main
        self.shortcut = shortcut
        self.relu = relu

    def forward(self, x):
        y = self.main(x) + (x if self.shortcut is None else self.shortcut(x))
        return functional.relu(y) if self.relu else y


def resnet(depth=20, classes=10):
    def conv(fan_in, fan_out, kernel, stride):
        return nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, bias=False)

    layers = [('conv0', conv(3, 16, 3, 1)), ('norm0', nn.BatchNorm2d(16)), functional.relu]
    channels = 16
    blocks = 0
    for wanted in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            stride = 1 if wanted == channels else 2
            main = Chain(('conv0', conv(channels, wanted, 3, stride)), ('norm0', nn.BatchNorm2d(wanted)), functional.relu,
                         ('conv1', conv(wanted, wanted, 3, 1)), ('norm1', nn.BatchNorm2d(wanted)))
            shortcut = None
            if stride > 1:
                shortcut = Chain(('conv0', conv(channels, wanted, 1, stride)), ('norm0', nn.BatchNorm2d(wanted)))
            layers += [(f'residual{blocks}', Residual(main, shortcut, relu=True))]
            blocks += 1
            channels = wanted
    return Chain(*layers, lambda x: x.mean((2, 3)), ('dense0', nn.Linear(64, classes)))


class Concatenate(nn.Module):
    def __init__(self, main):
        super().__init__()
        self.main = main

    def forward(self, x):
        return torch.cat([x, self.main(x)], 1)


def unet(inputs, outputs, levels=3, channels=16):
    def conv(fan_in, fan_out):
        return nn.Conv2d(fan_in, fan_out, 3, padding=1)

    def level(number, fan_in):
        width = channels * 2**number
        layers = [('conv0', conv(fan_in, width)), functional.relu, ('conv1', conv(width, width)), functional.relu]
        if number + 1 < levels:
            below = level(number + 1, width)
            main = Chain(nn.MaxPool2d(2), *below, ('conv_transpose0', nn.ConvTranspose2d(2 * width, width, 2, 2)))
            layers += [('concatenate0', Concatenate(main)), ('conv2', conv(2 * width, width)), functional.relu,
                       ('conv3', conv(width, width)), functional.relu]
        return layers

    count = 4 if levels > 1 else 2
    return Chain(*level(0, inputs), (f'conv{count}', nn.Conv2d(channels, outputs, 1)))


class Embedding(nn.Module):
    def __init__(self, entries, features, positions):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(entries, features))
        self.position = nn.Parameter(torch.zeros(positions, features))

    def forward(self, tokens):
        return functional.embedding(tokens, self.weight) + self.position


def attention(heads):
    def run(x):
        samples, positions, features = x.shape
        width = features // 3
        q, k, v = (part.view(samples, positions, heads, width // heads).transpose(1, 2) for part in x.split(width, 2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(samples, positions, width)
    return run


def gpt(classes=256, layers=4, width=128, heads=4, context=128):
    blocks = [('embedding0', Embedding(classes, width, context))]
    for number in range(layers):
        first = Chain(('norm0', nn.LayerNorm(width)), ('dense0', nn.Linear(width, 3 * width)), attention(heads),
                      ('dense1', nn.Linear(width, width)))
        second = Chain(('norm0', nn.LayerNorm(width)), ('dense0', nn.Linear(width, 4 * width)), functional.gelu,
                       ('dense1', nn.Linear(4 * width, width)))
        blocks += [(f'residual{2 * number}', Residual(first)), (f'residual{2 * number + 1}', Residual(second))]
    network = Chain(*blocks, ('norm0', nn.LayerNorm(width)), ('dense0', nn.Linear(width, classes, bias=False)))
    for name, parameter in network.named_parameters():
        if 'dense' in name or 'embedding' in name:
            nn.init.zeros_(parameter) if name.endswith('bias') else nn.init.normal_(parameter, std=0.02)
    return network


def read_safetensors(path):
    """Name to numpy array."""
    content = pathlib.Path(path).read_bytes()
    length = struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8:8 + length])
    types = {'F32': numpy.float32, 'F64': numpy.float64, 'I64': numpy.int64, 'I32': numpy.int32, 'U8': numpy.uint8}
    arrays = {}
    for name, entry in header.items():
        if name != '__metadata__':
            begin, end = (8 + length + offset for offset in entry['data_offsets'])
            arrays[name] = numpy.frombuffer(content[begin:end], types[entry['dtype']]).reshape(entry['shape'])
    return arrays


def write_safetensors(path, arrays):
    header = {}
    at = 0
    for name, array in arrays.items():
        header[name] = {'dtype': 'F32', 'shape': list(array.shape), 'data_offsets': [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    values = b''.join(numpy.ascontiguousarray(array, numpy.float32).tobytes() for array in arrays.values())
    pathlib.Path(path).write_bytes(struct.pack('<Q', len(text)) + text + values)


def load(network, path):
    """Gives the network the values of an export. Everything that it learns must be there."""
    arrays = {name: torch.from_numpy(array.copy()) for name, array in read_safetensors(path).items()}
    missing = [name for name in network.state_dict() if name not in arrays and 'num_batches' not in name]
    if missing:
        raise SystemExit(f'{path} has no {", ".join(missing)}')
    network.load_state_dict({name: array for name, array in arrays.items() if name in network.state_dict()}, strict=False)
