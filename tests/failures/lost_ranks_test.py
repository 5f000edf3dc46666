"""Ranks are killed or stand still under an MPI that survives it: the others go on in place, to the same bits.

    lost_ranks_test.py TRAIN EVAL INSPECT SHIM

For a build with Open MPI 5 (-Dmpi_prefix), whose mpirun is then the first in the path. LOCKSTEP_LOST_RUNS says how many
runs with random kills (5), LOCKSTEP_TEST_SEED which.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import random
import re
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "apps"))
import harness  # noqa: E402

SHIM = sys.argv[4]
del sys.argv[4]

SEED = int(os.environ.get("LOCKSTEP_TEST_SEED", random.SystemRandom().randrange(1 << 30)))
RUNS = int(os.environ.get("LOCKSTEP_LOST_RUNS", "5"))
LAST_STEP = 600
SIDE_BY_SIDE = 3
FAULT_TOLERANT = ["--with-ft", "ulfm"]
KILL_SELF, STOP, KILL_RANK = 1, 6, 7  # Faults::kill, stop and kill_rank of shim.hpp
# A loss that is not noticed then shows as a job that does not end.
NO_LIMIT = {"hang_limit_secs": 0}
LOST = r"warning: (\d+) of (\d+) ranks (?:was|were) lost; (\d+) goe?s? on"


class LostRanks(harness.EndToEnd):

    def digest(self, last_step, **changes):
        return self.train(1, hidden=64, last_step=last_step, **changes)["parameters_digest"]

    def check_end(self, ended, directory, last_step, digest):
        status = harness.read_json(directory / "status.json")
        self.assertEqual((status["state"], status["global_step"]), ("done", last_step), str(ended))
        shown = harness.execute(harness.INSPECT, "--digest", directory)
        self.assertIn(f"{digest}  ckpt-{last_step:08}.h5:/model/", shown.out, str(ended))

    def test_ranks_are_killed_at_random(self):
        print(f"LOCKSTEP_TEST_SEED={SEED}", flush=True)
        digests = [self.digest(LAST_STEP, clip_norm=clip_norm) for clip_norm in (0, 1)]
        lost = 0
        for number in range(RUNS):
            with self.subTest(run=number):
                lost += self.one_run(random.Random(SEED * 1000 + number), self.folder / f"run-{number}", digests)
        print(f"{lost} ranks lost in {RUNS} runs", flush=True)
        self.assertGreater(lost, 0, "no kill came in time")

    def one_run(self, draw, directory, digests):
        clip_norm = draw.choice((0, 1))  # with which ranks also wait in the update
        ranks = draw.randrange(2, 5)
        victims = draw.sample(range(ranks), draw.randrange(1, ranks))  # the chief, too; one at least is left
        steps = sorted(draw.sample(range(LAST_STEP - 50), len(victims)))
        options = self.options(hidden=64, last_step=LAST_STEP, checkpoint_dir=directory, save_checkpoint_steps=10,
                               save_checkpoint_secs=0, **NO_LIMIT, clip_norm=clip_norm,
                               second_copy=draw.choice((0, 1)), shard_optimizer=draw.choice((0, 1)),
                               ranks_per_node=draw.choice((0, 1, 2)),
                               max_run_secs=100000)  # of which those that go on have some left
        killed = 0
        with harness.Job(ranks, harness.TRAIN, *options, launcher_options=FAULT_TOLERANT) as job:
            for victim, step in zip(victims, steps):
                harness.wait_for(lambda step=step: job.process.poll() is not None
                                 or harness.newest_step(directory) >= step, "the run to come so far")
                time.sleep(draw.choice((0, draw.uniform(0, 0.05))))  # anywhere in a step or save
                for pid in job.ranks():
                    with contextlib.suppress(OSError, StopIteration):
                        if harness.rank_of(pid) == victim:
                            os.kill(pid, signal.SIGKILL)
                            killed += 1
            ended = job.wait()
        self.check_end(ended, directory, LAST_STEP, digests[clip_norm])
        # Of one that was killed as the run ended, nobody may have taken notice.
        lost = sum(int(found[0]) for found in re.findall(LOST, ended.err))
        self.assertLessEqual(lost, killed, str(ended))
        return lost

    def test_each_rank_in_turn_is_killed_at_a_call_of_the_chief(self):
        """At calls that change the folder, from the start over the saves to the end."""
        last_step = 12
        digest = self.digest(last_step)
        draw = random.Random(SEED)
        # From the lock at the start to the last checkpoint and the release of the lock.
        cases = [(ranks, victim, at) for ranks in (2, 3, 4) for victim in range(ranks)
                 for at in (draw.randrange(1, 8), draw.randrange(8, 60), draw.randrange(60, 110))]

        def end_of(case):
            ranks, victim, at = case
            directory = self.folder.resolve() / f"run-{ranks}-{victim}-{at}"
            options = [str(word) for word in self.options(
                hidden=64, last_step=last_step, checkpoint_dir=directory, save_checkpoint_steps=3,
                save_checkpoint_secs=0, **NO_LIMIT, second_copy=at % 2)]
            kind = KILL_RANK if victim else KILL_SELF
            chief = ["env", f"LD_PRELOAD={SHIM}", f"LOCKSTEP_FAULTS={directory}:{kind}:{at}:{victim}:0",
                     harness.TRAIN, *options]
            others = [":", "-n", str(ranks - 1), harness.TRAIN, *options]
            return directory, harness.execute(*harness.mpirun(1), *FAULT_TOLERANT, *chief, *others)

        lost = 0
        # Most of the time of such a run Open MPI 5 waits for itself.
        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            for case, (directory, ended) in zip(cases, pool.map(end_of, cases)):
                with self.subTest(ranks=case[0], victim=case[1], at=case[2]):
                    self.check_end(ended, directory, last_step, digest)
                    lost += len(re.findall(LOST, ended.err))
        print(f"{lost} ranks lost at calls of the chief", flush=True)
        self.assertGreater(lost, len(cases) // 2, "most kills come in time: the calls are counted")

    def test_a_rank_that_stands_still_is_named_and_left_out(self):
        limit = 3  # far above what a busy machine makes ranks wait
        last_step = 2000
        digest = self.digest(last_step)
        for ranks, hung in ((2, 0), (3, 2)):
            with self.subTest(ranks=ranks, hung=hung):
                directory = self.folder / f"run-{ranks}-{hung}"
                options = self.options(hidden=64, last_step=last_step, checkpoint_dir=directory,
                                       save_checkpoint_steps=100, save_checkpoint_secs=0, hang_limit_secs=limit)
                with harness.Job(ranks, harness.TRAIN, *options, launcher_options=FAULT_TOLERANT) as job:
                    harness.wait_for(lambda: harness.newest_step(directory) >= 100, "the first saves")
                    stopped = next(pid for pid in job.ranks() if harness.rank_of(pid) == hung)
                    os.kill(stopped, signal.SIGSTOP)
                    harness.wait_for(lambda: job.process.poll() is not None or not harness.alive(stopped),
                                     "the rank that stands still to be ended")
                    ended = job.wait()
                self.assertRegex(ended.err, rf"warning: in step \d+: rank \d waited [^\n]*missing: [^\n]*rank {hung} on ", str(ended))
                self.assertRegex(ended.err, rf"warning: rank {hung} \(pid {stopped} on \S+\) has not answered for [\d.]+ s and is killed", str(ended))
                self.assertRegex(ended.err, LOST, str(ended))
                self.check_end(ended, directory, last_step, digest)

    def test_a_rank_that_is_stopped_as_the_session_is_made_is_left_out(self):
        """Waits for it would last for hours: the chief may read for long."""
        last_step = 12
        digest = self.digest(last_step)
        directory = self.folder.resolve() / "stopped-chief"
        options = [str(word) for word in self.options(hidden=64, last_step=last_step, checkpoint_dir=directory,
                                                      hang_limit_secs=1)]
        chief = ["env", f"LD_PRELOAD={SHIM}", f"LOCKSTEP_FAULTS={directory}:{STOP}:4:0:0", harness.TRAIN, *options]
        ended = harness.execute(*harness.mpirun(1), *FAULT_TOLERANT, *chief, ":", "-n", "2", harness.TRAIN, *options)
        self.assertRegex(ended.err, r"warning: rank 0 \(pid \d+ on \S+\) has not answered for [\d.]+ s and is killed: it was stopped", str(ended))
        self.assertRegex(ended.err, LOST, str(ended))
        self.check_end(ended, directory, last_step, digest)

    def test_shards_of_a_lost_rank_come_from_its_neighbour(self):
        """Each rank a node of its own, with slots that nobody else updates."""
        digest = self.digest(LAST_STEP, optimizer="adam")
        for ranks, victim in ((2, 0), (3, 2)):
            with self.subTest(ranks=ranks, victim=victim):
                directory = self.folder / f"shards-{ranks}-{victim}"
                options = self.options(hidden=64, last_step=LAST_STEP, checkpoint_dir=directory, save_checkpoint_steps=10,
                                       save_checkpoint_secs=0, **NO_LIMIT, optimizer="adam", shard_optimizer=1,
                                       second_copy=1, ranks_per_node=1)
                with harness.Job(ranks, harness.TRAIN, *options, launcher_options=FAULT_TOLERANT) as job:
                    harness.wait_for(lambda directory=directory: harness.newest_step(directory) >= 50, "the first saves")
                    os.kill(next(pid for pid in job.ranks() if harness.rank_of(pid) == victim), signal.SIGKILL)
                    ended = job.wait()
                self.check_end(ended, directory, LAST_STEP, digest)
                self.assertRegex(ended.err, LOST, str(ended))
                self.assertRegex(ended.err + ended.out, r"a second copy of parameters and slots: 0\.\d MiB a node")
                self.assertRegex(ended.err + ended.out, r"goes on after step \d+ with the values in memory", str(ended))
                self.assertNotIn("restored checkpoint", ended.err + ended.out, str(ended))


if __name__ == "__main__":
    harness.main()
