"""One rank throws, in each phase of a session: every rank leaves soon, with exit code 70, and the chief's log says where.

What the session does then is in tests/session; here are real processes, and how they end. The program that throws
comes in the place of lockstep-eval.
"""

import concurrent.futures

import harness
from harness import EndToEnd

LIMIT = 30  # seconds; it takes well under one


class Throws(EndToEnd):
    def ended(self, ranks, who, phase):
        directory = self.folder / f"{phase}-{ranks}-{who}"
        ended = harness.run_each(ranks, harness.EVAL, phase, who, directory, limit=LIMIT)
        return ended, directory

    def check(self, ranks, who, phase, where, saved):
        with self.subTest(ranks=ranks, who=who, phase=phase):
            ended, directory = self.ended(ranks, who, phase)
            self.assertEqual(ended.codes, [70] * ranks, str(ended))
            self.assertRegex(ended.err, rf"(?m)^warning: rank {who} failed at step {where}: boom in {phase}$", str(ended))
            by = f"rank {who}: " if who > 0 else ""
            self.assertEqual(ended.errors(), [f"error: {by}boom in {phase}"], "the chief prints it, once\n" + str(ended))
            called = sorted(line for line in ended.out.splitlines() if line.endswith("is called"))
            self.assertEqual(called, [f"rank {rank}: on_error is called" for rank in range(ranks)], str(ended))
            self.assertEqual(harness.checkpoints(directory), [f"ckpt-{step:08}.h5" for step in saved], str(ended))
            status = harness.read_json(directory / "status.json")
            self.assertEqual((status["state"], status["exit_code"], status["reason"]), ("failed", 70, f"{by}boom in {phase}"))

    def test_in_each_phase(self):
        """Each phase on 1 to 4 ranks, each rank in turn over the phases; the saver and init_fn run on the chief alone."""
        anywhere = (("before_run", "2 in before_run of 'troubled'", (0, 2)), ("step", "2 in the step", (0, 2)),
                    ("late step", "2 in the step", (0, 2)), ("after_run", "3 in after_run of 'troubled'", (0, 2)))
        chief = (("init_fn", "0 in init_fn", ()), ("save", "2 in after_run of 'checkpoint_saver'", (0,)),
                 ("before_save", "2 in after_run of 'checkpoint_saver'", (0,)))
        for ranks in (1, 2, 3, 4):
            for turn, (phase, where, saved) in enumerate(anywhere):
                self.check(ranks, (ranks - 1 + turn) % ranks, phase, where, saved)
            for phase, where, saved in chief:
                self.check(ranks, 0, phase, where, saved)

    def test_in_the_background(self):
        """What happens beside the steps is heard of some steps later, so what is saved by then differs."""
        for ranks in (1, 2, 3, 4):
            for who, phase, where in ((ranks - 1, "thread", "thread 'looper'"),
                                      (0, "after_save", "before_run of 'checkpoint_saver'")):
                with self.subTest(ranks=ranks, who=who, phase=phase):
                    ended, directory = self.ended(ranks, who, phase)
                    self.assertEqual(ended.codes, [70] * ranks, str(ended))
                    self.assertRegex(ended.err, rf"(?m)^warning: rank {who} failed at step (\d+) in {where}: boom in {phase}$")
                    self.assertEqual(len(ended.errors()), 1, str(ended))
                    self.assertNotIn(" end is called", ended.out)
                    self.assertEqual(ended.out.count("on_error is called"), ranks, str(ended))
                    self.assertTrue(all(name.endswith(("0.h5", "2.h5", "4.h5", "6.h5", "8.h5"))
                                        for name in harness.checkpoints(directory)), "no final save of an odd step")

    def test_a_chief_that_takes_its_time(self):
        """A rank that knows that all know of its error waits for the others, however long they take."""
        ended, _ = self.ended(3, 2, "slow chief")
        self.assertEqual(ended.codes, [70] * 3, str(ended))
        self.assertEqual(ended.errors(), ["error: rank 2: boom in slow chief"], str(ended))

    def test_nobody_throws(self):
        for ranks in (1, 3):
            ended, directory = self.ended(ranks, 0, "none")
            self.assertEqual(ended.codes, [0] * ranks, str(ended))
            self.assertEqual(ended.errors(), [])
            self.assertEqual(ended.out.count(" end is called"), ranks, str(ended))
            self.assertEqual(harness.newest_step(directory), 4)

    def test_what_nobody_has_agreed_on(self):
        """The others wait for the rank that failed, in their next step or to take down the session: it ends the job. With
        what codes they are ended is not theirs to choose."""
        for ranks, who, phase, saved in ((1, 0, "between steps", 2), (2, 1, "between steps", 2), (3, 0, "between steps", 2),
                                         (2, 0, "after the session", 4)):
            with self.subTest(ranks=ranks, who=who, phase=phase):
                directory = self.folder / f"{phase}-{ranks}"
                ended = harness.run(ranks, harness.EVAL, phase, who, directory, limit=LIMIT)
                self.assertEqual(ended.code, 70, str(ended))
                self.assertRegex(ended.err, rf"(?m)^error: (rank {who}: )?boom in {phase}$", str(ended))
                self.assertEqual(harness.newest_step(directory), saved, str(ended))

    def test_a_rank_that_stands_still_as_the_program_ends(self):
        for ranks, who in ((2, 0), (3, 2)):
            with self.subTest(ranks=ranks, who=who):
                ended = harness.run(ranks, harness.EVAL, "standing still", who, self.folder / f"still-{ranks}", limit=LIMIT)
                self.assertEqual(ended.code, 75, str(ended))
                self.assertRegex(ended.err, r"(?m)^error: rank \d waited [\d.]+ s \(the limit\) [^\n]*missing: ", str(ended))

    def test_a_rank_that_stands_still_as_the_session_is_made(self):
        directory = self.folder / "still"
        ended = harness.run(2, harness.EVAL, "standing still at the start", 1, directory, limit=LIMIT)
        self.assertEqual(ended.code, 75, str(ended))
        # Not "failed", with which scripts would not launch again where the launcher changes the exit code.
        self.assertEqual(harness.read_json(directory / "status.json")["state"], "running", str(ended))

    def test_a_rank_that_was_stopped_as_the_session_is_made(self):
        """Waits are patient then: the chief may read for long. That it was stopped is seen all the same."""
        cases = ((3, 1, "stopped at the start"), (2, 0, "stopped in init_fn"))

        def end_of(case):
            ranks, who, phase = case
            return harness.run(ranks, harness.EVAL, phase, who, self.folder / f"{phase}-{ranks}", limit=LIMIT)

        with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:  # they sleep most of the time
            for (ranks, who, phase), ended in zip(cases, pool.map(end_of, cases)):
                with self.subTest(ranks=ranks, who=who, phase=phase):
                    self.assertEqual(ended.code, 75, str(ended))
                    self.assertRegex(ended.err, rf"(?m)^error: rank {who} \(pid \d+ on \S+\) has been stopped \(SIGSTOP\) for [\d.]+ s")
        # Not "failed", with which scripts would not launch again where the launcher changes the exit code.
        status = harness.read_json(self.folder / "stopped at the start-3" / "status.json")
        self.assertEqual(status["state"], "running")


if __name__ == "__main__":
    harness.main()
