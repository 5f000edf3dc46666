#!/usr/bin/python3
"""A job on simulated ranks, in several sizes, and the same on real ones: same bits, and what does not grow.

    tests/simulated/ranks.py SIMULATED_JOB REAL_JOB [--sizes 16,64,256]

All sizes have the same micro-batches, so the digest of the parameters at the end is the same, after a checkpoint and
its restore. Messages grow by the same for each doubling of ranks, or less; what a rank has in memory when its session is
made or restored, and what collectives bring it, by a few bytes.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

PLATFORMS = pathlib.Path(__file__).resolve().parent.parent.parent / 'benchmarks/platforms'
MICRO_BATCHES = 256
STEPS = 6
PER_NODE = 4
BYTES_A_DOUBLING = 64  # of ranks; 4 bytes for each node are more from 16 nodes on
problems = []


def check(good, text):
    print(f'  {"ok" if good else "WRONG"}: {text}', flush=True)
    if not good:
        problems.append(text)


def words(folder, name):
    return ['--micro_batches', str(MICRO_BATCHES), '--steps', str(STEPS), '--directory', f'{folder}/{name}']


def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f'{" ".join(command)}: exit status {done.returncode}\n{done.stdout}')
    return json.loads(done.stdout)


def simulate(program, folder, ranks, platform):
    return run([program, '--platform', str(PLATFORMS / f'{platform}.xml'), '--ranks', str(ranks),
                '--per_node', str(PER_NODE), '--micro_batch_us', '50', *words(folder, f'{platform}{ranks}')])


def real(program, folder, ranks):
    environment = os.environ | {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
                                'OMPI_MCA_btl_vader_single_copy_mechanism': 'none'}
    command = ['mpirun', '--oversubscribe', '--bind-to', 'none', '-np', str(ranks), program, '--ranks_per_node', '1',
               *words(folder, f'real{ranks}')]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          timeout=120)
    if done.returncode != 0:
        sys.exit(f'{" ".join(command)}: exit status {done.returncode}\n{done.stdout}')
    return json.loads(done.stdout)


def grows_slowly(sizes, values, slack):
    """At most by the same for each doubling as for those before, or by `slack` more."""
    rates = [(values[i + 1] - values[i]) / math.log2(sizes[i + 1] / sizes[i]) for i in range(len(sizes) - 1)]
    return all(rates[i + 1] <= rates[i] + slack for i in range(len(rates) - 1))


def hardly_grows(sizes, values):
    return all(values[i + 1] <= values[i] + BYTES_A_DOUBLING * math.log2(sizes[i + 1] / sizes[i])
               for i in range(len(sizes) - 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('simulated')
    parser.add_argument('real')
    parser.add_argument('--sizes', default='16,64,256')
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(',')]
    with tempfile.TemporaryDirectory() as folder:
        wanted = real(arguments.real, folder, 2)['digest']
        jobs = [simulate(arguments.simulated, folder, ranks, 'fat_tree') for ranks in sizes]
        for ranks, job in zip(sizes, jobs):
            check(job['same'] and job['digest'] == wanted, f'{ranks} simulated ranks end as 2 real ones do: {wanted}')
        job = simulate(arguments.simulated, folder, sizes[0], 'dragonfly')
        check(job['digest'] == wanted, 'so do those of the dragonfly')

        def of(phase, counter, which):
            return [job[phase][counter][which] for job in jobs]
        for phase in ['created', 'created again', 'closed again']:
            for which, who in enumerate(['the chief', 'any rank']):
                for counter in ['sends', 'receives']:
                    values = of(phase, counter, which)
                    check(grows_slowly(sizes, values, 1), f'{phase}: {counter} of {who}, {sizes} ranks: {values}')
                for counter in ['live_bytes', 'peak_bytes', 'gathered_bytes']:
                    values = of(phase, counter, which)
                    check(hardly_grows(sizes, values), f'{phase}: {counter} of {who}, {sizes} ranks: {values}')
            values = of(phase, 'collectives', 1)
            check(len(set(values)) == 1, f'{phase}: as many collectives on any number of ranks: {values}')
        for which, who in enumerate(['the chief', 'any rank']):
            for counter in ['sends', 'receives', 'collectives']:
                values = [value / (STEPS // 2 - 1) for value in of('steps', counter, which)]
                check(grows_slowly(sizes, values, 0.01), f'a step: {counter} of {who}, {sizes} ranks: {values}')
    for problem in problems:
        print(f'WRONG: {problem}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
