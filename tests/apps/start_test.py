"""What the programs say and refuse before they begin: where ranks run, and processes that do not know of each other."""

import os

import harness
from harness import EndToEnd

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3"}


class Start(EndToEnd):
    def started(self, *launcher, program=None, threads=1, **variables):
        """How the program ends when it is started by the words of `launcher`, with these variables set."""
        words = ["env", *(f"{name}={value}" for name, value in variables.items()), *launcher]
        return harness.execute(*words, program or harness.TRAIN,
                               *self.options(last_step=2, threads=threads))

    def assert_refused(self, ended):
        self.assertEqual(ended.code, 78, str(ended))
        self.assertEqual(len(ended.errors()), 1, str(ended))
        for words in ("one of 3 processes that do not know of each other", "srun --mpi=pmix", "mpirun"):
            self.assertIn(words, ended.errors()[0])

    def test_tasks_that_srun_started_without_telling_mpi(self):
        self.assert_refused(self.started(**STEP))
        silent = self.started(**{**STEP, "SLURM_PROCID": "1"})
        self.assertEqual((silent.code, silent.err), (78, ""), "one of them speaks")
        evaluated = harness.execute("env", *(f"{name}={value}" for name, value in STEP.items()), harness.EVAL,
                                    "--checkpoint_dir", self.folder, "--dataset", "idx", "--data_dir", self.data)
        self.assert_refused(evaluated)

    def test_singletons_that_mpi_lets_start(self):
        self.assert_refused(self.started(PMI_SIZE="3", PMI_RANK="0"))

    def test_one_rank_may_run_inside_a_larger_allocation(self):
        ended = self.started(*harness.mpirun(1), **STEP, SLURM_NTASKS="3")
        self.assertEqual(ended.code, 0, str(ended))
        self.assertIn("Slurm has given 3 tasks to this job, and 1 rank runs", ended.err)

    def place(self, *cores, threads=1):
        """The lines about placement of a run whose rank N may use the cores of the Nth word."""
        choose = 'set -- "$@"; case $OMPI_COMM_WORLD_RANK in ' + "".join(
            f"{rank}) taskset -cp {word} $$ > /dev/null ;; " for rank, word in enumerate(cores)) + 'esac; exec "$@"'
        ended = self.started(*harness.mpirun(len(cores)), "sh", "-c", choose, "sh", threads=threads)
        self.assertEqual(ended.code, 0, str(ended))
        return [line.replace("warning: ", "") for line in ended.err.splitlines() if "node " in line and ": r" in line
                or " share " in line or "more threads than cores" in line]

    def test_where_ranks_run(self):
        cores = sorted(os.sched_getaffinity(0))
        first = cores[0]
        lines = self.place(first, first, first)
        self.assertIn(f"ranks 0-2 on core {first}", lines[0])
        self.assertIn("3 ranks share 1 core,", lines[1])
        self.assertIn("rank 0 has more threads than cores", self.place(first, threads=2)[1])
        if len(cores) < 2:
            self.skipTest("the rest needs two cores")
        second = cores[1]
        lines = self.place(first, second)
        self.assertIn(f"rank 0 on core {first}; rank 1 on core {second}", lines[0])
        self.assertEqual(len(lines), 1, "nothing to complain about")
        self.assertIn("ranks 0, 1 have more threads than cores", self.place(first, second, threads=2)[1])
        self.assertEqual(len(self.place(f"{first},{second}", threads=2)), 1, "nothing to complain about")
        both = f"{first},{second}"
        self.assertIn("4 threads of 2 ranks share 2 cores", self.place(both, both, threads=2)[1])
        lines = self.place(f"{first},{second}", f"{first},{second}")
        self.assertIn("not bound", lines[1])
        lines = self.place(f"{first},{second}", second)
        self.assertIn("not bound", lines[1])
        if len(cores) >= 3:
            lines = self.place(first, first, f"{second},{cores[2]}")
            self.assertIn("only 2 of 3 can have one of their own", lines[1])


if __name__ == "__main__":
    harness.main()
