"""The data sets of the comparisons, as PyTorch has them."""
import gzip
import pathlib

import numpy
import torch

FASHION_MNIST = pathlib.Path('/usr/share/datasets/fashion-mnist')


def read_idx(path):
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = numpy.frombuffer(content, '>u4', dimensions, 4)
    return numpy.frombuffer(content, numpy.uint8, -1, 4 + 4 * dimensions).reshape(shape)


def read_images(directory=None, prefix='train'):
    """[samples, 1, 28, 28] in 0 to 1, labels."""
    directory = directory or FASHION_MNIST
    images = read_idx(directory / f'{prefix}-images-idx3-ubyte.gz').astype(numpy.float32) / 255
    labels = read_idx(directory / f'{prefix}-labels-idx1-ubyte.gz').astype(numpy.int64)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)


def read_text(path, context):
    """Bytes [samples, context] of the training split, and those that follow each."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and not p.is_symlink())
    text = b''.join(p.read_bytes() for p in files)
    text = text[:len(text) - len(text) // 10]
    tokens = torch.from_numpy(numpy.frombuffer(text, numpy.uint8).astype(numpy.int64))
    samples = (len(tokens) - 1) // context
    return tokens[:samples * context].view(samples, context), tokens[1:samples * context + 1].view(samples, context)
