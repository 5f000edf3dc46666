"""What the run scripts of the benchmarks share: waiting for a calm machine, timing processes, medians."""
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

ENVIRONMENT = {
    **os.environ,
    'OMP_NUM_THREADS': '1',
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
}


def busy_share(seconds):
    """The share of all cores' time that was in use during these seconds."""
    def read():
        with open('/proc/stat', encoding='ascii') as stat:
            numbers = [int(word) for word in stat.readline().split()[1:9]]
        idle = numbers[3] + numbers[4]
        return sum(numbers), idle
    total, idle = read()
    time.sleep(seconds)
    total_after, idle_after = read()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def wait_until_calm(limit=60):
    """Waits for a second in which nothing else runs. True if it came within the limit."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if busy_share(1) < 0.08:
            return True
    return False


def mpirun(ranks, *command):
    return ['mpirun', '-n', str(ranks), '--bind-to', 'none', '--oversubscribe', *map(str, command)]


def run(command, stderr_too=False, **arguments):
    """Runs a command to its end; returns (seconds, what it printed). Ends the program if it fails."""
    start = time.monotonic()
    done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, text=True, capture_output=True,
                          check=False, **arguments)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f'{" ".join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}')
    return seconds, done.stdout + (done.stderr if stderr_too else '')


def summary(values):
    return f'{min(values):.3f} to {max(values):.3f}, median {statistics.median(values):.3f}'


def machine():
    """One line: processor, cores, system, date and load."""
    with open('/proc/cpuinfo', encoding='utf-8') as info:
        found = re.search(r'model name\s*: (.*)', info.read())
    load = ' '.join(f'{value:.2f}' for value in os.getloadavg())
    return (f'{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores, '
            f'{time.strftime("%Y-%m-%d %H:%M")}, load {load}')


def need(path, how):
    if not pathlib.Path(path).exists():
        sys.exit(f'{path} is missing; {how}')
    return pathlib.Path(path)
