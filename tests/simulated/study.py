#!/usr/bin/python3
"""Scaling studies of simulated ranks: a law predicts the numbers of ranks that it has not seen.

    tests/simulated/study.py LOCKSTEP_SCALING SIMULATED_JOB [--sizes 16,32,64,128] [--platforms fat_tree,dragonfly]
                             [--seen N] [--out FOLDER]

Of each platform a study, strong and weak, by `lockstep-scaling run`: the fit knows the samples, nothing of the network.
With each number of ranks held out in turn, the law may miss it by 10 % at most. With --seen the law of the runs of up to
so many ranks must tell those beyond as well.
"""
import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
MOST_ERROR = 10  # percent
PER_NODE = 4
# A step is some 60 to 100 % compute: 256 KiB of gradients, micro-batches of 60 us that differ by 5 %.
JOB = ['--elements', '65536', '--micro_batch_us', '60', '--jitter', '0.05', '--zeros']
STEPS = 6
MICRO_BATCHES = {'strong': 4, 'weak': 8}  # of a rank, where there are most
problems = []


def check(good, text):
    print(f'  {"ok" if good else "WRONG"}: {text}', flush=True)
    if not good:
        problems.append(text)


def execute(command):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f'{" ".join(str(word) for word in command)}: exit status {done.returncode}\n{done.stdout}')
    return done.stdout


def study(arguments, platform, sizes, folder):
    """Both modes in one folder, though their batches differ."""
    runs = folder / platform / 'runs'
    runs.mkdir(parents=True, exist_ok=True)
    launcher = [TOP / 'benchmarks/simulated/launcher', arguments.simulated, '--platform',
                TOP / f'benchmarks/platforms/{platform}.xml', '--per_node', PER_NODE, *JOB]
    for mode, of_rank in MICRO_BATCHES.items():
        part = folder / f'{platform}-{mode}'
        execute([arguments.scaling, 'run', '--out', part, '--ranks', ','.join(str(size) for size in sizes), '--mode', mode,
                 '--global_batch', of_rank * (sizes[-1] if mode == 'strong' else 1), '--repeats', 1, '--steps', STEPS,
                 '--launcher', ' '.join(str(word) for word in launcher)])
        for sample in (part / 'runs').glob('*.sample.json'):
            shutil.copy(sample, runs)
    return folder / platform


def errors_of(report, title):
    """The last column of the tables whose title has these words, by their rows' first cells."""
    found = {}
    for section in report.split('## ')[1:]:
        if title not in section.split('\n')[0]:
            continue
        for line in section.split('\n'):
            cells = [cell.strip() for cell in line.strip('| ').split('|')]
            if re.fullmatch(r'[+-][\d.]+', cells[-1]):
                mode = cells[0] if not cells[0].isdigit() else section.split('\n')[0].split()[-2]
                found[mode, next(cell for cell in cells if cell.isdigit())] = float(cells[-1])
    return found


def check_errors(errors, least, of):
    check(len(errors) >= least, f'{of}: {len(errors)} of {least} numbers of ranks are predicted')
    for (mode, ranks), error in errors.items():
        check(abs(error) <= MOST_ERROR, f'{of}: {mode} scaling, {ranks} ranks: {error:+.1f} %')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('scaling')
    parser.add_argument('simulated')
    parser.add_argument('--sizes', default='16,32,64,128')
    parser.add_argument('--platforms', default='fat_tree,dragonfly')
    parser.add_argument('--seen', type=int)
    parser.add_argument('--out')
    arguments = parser.parse_args()
    sizes = sorted(int(size) for size in arguments.sizes.split(','))
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(arguments.out or scratch)
        for platform in arguments.platforms.split(','):
            whole = study(arguments, platform, sizes, folder)
            report = execute([arguments.scaling, 'report', whole])
            check_errors(errors_of(report, 'has not seen these ranks'), 2 * len(sizes), f'{platform}, held out')
            if arguments.seen:
                early = folder / f'{platform}-up-to-{arguments.seen}'
                (early / 'runs').mkdir(parents=True, exist_ok=True)
                for sample in (whole / 'runs').glob('*.sample.json'):
                    if int(sample.name.split('-')[1]) <= arguments.seen:
                        shutil.copy(sample, early / 'runs')
                report = execute([arguments.scaling, 'report', early, whole])
                beyond = [size for size in sizes if size > arguments.seen]
                check_errors(errors_of(report, f'{whole.name} beside what {early.name} predicts'), 2 * len(beyond),
                             f'{platform}, seen up to {arguments.seen}')
            if arguments.out:
                print(report)
    for problem in problems:
        print(f'WRONG: {problem}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
