"""Kills one rank of real jobs at the n-th call that changes their folder, and lets the next job go on.

    mpirun_kills.py TRAIN EVAL INSPECT SHIM [--size full]

Each folder sees one job after the other, some of which write shards, none of which would end by itself: so each is killed at its call, on however
fast a machine. The call is the chief's; at two and four ranks every other victim is another rank.
"""

import concurrent.futures
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "apps"))
import harness  # noqa: E402
from harness import EndToEnd  # noqa: E402

FULL = sys.argv[5:] == ["--size", "full"]
SHIM = sys.argv[4]
del sys.argv[4:]

CALLS = 130  # an init, a restore and the first saves
SMALL, LARGE = 1000, 1 << 30  # bytes: at two ranks and more every rank writes a shard, or the chief one file
KILL_SELF, KILL_RANK = 1, 7  # Faults::kill, Faults::kill_rank of shim.hpp


def steps_after(mark, text):
    return [int(line.split("(step ")[1].split(",")[0].rstrip(")")) for line in text.splitlines()
            if line.startswith(mark) and "(step " in line]


class KillsUnderMpirun(EndToEnd):
    def job(self, ranks, directory, kind, at, victim, shard_bytes):
        options = [str(word) for word in self.options(hidden=16, checkpoint_dir=directory, save_checkpoint_steps=1,
                                                      last_step=1000000, max_to_keep=2, shard_bytes=shard_bytes)]
        chief = ["env", f"LD_PRELOAD={SHIM}", f"LOCKSTEP_FAULTS={directory}:{kind}:{at}:{victim}:0",
                 harness.TRAIN, *options]
        others = [":", "-n", str(ranks - 1), harness.TRAIN, *options] if ranks > 1 else []
        return harness.execute(*harness.mpirun(1), *chief, *others)

    def chain(self, ranks, count):
        """`count` kills in one folder. Returns what is wrong."""
        directory = self.folder.resolve() / f"run-{ranks}"
        problems = []
        acknowledged = -1
        for i in range(count):
            # All calls in turn, those of an init and a restore among those of saves.
            at = 1 + (i * 37 + ranks * 11) % CALLS
            others = ranks > 1 and i % 2 == 1
            victim = 1 + i // 2 % (ranks - 1) if others else 0
            # Two jobs in shards, two in one file: each finds what either left, and loses the chief and another rank.
            in_shards = i // 2 % 2 == 1
            ended = self.job(ranks, directory, KILL_RANK if others else KILL_SELF, at, victim,
                             SMALL if in_shards else LARGE)
            text = ended.out + "\n" + ended.err
            wrong = []
            if ended.code == 0:
                wrong.append("it ended well")
            restored = steps_after("restored checkpoint", text)
            if restored and restored[0] < acknowledged:
                wrong.append(f"it went on from {restored[0]} although {acknowledged} was acknowledged")
            if acknowledged >= 0 and steps_after("saved checkpoint", text) and not restored:
                wrong.append("it began anew")
            acknowledged = max([acknowledged, *steps_after("saved checkpoint", text)])
            newest = harness.newest_step(directory)
            if newest < acknowledged:
                wrong.append(f"{acknowledged} was acknowledged, the newest that is there is {newest}")
            if harness.checkpoints(directory):
                verified = harness.execute(harness.INSPECT, "--verify", directory)
                if verified.code != 0:
                    wrong.append(f"a checkpoint does not verify: {verified}")
            if wrong:
                how = "in shards" if in_shards else "in one file"
                problems.append(f"{ranks} ranks, {how}, call {at}, rank {victim} killed: {'; '.join(wrong)}\n{ended}")
        return directory, acknowledged, problems

    def unnamed_shards(self, directory):
        named = []
        for path in directory.glob("ckpt-*.h5*"):
            shown = harness.execute(harness.INSPECT, "--json", path)
            if shown.code == 0:
                named += json.loads(shown.out)[0]["shards"]
        return {path.name for path in directory.glob("ckpt.*.shard*.h5")} - set(named)

    def test_an_acknowledged_save_outlives_the_kill_of_any_rank(self):
        count = 100 if FULL else 20
        with concurrent.futures.ThreadPoolExecutor() as pool:
            chains = list(pool.map(lambda ranks: self.chain(ranks, count), (1, 2, 4)))
        problems = [problem for _, _, some in chains for problem in some]
        for directory, acknowledged, _ in chains:
            self.assertGreater(acknowledged, 0, "no save was acknowledged: nothing was shown")
            # The next job ends where a run that nothing disturbed ends.
            last = {"hidden": 16, "last_step": harness.newest_step(directory) + 3}
            report = self.train(2, **last, checkpoint_dir=directory)
            if report["parameters_digest"] != self.train(2, **last)["parameters_digest"]:
                problems.append(f"{directory.name} comes to another result")
            if left := self.unnamed_shards(directory):
                problems.append(f"{directory.name} has shards that no checkpoint names: {left}")
        print(f"\n{3 * count} cases, {len(problems)} problems", flush=True)
        self.assertEqual(problems, [])


if __name__ == "__main__":
    harness.main()
