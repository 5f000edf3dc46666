"""Kills one rank, or the launcher, at a random moment, again and again: the job is gone, and the next one goes on.

LOCKSTEP_KILLS says how many kills (40), LOCKSTEP_TEST_SEED which.

Whatever the machine does, an outcome is legal or a failure: a kill may come before the run began, at any point of it, or
after its end, and then it counts as none.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "apps"))
import harness  # noqa: E402

SEED = int(os.environ.get("LOCKSTEP_TEST_SEED", random.SystemRandom().randrange(1 << 30)))
KILLS = int(os.environ.get("LOCKSTEP_KILLS", "40"))
LAST_STEP = 120
HUNG = 120  # seconds after which a job that lost a rank hangs, however busy the machine
STARTED = 240  # seconds for a short run, with whatever else the machine does
GONE = 5  # seconds: what is promised; a busy machine may need longer for some
SIDE_BY_SIDE = 2
MET = "1 thread a rank"  # the first words of a job whose ranks have met


class Chain:
    """One run that is killed again and again until it is done, then the next."""

    def __init__(self, test, number):
        self.test = test
        self.draw = random.Random(SEED * 1000 + number)
        self.folder = test.folder / f"chain-{number}"
        self.folder.mkdir()
        self.runs = 0
        self.stuck = 0
        self.begin()

    def begin(self):
        self.runs += 1
        self.directory = self.folder / f"run-{self.runs}"
        self.acknowledged = -1

    def options(self):
        return self.test.options(hidden=64, last_step=LAST_STEP, checkpoint_dir=self.directory,
                                 save_checkpoint_steps=self.draw.choice((1, 5, 20)),
                                 save_checkpoint_secs=0)

    def moment(self, job):
        """Waits for a moment of the run: as it starts, at some step, at the end; then a little longer."""
        step = self.draw.randrange(LAST_STEP + 1)
        reached = self.draw.choice((
            lambda: len(job.ranks()) > 0,
            lambda: "hooks:" in job.text(),
            lambda: harness.newest_step(self.directory) >= step,
            lambda: harness.newest_step(self.directory) >= step,
            lambda: any(self.directory.glob(".*.tmp.*")),
            lambda: "stopped after step" in job.text(),
        ))
        try:
            harness.wait_for(lambda: job.process.poll() is not None or reached(), "the job to come as far or to end", STARTED)
        except AssertionError as problem:
            self.fail(str(problem), None, job.text())
        # So that the kill comes at any moment from there on.
        time.sleep(self.draw.choice((0, 0, self.draw.uniform(0, 0.02), self.draw.uniform(0, 0.4))))

    def launch(self):
        """One launch, and a kill if there is still somebody. Returns who was killed and the seconds to the end, or None."""
        ranks = self.draw.randrange(2, 5)
        with harness.Job(ranks, harness.TRAIN, *self.options()) as job:
            self.moment(job)
            by_rank = {}
            for pid in job.ranks():
                with contextlib.suppress(OSError, StopIteration):
                    by_rank[harness.rank_of(pid)] = pid
            pids = [job.process.pid, *harness.descendants(job.process.pid)]
            victim = self.draw.choice([*range(ranks), *range(ranks), "mpirun"])
            victim_pid = job.process.pid if victim == "mpirun" else by_rank.get(victim)
            killed = None
            if job.process.poll() is None and victim_pid is not None and harness.alive(victim_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim_pid, signal.SIGKILL)
                    killed = time.monotonic()
            code = self.wait(job, pids[1:], victim)
            seconds = time.monotonic() - killed if killed else 0
            text = job.text()
        self.judge(code, victim if killed else None, text)
        return (victim, seconds) if killed else None

    def wait(self, job, started, victim):
        """The exit code, once all processes are gone."""
        end = time.monotonic() + HUNG
        alone = None  # since when
        while job.process.poll() is None or any(harness.alive(pid) for pid in started):
            if time.monotonic() > end:
                self.fail("it hangs", victim, job.text())
            # Open MPI 4.1.4 itself: a rank that dies while it makes itself known to mpirun may leave mpirun waiting for
            # nobody, 1 in some 50 such kills. tools/run_until_done ends it like this.
            if any(harness.alive(pid) for pid in harness.descendants(job.process.pid)) or MET in job.text():
                alone = None
            elif alone is None:
                alone = time.monotonic()
            elif time.monotonic() > alone + GONE and job.process.poll() is None:
                self.stuck += 1
                job.process.kill()
            time.sleep(0.01)  # until the next look
        return job.process.returncode

    def judge(self, code, victim, text):
        for line in text.splitlines():
            # Whole lines alone: of the last one before a kill there may be less.
            if saved := re.match(r"saved checkpoint \S+ \(step (\d+), \d+ bytes, [\d.]+ s\)$", line):
                self.acknowledged = max(self.acknowledged, int(saved[1]))
            restored = re.match(r"restored checkpoint \S+ \(step (\d+)\)$", line)
            if restored and int(restored[1]) < self.acknowledged:
                self.fail(f"it went on from before step {self.acknowledged}, which was acknowledged", victim, text)
        complete = "stopped after step" in text
        if code == 0:
            if not complete and "the run is complete" not in text:
                self.fail("it seems to have ended well and has not", victim, text)
            self.compare(victim, text)
            return
        if victim is None:
            self.fail(f"it ended with {code} though nobody was killed", victim, text)
        # Before ranks have met only mpirun knows, and not always says it; after the end nobody misses a rank.
        if victim != "mpirun" and MET in text and not complete and not re.search(rf"\brank {victim}\b", text):
            self.fail("nobody named the rank that was killed", victim, text)
        if not self.directory.exists():
            return
        state = None
        status = self.directory / "status.json"
        if status.exists():
            state = json.loads(status.read_text())["state"]
            if state != "running" and (state != "done" or harness.newest_step(self.directory) != LAST_STEP):
                self.fail(f"status.json says '{state}'", victim, text)
        shown = harness.execute(harness.INSPECT, "--verify", self.directory)
        if shown.code != 0 and list(self.directory.glob("ckpt-*.h5")):
            self.fail(f"the directory is damaged: {shown}", victim, text)
        if harness.newest_step(self.directory) < self.acknowledged:
            self.fail(f"step {self.acknowledged} was acknowledged and is lost", victim, text)
        if state == "done":
            self.compare(victim, text)

    def compare(self, victim, text):
        shown = harness.execute(harness.INSPECT, "--digest", self.directory)
        if f"{self.test.expected}  ckpt-{LAST_STEP:08}.h5:/model/" not in shown.out:
            self.fail(f"it came to another end than {self.test.expected}: {shown}", victim, text)
        self.begin()

    def fail(self, problem, victim, text):
        raise AssertionError(f"{self.directory.name} of {self.folder.name}, victim {victim}: {problem}\n"
                             f"LOCKSTEP_TEST_SEED={SEED}\n{text}")


class RankKills(harness.EndToEnd):

    def test_kills(self):
        print(f"LOCKSTEP_TEST_SEED={SEED}", flush=True)
        self.expected = self.train(1, hidden=64, last_step=LAST_STEP)["parameters_digest"]
        kills, launches, lock = [], [0], threading.Lock()

        def work(number):
            chain = Chain(self, number)
            while True:
                with lock:
                    if len(kills) >= KILLS:
                        break
                    launches[0] += 1
                    # At least one launch in six is killed as it starts, which cannot come too late.
                    self.assertLess(launches[0], 30 * KILLS + 100, "kills that come too late")
                kill = chain.launch()
                if kill:
                    with lock:
                        kills.append(kill)
                        if len(kills) % 50 == 0:
                            print(f"{len(kills)} kills, {launches[0]} launches", flush=True)
            # What is left goes on to the end.
            ended = harness.run(3, harness.TRAIN, *chain.options())
            chain.judge(ended.code, None, ended.err)
            return chain

        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            chains = list(pool.map(work, range(SIDE_BY_SIDE)))
        runs = sum(chain.runs for chain in chains)
        stuck = sum(chain.stuck for chain in chains)
        seconds = sorted(seconds for _, seconds in kills)
        late = sum(second > GONE for second in seconds)
        print(f"{len(kills)} kills in {launches[0]} launches of {runs} runs: 0 hangs, 0 unreadable directories, 0 wrong "
              f"digests; gone after {statistics.median(seconds):.1f} s (median), {seconds[-1]:.1f} s (longest), "
              f"{late} after more than {GONE} s; mpirun stayed behind alone {stuck} times", flush=True)
        self.assertLess(statistics.median(seconds), GONE)


if __name__ == "__main__":
    harness.main()
