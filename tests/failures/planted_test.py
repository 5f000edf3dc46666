"""Every fault that is planted in our code is found by its instrument, and told as what it is.

    planted_test.py INSTRUMENT PROGRAM

PROGRAM is the instrument with the sources of plant.py; it ends at its first problem.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import plant
import planting  # where plant.py finds it

SKIPPED = 77
CASES = {"format": "well signed files with anything*", "shards": "with a key manifest and shards*"}
FUZZER = ["-runs=1000000", "-seed=1", "-max_len=16384", "-rss_limit_mb=2048", "-malloc_limit_mb=64",
          "-error_exitcode=1"]  # its own is that of a test that was skipped


def command(instrument, program, folder):
    if instrument in CASES:
        return [program, f"--test-case={CASES[instrument]}"]
    if not instrument.startswith("fuzz_"):
        return [program, "--first"]
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "fuzz"))
    import run_fuzzer
    run_fuzzer.write_corpus(instrument, folder / "corpus")
    return [program, *FUZZER, f"-artifact_prefix={folder}/found-", folder / "corpus"]


def main():
    instrument, program = sys.argv[1:]
    numbers = planting.names_of(plant.FAULTS)
    missed = []
    for name, (words, _) in plant.FOUND_BY[instrument].items():
        with tempfile.TemporaryDirectory(prefix="lockstep-planted-") as folder:
            started = time.monotonic()
            done = subprocess.run(command(instrument, program, pathlib.Path(folder)), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                  env=os.environ | {"LOCKSTEP_PLANTED": str(numbers.index(name))})
            seconds = time.monotonic() - started
        if done.returncode == SKIPPED:
            print(done.stdout)
            return SKIPPED
        found = done.returncode != 0 and words in done.stdout
        print(f"{name:36s} {'found' if found else 'MISSED'} in {seconds:.1f} s", flush=True)
        if not found:
            missed.append(name)
            print(f"exit {done.returncode}, without '{words}':\n" + "\n".join(done.stdout.splitlines()[-30:]))
    print(f"{len(plant.FOUND_BY[instrument])} cases, {len(missed)} problems")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
