"""PyTorch on the networks of benchmarks/mlp/run: one process, or DDP over gloo under mpirun.

    torch_mlp_fashion.py --hidden 256,128 --optimizer adam --batch 256 --steps 2400 [--data DIR]

--batch is the global batch. Every step takes the next samples of a shuffled order, as lockstep-train does. Prints
samples/s over the steps after the first, without imports, data and evaluation, and the test accuracy.
"""
import argparse
import gzip
import json
import os
import pathlib
import time

import numpy
import torch
from torch import distributed, nn


def read_idx(directory, name):
    with gzip.open(directory / (name + '.gz')) as file:
        content = file.read()
    dimensions = content[3]
    shape = numpy.frombuffer(content, '>u4', dimensions, 4)
    return numpy.frombuffer(content, numpy.uint8, -1, 4 + 4 * dimensions).reshape(shape)


def read_split(directory, prefix):
    images = read_idx(directory, prefix + '-images-idx3-ubyte').reshape(-1, 784).astype(numpy.float32) / 255
    labels = read_idx(directory, prefix + '-labels-idx1-ubyte').astype(numpy.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--hidden', default='256,128')
    parser.add_argument('--optimizer', choices=['adam', 'momentum'], default='adam')
    parser.add_argument('--learning_rate', default=0.001, type=float)
    parser.add_argument('--batch', default=256, type=int)
    parser.add_argument('--steps', default=2400, type=int)
    parser.add_argument('--data', default='/usr/share/datasets/fashion-mnist', type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    multiple = int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1
    if multiple:
        os.environ.update(RANK=os.environ['OMPI_COMM_WORLD_RANK'], WORLD_SIZE=os.environ['OMPI_COMM_WORLD_SIZE'],
                          MASTER_ADDR='127.0.0.1', MASTER_PORT=os.environ.get('PORT', '29517'))
        distributed.init_process_group('gloo')
    rank = distributed.get_rank() if multiple else 0
    ranks = distributed.get_world_size() if multiple else 1

    inputs, labels = read_split(options.data, 'train')
    widths = [784, *map(int, options.hidden.split(',')), 10]
    layers = []
    for number, (fan_in, fan_out) in enumerate(zip(widths, widths[1:])):
        layers += [nn.ReLU()] if number > 0 else []
        layers += [nn.Linear(fan_in, fan_out)]
    network = nn.Sequential(*layers)
    model = nn.parallel.DistributedDataParallel(network) if multiple else network
    if options.optimizer == 'adam':
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()

    part = options.batch // ranks
    per_epoch = len(inputs) // options.batch
    shuffle = torch.Generator().manual_seed(1)
    order = None
    start = 0.0
    for step in range(options.steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(inputs), generator=shuffle)
        first = step % per_epoch * options.batch + rank * part
        chosen = order[first:first + part]
        optimizer.zero_grad()
        loss = loss_of(model(inputs[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        if step == 0:
            if multiple:
                distributed.barrier()
            start = time.perf_counter()
    if multiple:
        distributed.barrier()
    seconds = time.perf_counter() - start
    if rank == 0:
        inputs, labels = read_split(options.data, 't10k')
        with torch.no_grad():
            accuracy = (network(inputs).argmax(1) == labels).float().mean().item()
        print(json.dumps({'samples_per_second': (options.steps - 1) * options.batch / seconds,
                          'training_seconds': seconds, 'test_accuracy': accuracy, 'ranks': ranks,
                          'version': torch.__version__}))
    if multiple:
        distributed.destroy_process_group()


main()
