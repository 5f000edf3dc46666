"""lockstep-scaling: real runs of lockstep-train, studies that go on, and reports. The second program is that one."""

import csv
import json
import os
import shutil

import harness
from harness import EndToEnd

# In place of mpirun and the training: notes what it was asked for and writes the report of a run.
FAKE = """#!/usr/bin/python3
import json, pathlib, sys
words = sys.argv[1:]
ranks = int(words[words.index("-np" if "-np" in words else "-n") + 1])
given = {name: words[words.index("--" + name) + 1] for name in ("report", "global_batch", "last_step")}
with open(pathlib.Path(__file__).with_name("asked"), "a") as asked:
    print(ranks, given["global_batch"], file=asked)
if pathlib.Path(__file__).with_name("fails").exists():
    sys.exit(int(pathlib.Path(__file__).with_name("fails").read_text()))
batch = int(given["global_batch"])
pathlib.Path(given["report"]).write_text(json.dumps({
    "ranks": ranks, "nodes": 1, "parameters": 1000000, "gradient_dtype": "f32", "global_batch": batch, "micro_batch": 1, "global_step": int(given["last_step"]),
    "parameters_digest": given["global_batch"], "version": "fake", "samples_per_second": 1000.0 * ranks,
    "parts": {"steps": 1, "wait_chief": 0.0, "seconds": {"compute": 0.001}}}))
"""


class Scaling(EndToEnd):
    def setUp(self):
        super().setUp()
        self.fake = self.folder / "launcher"
        self.fake.write_text(FAKE)
        self.fake.chmod(0o755)
        self.study = self.folder / "study"

    def scaling(self, *words):
        return harness.execute(harness.EVAL, *words)

    def run_fake(self, *more):
        return self.scaling("run", "--out", self.study, "--ranks", "4,1,2", "--mode", "both", "--global_batch", 64,
                            "--repeats", 3, "--launcher", self.fake, *more)

    def asked(self):
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def samples(self):
        return json.loads((self.study / "samples.json").read_text())

    def test_a_real_study(self):
        words = ["run", "--out", self.study, "--ranks", "1,2", "--global_batch", 120, "--repeats", 2, "--steps", 6,
                 "--launcher", "mpirun --oversubscribe --bind-to none", "--train", harness.TRAIN, "--"]
        options = self.options(global_batch=None, last_step=None)
        ended = self.scaling(*words, *options)
        self.assertEqual(ended.code, 0, ended)
        samples = self.samples()
        self.assertEqual([(s["mode"], s["ranks"], s["repeat"]) for s in samples],
                         [("strong", ranks, repeat) for ranks in (1, 2) for repeat in (0, 1)])
        self.assertEqual(len({s["digest"] for s in samples}), 1)
        for sample in samples:
            parts = sample["parts"]
            self.assertGreater(parts["compute"], 0)
            # The parts are means over other steps than the whole: two fewer, so here only roughly the same.
            self.assertGreaterEqual(sum(parts.values()), sample["step_seconds"] * 0.999)
            self.assertGreater(sample["step_seconds"], 0)
            self.assertIn("CPU", sample["machine"])
            self.assertEqual((sample["global_batch"], sample["steps"]), (120, 6))
        with open(self.study / "samples.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["digest"] for row in rows], [s["digest"] for s in samples])
        ended = self.scaling("report", self.study)
        self.assertEqual(ended.code, 0, ended)
        self.assertIn("All runs of a batch size ended with the same bits.", ended.out)
        page = (self.study / "report" / "report.html").read_text()
        self.assertNotIn("src=", page)
        if shutil.which("gnuplot"):
            for plot in ("speed_up", "efficiency", "parts"):
                self.assertTrue((self.study / "report" / f"{plot}.png").read_bytes().startswith(b"\x89PNG"))
                self.assertIn("</svg>", (self.study / "report" / f"{plot}.svg").read_text())
            self.assertEqual(page.count("<svg"), 3)

    def test_repeats_take_turns(self):
        self.assertEqual(self.run_fake().code, 0)
        asked = self.asked()
        self.assertEqual(len(asked), 18)
        self.assertEqual(set(asked[:6]), {"1 64", "2 64", "4 64", "2 128", "4 256"})
        self.assertEqual(asked[:6].count("1 64"), 2)  # of strong and of weak scaling
        self.assertEqual(sorted(asked[6:12]), sorted(asked[:6]))
        self.assertNotEqual(asked[6], asked[0])

    def test_goes_on_where_it_was(self):
        self.assertEqual(self.run_fake().code, 0)
        before = self.samples()
        for name in ("weak-2-1", "strong-4-2"):
            (self.study / "runs" / f"{name}.sample.json").unlink()
        (self.folder / "asked").unlink()
        self.assertEqual(self.run_fake().code, 0)
        self.assertEqual(sorted(self.asked()), ["2 128", "4 64"])
        same = ("mode", "ranks", "repeat", "step_seconds", "digest")
        self.assertEqual([[s[key] for key in same] for s in self.samples()], [[s[key] for key in same] for s in before])
        # Nothing left to do.
        (self.folder / "asked").unlink()
        self.assertEqual(self.run_fake().code, 0)
        self.assertEqual(self.asked(), [])

    def test_a_run_that_fails_ends_the_study_until_it_is_called_again(self):
        for code, expected in ((1, 70), (64, 64), (65, 65), (137, 70)):
            (self.folder / "fails").write_text(str(code))
            ended = self.run_fake()
            self.assertEqual(ended.code, expected, ended)
            self.assertIn(f"strong-1-0 ended with exit code {code}; see ", ended.err)
            self.assertIn("run again to go on", ended.err)
        self.assertEqual(len(self.asked()), 4)
        (self.folder / "fails").unlink()
        self.assertEqual(self.run_fake().code, 0)
        self.assertEqual(len(self.asked()), 22)

    def test_a_folder_holds_one_study(self):
        self.assertEqual(self.run_fake().code, 0)
        ended = self.run_fake("--steps", 7)
        self.assertEqual(ended.code, 78, ended)
        self.assertIn("holds a study of something else", ended.err)

    def test_a_damaged_probe_is_refused(self):
        self.assertEqual(self.run_fake().code, 0)
        (self.study / "probe.json").write_text("{")
        ended = self.scaling("report", self.study)
        self.assertEqual(ended.code, 65, ended)
        self.assertIn("probe", ended.err)

    def test_two_studies_side_by_side(self):
        self.assertEqual(self.run_fake().code, 0)
        other = self.folder / "other"
        shutil.copytree(self.study, other)
        ended = self.scaling("report", self.study, other, "--out", self.folder / "both")
        self.assertEqual(ended.code, 0, ended)
        self.assertIn("## other beside study, weak scaling", ended.out)
        self.assertIn("| 4 | 16.00 | 16.00 | 1.000 [1.000, 1.000] |", ended.out)
        self.assertEqual((self.folder / "both" / "report.md").read_text() in ended.out, True)

    def test_without_gnuplot_there_are_tables(self):
        self.assertEqual(self.run_fake().code, 0)
        empty = self.folder / "bin"
        empty.mkdir()
        (empty / "env").symlink_to(shutil.which("env"))
        path = os.environ["PATH"]
        try:
            os.environ["PATH"] = str(empty)
            ended = self.scaling("report", self.study)
        finally:
            os.environ["PATH"] = path
        self.assertEqual(ended.code, 0, ended)
        self.assertIn("warning: there is no plot efficiency", ended.err)
        self.assertIn("<table>", (self.study / "report" / "report.html").read_text())

    def test_job_array(self):
        """The script that is printed, run as Slurm would: each job makes one sample."""
        srun = self.folder / "srun"
        srun.write_text(FAKE)
        srun.chmod(0o755)
        words = ["run", "--out", self.study, "--ranks", "1,2", "--global_batch", 64, "--repeats", 2, "--launcher", srun,
                 "--", "--data_dir", "it's"]
        printed = harness.execute(harness.EVAL, *words[:1], "--job_array", *words[1:])
        self.assertEqual(printed.code, 0, printed)
        self.assertFalse(self.study.exists())
        self.assertIn("#SBATCH --array=0-3%1\n", printed.out)
        self.assertIn("#SBATCH --ntasks=2\n", printed.out)
        script = self.folder / "array.sbatch"
        script.write_text(printed.out)
        for task in (2, 0, 3, 1):
            ended = harness.execute("env", f"SLURM_ARRAY_TASK_ID={task}", "bash", script)
            self.assertEqual(ended.code, 0, ended)
        self.assertEqual(self.asked(), ["2 64", "1 64", "1 64", "2 64"])
        # All is there: the study only collects.
        self.assertEqual(self.scaling(*words).code, 0)
        self.assertEqual(len(self.asked()), 4)
        self.assertEqual(len(self.samples()), 4)
        self.assertIn("'", json.loads((self.study / "study.json").read_text())["train"][-1])
        self.assertEqual(self.scaling(*words[:1], "--only", 4, *words[1:]).code, 64)

    def test_probe(self):
        place = self.folder / "place"
        ended = self.scaling("probe", "--ranks", 2, "--directory", place, "--out", self.study,
                             "--launcher", "mpirun --oversubscribe --bind-to none")
        self.assertEqual(ended.code, 0, ended)
        self.assertIn("2 ranks on 1 node", ended.out)
        ranks = harness.read_json(self.study / "probe.json")
        self.assertEqual([(rank["rank"], rank["node"]) for rank in ranks], [(0, 0), (1, 0)])
        for rank in ranks:
            for figure in ("matrix products", "memory", "latency inside a node", "bandwidth inside a node"):
                self.assertGreater(rank[figure], 0)
                self.assertIn(figure, ended.out)
            self.assertEqual(rank["latency between nodes"], 0)
        # By one rank of the node, and nothing stays.
        self.assertEqual([rank["file written and synced"] > 0 for rank in ranks], [True, False])
        self.assertEqual(list(place.iterdir()), [])
        (self.folder / "file").write_text("")
        ended = self.scaling("probe", "--ranks", 2, "--directory", self.folder / "file", "--out", self.study,
                             "--launcher", "mpirun --oversubscribe --bind-to none")
        self.assertEqual(ended.code, 70, ended)
        self.assertIn("Not a directory", ended.err)

    def test_what_makes_no_sense_is_refused(self):
        good = ["--out", self.study, "--ranks", "1", "--global_batch", 8]
        for words, what in ((["measure"], "no command"), (["run"], "--out"), (["run", "--out", "x"], "--ranks"),
                            (["run", *good, "--ranks", "2"], "ranks"), (["run", *good[:2], "--ranks", "1,x", "--global_batch", 8], "'x'"),
                            (["run", *good[:2], "--ranks", "0", "--global_batch", 8], "'0'"),
                            (["run", *good[:4]], "--global_batch 0"), (["run", *good, "--mode", "both ways"], "--mode"),
                            (["run", *good, "--repeats", 0], "--repeats"), (["run", *good, "--steps", 1], "--steps"),
                            (["run", *good, "--launcher", " "], "--launcher"), (["run", *good, "--rank", 2], "ranks"),
                            (["report"], "folder"), (["probe"], "--ranks"), (["probe", "--ranks", "1,2"], "one number")):
            with self.subTest(words=words):
                ended = self.scaling(*words)
                self.assertEqual(ended.code, 64, ended)
                self.assertIn(what, ended.err)
        self.assertFalse(self.study.exists())
        self.assertEqual(self.scaling("report", self.folder / "nowhere").code, 74)


if __name__ == "__main__":
    harness.main()
