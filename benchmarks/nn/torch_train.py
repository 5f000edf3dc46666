"""PyTorch on the networks of benchmarks/nn/run: one process, or DDP over gloo under mpirun.

    torch_train.py NAME --steps N [--data DIR] [--channels_last]

The batch is that of each process. Prints as JSON samples/s over the steps after the first fifth, and the peak memory of
the process.
"""
import argparse
import json
import os
import pathlib
import resource
import time

import numpy
import torch
from torch import distributed, nn
from torch.nn import functional

import torch_networks as networks
from torch_data import read_images, read_text

# batch, optimizer
WORK = {'mlp': (128, 'momentum'), 'mlp_wide': (256, 'momentum'), 'lenet': (64, 'adam'), 'resnet': (64, 'momentum'),
        'unet': (16, 'adam'), 'gpt': (16, 'adamw')}
CONTEXT = 128


def random_data(samples, shape, classes):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(samples, *shape, generator=generator), torch.randint(classes, (samples,), generator=generator)


def random_values(samples, inputs, targets):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(samples, inputs, generator=generator), torch.rand(samples, targets, generator=generator)


def make(name, data):
    """Network, inputs, targets, loss."""
    if name == 'mlp':
        return (networks.mlp(784, [512, 512], 10), *read_images(data), functional.cross_entropy)
    if name == 'mlp_wide':
        return (networks.mlp(1024, [2048, 2048], 1000), *random_values(2048, 1024, 1000), functional.mse_loss)
    if name == 'lenet':
        return (networks.lenet(), *read_images(data), functional.cross_entropy)
    if name == 'resnet':
        return (networks.resnet(20), *random_data(5000, (3, 32, 32), 10), functional.cross_entropy)
    if name == 'unet':
        inputs = torch.rand(512, 1, 64, 64, generator=torch.Generator().manual_seed(1))
        return networks.unet(1, 1, 3, 16), inputs, inputs.flip(2), functional.mse_loss
    inputs, targets = read_text(data, CONTEXT)
    return (networks.gpt(context=CONTEXT), inputs, targets,
            lambda outputs, labels: functional.cross_entropy(outputs.flatten(0, 1), labels.flatten()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('name', choices=WORK)
    parser.add_argument('--steps', default=100, type=int)
    parser.add_argument('--data', type=pathlib.Path)
    parser.add_argument('--channels_last', action='store_true')
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    multiple = int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1
    if multiple:
        os.environ.update(RANK=os.environ['OMPI_COMM_WORLD_RANK'], WORLD_SIZE=os.environ['OMPI_COMM_WORLD_SIZE'],
                          MASTER_ADDR='127.0.0.1', MASTER_PORT=os.environ.get('PORT', '29518'))
        distributed.init_process_group('gloo')
    rank = distributed.get_rank() if multiple else 0
    ranks = distributed.get_world_size() if multiple else 1
    batch, optimizer_name = WORK[options.name]
    network, inputs, targets, loss_of = make(options.name, options.data)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)
    model = nn.parallel.DistributedDataParallel(network) if multiple else network
    optimizer = {'momentum': lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
                 'adam': lambda p: torch.optim.Adam(p, lr=1e-3),
                 'adamw': lambda p: torch.optim.AdamW(p, lr=3e-4, weight_decay=0.1, betas=(0.9, 0.95))}[optimizer_name](
                     network.parameters())
    per_epoch = len(inputs) // (batch * ranks)
    order = numpy.random.default_rng(1)
    chosen = None
    warm = max(1, options.steps // 5)
    start = 0.0
    for step in range(options.steps):
        if step % per_epoch == 0:
            chosen = torch.from_numpy(order.permutation(len(inputs)))
        if step == warm:
            if multiple:
                distributed.barrier()
            start = time.perf_counter()
        at = (step % per_epoch * ranks + rank) * batch
        these = chosen[at:at + batch]
        x = inputs[these]
        if options.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = loss_of(model(x), targets[these])
        loss.backward()
        optimizer.step()
    if multiple:
        distributed.barrier()
    seconds = time.perf_counter() - start
    if rank == 0:
        print(json.dumps({'samples_per_second': (options.steps - warm) * batch * ranks / seconds, 'loss': loss.item(),
                          'peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                          'version': torch.__version__}))
    if multiple:
        distributed.destroy_process_group()


main()
