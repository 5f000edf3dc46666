"""Runs a fuzzer from seeds that it makes itself.

    run_fuzzer.py FUZZER [--size full]

20 seconds, or a million executions. A crash, a report of a sanitizer, an allocation of more than 64 MiB or memory beyond
2 GiB fails it; then the input is printed, to be given to FUZZER as a file. So does an input that takes 100 s by the clock
on the wall: a busy machine has let one of 10 ms wait for more than ten.
"""

import base64
import gzip
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

LARGEST = 16384  # bytes of an input


def trailer_seeds():
    """Whole but for the digest, which the fuzzer makes right; with and without index, metric and signature."""
    def record(offset, kind, shape, path):
        return struct.pack(f"<QBBH{len(shape)}q", offset, kind, len(shape), len(path), *shape) + path
    index = (record(0, 4, [1], b"/model/a") + record(0, 4, [], b"/session/global_step") +
             record(0, 5, [1], b"/config/model"))
    for size in (1, 4096, 4097, 9000):
        for part in (b"", index):
            for signed in (0, 1):
                blocks = (size + 4095) // 4096
                footer = struct.pack("<QqQqIIQd32sI", size, 42, 3, 1700000000000, 4096, blocks, len(part), 0.25,
                                     b"loss" if signed else b"", signed)
                footer += bytes(4) + bytes(32) + bytes(16) + struct.pack("<II", 1, 0) + b"LKSTPCK\n"
                assert len(footer) == 160
                image = random.Random(size).randbytes(size)
                for flags in range(8):
                    yield bytes([flags]) + image + bytes(4 * blocks) + part + footer


def state_file_seeds():
    def record(step, metric):
        return {"step": step, "file": f"ckpt-{step:08}.h5", "digest": f"{step:032x}", "bytes": 814932, "token": 3,
                "time": 1769864400.125, "preserved": step % 2 == 0, "metric": metric}
    for metric in (None, {"name": "loss", "value": 0.25}):
        for count in (0, 1, 3):
            yield json.dumps({"format": 1, "token": 3, "latest": f"ckpt-{count:08}.h5", "last_preserved": 1769860800.0,
                              "checkpoints": [record(step + 1, metric) for step in range(count)],
                              "retired": [{"file": "ckpt-00000000.h5", "digest": f"{0:032x}"}]}).encode()


def lock_seeds():
    for host in ("n3", os.uname().nodename):
        for pid in (1, 4194304):
            lock = {"host": host, "boot_id": pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                    "pid": pid, "start_time": 81234, "job": "slurm-17", "restarts": 0, "since": 1769860800.0,
                    "token": 3, "nonce": "0011223344556677"}
            heartbeat = {"nonce": "0011223344556677", "count": 42, "wall": 1769861010.0}
            yield json.dumps(lock).encode() + b"\0" + json.dumps(heartbeat).encode()
            yield json.dumps(lock).encode()
            yield json.dumps(lock | {"token": 2**64 - 1}).encode()


def idx_seeds():
    """Some claim more than there is: a checksum cannot be guessed, so that only a seed gets a false header past it."""
    for shape in ((1 << 31,), (0xffffffff,) * 4, ()):
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, max(len(shape), 1), *shape)
        yield header
        yield gzip.compress(header, mtime=0)
    for shape in ((5,), (2, 3, 4), (1, 1, 1, 7)):
        count = 1
        for extent in shape:
            count *= extent
        plain = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(range(count))
        yield plain
        yield gzip.compress(plain, mtime=0)


def write_corpus(name, corpus):
    """Those of the fuzzer `name`, such as fuzz_lock, into the new folder `corpus`."""
    corpus.mkdir()
    for number, seed in enumerate(globals()[name.removeprefix("fuzz_") + "_seeds"]()):
        (corpus / f"seed-{number}").write_bytes(seed)


def main():
    fuzzer = pathlib.Path(sys.argv[1]).resolve()
    full = sys.argv[2:] == ["--size", "full"]
    with tempfile.TemporaryDirectory(prefix="lockstep-fuzz-") as folder:
        corpus = pathlib.Path(folder, "corpus")
        write_corpus(fuzzer.name, corpus)
        done = subprocess.run(
            [fuzzer, "-runs=1000000" if full else "-max_total_time=20", "-seed=1", f"-max_len={LARGEST}", "-timeout=100",
             "-rss_limit_mb=2048", "-malloc_limit_mb=64", "-print_final_stats=1", f"-artifact_prefix={folder}/found-",
             corpus], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"})
        executed = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
        print("\n".join(done.stdout.splitlines()[-60 if done.returncode else -12:]))
        for found in pathlib.Path(folder).glob("found-*"):
            print(f"{found.name}, in base64:\n{base64.b64encode(found.read_bytes()).decode()}")
        count = int(executed.group(1)) if executed else 0
        print(f"{count} cases, {int(done.returncode != 0)} problems")
        return 0 if done.returncode == 0 and count > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
