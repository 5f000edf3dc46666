"""What the end-to-end tests share: starting programs under mpirun, small data sets, looking at directories.

A test file calls `main()`; meson gives it the paths of lockstep-train, lockstep-eval and lockstep-inspect.
"""

import array
import contextlib
import ctypes
import gzip
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

TRAIN = EVAL = INSPECT = ""
SKIPPED = 77  # meson's exit status for "could not be tried here"
LIMIT = 60  # seconds; nothing here takes longer than a few
SHARED_MEMORY = None  # where Open MPI puts its segments, so that those of killed jobs go with the test


def environment():
    env = dict(os.environ)
    env.update({
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "OMPI_MCA_btl_vader_backing_directory": SHARED_MEMORY,
        "OMPI_MCA_osc_sm_backing_directory": SHARED_MEMORY,
        "TMPDIR": SHARED_MEMORY,
        "ASAN_OPTIONS": "detect_leaks=0",
    })
    return env


class Ended:
    """How a program ended."""

    def __init__(self, code, out, err, seconds, codes=None):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds
        self.codes = codes  # of each rank, where they were asked for

    def errors(self):
        """The lines that begin an error message."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def __str__(self):
        return f"exit {self.code}, {self.seconds:.2f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def execute(*words, limit=LIMIT):
    started = time.monotonic()
    done = subprocess.run([str(word) for word in words], env=environment(), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                          timeout=limit)
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def mpirun(ranks):
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]


def run(ranks, program, *options, limit=LIMIT):
    return execute(*mpirun(ranks), program, *options, limit=limit)


def run_each(ranks, program, *options, limit=LIMIT):
    """As `run`, and also tells the exit code of every rank, which mpirun hides: it only sees zeros."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        script = 'folder=$1; shift; "$@"; echo $? > "$folder/$OMPI_COMM_WORLD_RANK"'
        ended = execute(*mpirun(ranks), "sh", "-c", script, "sh", folder, program, *options, limit=limit)
        ended.codes = [int(pathlib.Path(folder, str(rank)).read_text()) for rank in range(ranks)]
    ended.code = max(ended.codes)
    return ended


def rank_of(pid):
    """The rank of a process that mpirun started; None of one that is not yet, or no longer, a rank."""
    words = pathlib.Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    return next((int(word.split(b"=")[1]) for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")), None)


def stands_still(pid):
    """All threads of a process are stopped; a signal reaches them one after the other."""
    states = [pathlib.Path(task, "stat").read_text().rsplit(")", 1)[1].split()[0]
              for task in pathlib.Path("/proc", str(pid), "task").iterdir()]
    return all(state == "T" for state in states)


def descendants(pid):
    """All processes that `pid` started, directly or not."""
    children = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            parent = int(pathlib.Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


class Job:
    """A program under mpirun, running beside the test. Use in a with-block, which ends it."""

    def __init__(self, ranks, program, *options, launcher_options=()):
        self.error_file = tempfile.TemporaryFile(mode="w+", dir=SHARED_MEMORY)
        self.started = time.monotonic()
        self.printed = ""
        self.process = subprocess.Popen([*mpirun(ranks), *launcher_options, program, *[str(option) for option in options]],
                                        env=environment(), stdin=subprocess.DEVNULL,
                                        stdout=self.error_file, stderr=self.error_file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        self.printed = self.text()
        self.error_file.close()

    def ranks(self):
        return [pid for pid in descendants(self.process.pid) if self.is_program(pid)]

    @staticmethod
    def is_program(pid):
        with contextlib.suppress(OSError):
            return os.path.realpath(f"/proc/{pid}/exe") in (os.path.realpath(TRAIN), os.path.realpath(EVAL))
        return False

    def signal_ranks(self, number):
        for pid in self.ranks():
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                wait_for(lambda pid=pid: stands_still(pid), "a stopped rank to stand still")

    def kill(self):
        """kill -9 of mpirun and all ranks; returns when they are gone."""
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(LIMIT)
        wait_for(lambda: not any(alive(pid) for pid in pids), "killed processes to be gone")

    def wait(self):
        code = self.process.wait(LIMIT)
        return Ended(code, "", self.text(), time.monotonic() - self.started)

    def text(self):
        """What it has printed."""
        if self.error_file.closed:
            return self.printed
        return pathlib.Path(f"/proc/self/fd/{self.error_file.fileno()}").read_text(errors="replace")


def alive(pid):
    try:
        return pathlib.Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def own_mounts():
    """From now on what this process and its children mount is seen by them alone, and goes with them. False: it may not."""
    new_namespace = 0x20000  # CLONE_NEWNS
    if ctypes.CDLL(None).unshare(new_namespace) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def wait_for(condition, what, limit=LIMIT):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit} s for {what}")
        time.sleep(0.005)  # between two looks; the limit above ends it


def snapshot(folder, without=()):
    """Digest of every file under `folder`, by its name."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file() and path.name not in without}


def checkpoints(folder):
    """Names of the checkpoints, oldest first."""
    return sorted(path.name for path in pathlib.Path(folder).glob("ckpt-????????.h5"))


def newest_step(folder):
    return max((int(name[5:13]) for name in checkpoints(folder)), default=-1)


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


# ---- data

def idx_bytes(shape, values, kind=8):
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + bytes(values)


def write_idx(folder, name, samples, seed, side=12, classes=5, compressed=True):
    """Images of noise in which one block of pixels, chosen by the label, is bright."""
    draw = random.Random(seed)
    labels = bytes(draw.randrange(classes) for _ in range(samples))
    pixels = bytearray(draw.randbytes(samples * side * side))
    for sample, label in enumerate(labels):
        for pixel in range(sample * side * side + label * side, sample * side * side + (label + 1) * side):
            pixels[pixel] = 128 + pixels[pixel] // 2
    for kind, content in [("images-idx3", idx_bytes([samples, side, side], pixels)),
                          ("labels-idx1", idx_bytes([samples], labels))]:
        path = pathlib.Path(folder, f"{name}-{kind}-ubyte")
        if compressed:
            path = path.with_name(path.name + ".gz")
            content = gzip.compress(content, 1, mtime=0)
        path.write_bytes(content)


def make_data(folder, train=720, test=200, side=12):
    """A data set that a small network learns in some steps."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    write_idx(folder, "train", train, 1, side)
    write_idx(folder, "t10k", test, 2, side, compressed=False)
    return folder


def write_npy(path, shape, values):
    """As numpy.save does, without NumPy."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
                     + array.array("f", values).tobytes())


def write_fields(folder, samples, side):
    """Random fields, and each smoothed: the mean of the up to nine cells around."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", samples), ("test", samples // 2)):
        generator = random.Random(split)
        fields, smooth = [], []
        for _ in range(count):
            field = [[generator.gauss(0, 1) for _ in range(side)] for _ in range(side)]
            fields += [value for row in field for value in row]
            near = [range(max(0, at - 1), min(side, at + 2)) for at in range(side)]
            smooth += [sum(field[y][x] for y in near[i] for x in near[j]) / (len(near[i]) * len(near[j]))
                       for i in range(side) for j in range(side)]
        write_npy(folder / f"{split}_inputs.npy", (count, side, side, 1), fields)
        write_npy(folder / f"{split}_targets.npy", (count, side, side, 1), smooth)
    return folder


class EndToEnd(unittest.TestCase):
    """A test with a directory of its own (`self.folder`) and a small data set (`self.data`)."""

    @classmethod
    def setUpClass(cls):
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix="lockstep-e2e-"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch, ignore_errors=True)
        cls.data = make_data(cls.scratch / "data")

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.scratch))
        self.maxDiff = None

    def options(self, **changes):
        """Options of a small training on self.data; None leaves one out."""
        chosen = {"dataset": "idx", "data_dir": self.data, "hidden": 32, "global_batch": 240, "micro_batch": 30,
                  "last_step": 40, "log_step_count_steps": 0, "save_summaries_steps": 0}
        chosen.update(changes)
        words = []
        for name, value in chosen.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not None:
                words += [f"--{name}", str(value)]
        return words

    def train(self, ranks, **changes):
        """Trains and returns the report; the run must end well."""
        report = self.folder / f"report-{time.monotonic_ns()}.json"
        ended = run(ranks, TRAIN, *self.options(report=report, **changes))
        self.assertEqual(ended.code, 0, str(ended))
        result = read_json(report)
        result["stderr"] = ended.err
        return result


def main():
    """Runs the tests of the calling file; the arguments are the three programs, then those of unittest."""
    global TRAIN, EVAL, INSPECT, SHARED_MEMORY
    TRAIN, EVAL, INSPECT = sys.argv[1:4]
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    SHARED_MEMORY = tempfile.mkdtemp(prefix="lockstep-e2e-", dir=base)
    os.chmod(SHARED_MEMORY, 0o1777)  # one test runs as nobody
    try:
        program = unittest.main(argv=[sys.argv[0], *sys.argv[4:]], exit=False, verbosity=2)
    finally:
        shutil.rmtree(SHARED_MEMORY, ignore_errors=True)
    result = program.result
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED if result.testsRun > 0 and len(result.skipped) == result.testsRun else 0)
