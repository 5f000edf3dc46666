"""What a person or script gets from lockstep-train: report, log file, dry run, help."""

import concurrent.futures
import json

import harness
from harness import EndToEnd

NUMBER = (int, float)
KEYS = {"global_step": int, "ranks": int, "global_batch": int, "micro_batch": int, "loss": float,
        "test_accuracy": float, "parameters_digest": str, "samples_per_second": NUMBER, "seconds": NUMBER,
        "first_step_seconds": NUMBER, "restored_from": (str, type(None)), "stop_reason": str, "stop_by": str, "stop_rank": (int, type(None)), "stop_step": int, "state": str}


class Report(EndToEnd):
    def test_report_and_log_file(self):
        directory = self.folder / "run"
        log = self.folder / "log.txt"
        report = self.train(2, checkpoint_dir=directory, log_file=log)
        for key, kind in KEYS.items():
            self.assertIsInstance(report[key], kind, key)
        self.assertEqual((report["global_step"], report["ranks"], report["global_batch"], report["micro_batch"]),
                         (40, 2, 240, 30))
        self.assertIsNone(report["restored_from"])
        self.assertEqual((report["stop_reason"], report["stop_by"], report["stop_rank"], report["stop_step"]),
                         ("reached step 40", "stop_at_step", None, 40))
        self.assertEqual(report["state"], "done")
        self.assertRegex(report["parameters_digest"], "^[0-9a-f]{32}$")
        self.assertTrue(0 < report["first_step_seconds"] < report["seconds"])
        self.assertGreater(report["samples_per_second"], 0)
        self.assertTrue(1 << 20 < report["peak_memory_bytes"] < 1 << 32, report["peak_memory_bytes"])
        # 144-32-5: two passes over the first layer's weights, three over the second's.
        self.assertEqual(report["flops_per_sample"], 2 * (2 * 144 * 32 + 3 * 32 * 5))
        for key in ("flops_per_second", "matrix_peak_flops_per_second", "share_of_matrix_peak"):
            self.assertTrue(report[key] is None or report[key] > 0, key)
        lines = log.read_text().splitlines()
        for words in ("2 ranks", "micro-batches of 30", "kernels", "saved checkpoint ckpt-00000040.h5",
                      "stopped after step 40", report["parameters_digest"]):
            self.assertTrue(any(words in line for line in lines), f"{words!r} is not in the log: {lines}")
            self.assertIn(words, report["stderr"])
        self.assertTrue(all(line[:4].isdigit() for line in lines), lines)
        self.assertNotIn("\x1b", log.read_text() + report["stderr"], "no colours where there is no terminal")
        again = self.train(1, checkpoint_dir=directory, last_step=50)
        self.assertEqual(again["restored_from"], "ckpt-00000040.h5")

    def test_a_run_that_fails_says_so_and_one_that_is_refused_leaves_the_report(self):
        path = self.folder / "r.json"
        directory = self.folder / "run"
        options = self.options(checkpoint_dir=directory, report=path, optimizer="sgd", learning_rate=1e30)
        ended = harness.run_each(2, harness.TRAIN, *options)
        self.assertEqual(ended.codes, [70, 70], str(ended))
        report = json.loads(path.read_text())
        self.assertEqual((report["state"], report["exit_code"], report["ranks"]), ("failed", 70, 2))
        self.assertIn("not finite", report["stop_reason"])
        self.assertGreater(report["stop_step"], 0)
        before = path.read_bytes()
        refused = harness.run_each(2, harness.TRAIN, *self.options(checkpoint_dir=directory, report=path, seed=77))
        self.assertNotIn(0, refused.codes, str(refused))
        self.assertEqual(path.read_bytes(), before)

    def test_runs_that_write_one_report_do_not_disturb_each_other(self):
        # As tasks of a job array do that share a configuration; names that seem to be free may be another's.
        path = self.folder / "r.json"
        for name in (".r.json.probe", ".r.json.tmp"):
            (self.folder / name).mkdir()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            runs = list(pool.map(lambda i: harness.run(1, harness.TRAIN, *self.options(checkpoint_dir=self.folder / f"run{i}",
                                                                                       report=path)), range(4)))
        for run in runs:
            self.assertEqual(run.code, 0, str(run))
        self.assertEqual(json.loads(path.read_text())["state"], "done")
        self.assertEqual(list(self.folder.glob(".r.json.tmp.*")), [])

    def test_default_micro_batch_is_the_same_on_all_ranks(self):
        for ranks in (1, 3):
            self.assertEqual(self.train(ranks, micro_batch=None, global_batch=200, last_step=2)["micro_batch"], 25)

    def test_epochs(self):
        self.assertEqual(self.train(2, last_step=None, epochs=2)["global_step"], 6)

    def test_dry_run_writes_nothing(self):
        before = harness.snapshot(self.folder)
        directory = self.folder / "run"
        ended = harness.run_each(2, harness.TRAIN, *self.options(checkpoint_dir=directory, dry_run=True,
                                                                report=self.folder / "r.json"))
        self.assertEqual(ended.codes, [0, 0], str(ended))
        self.assertEqual(harness.snapshot(self.folder), before)
        self.assertFalse(directory.exists())
        self.assertIn("nothing written", ended.err)

    def test_config_file_and_the_command_line_wins(self):
        config = self.folder / "a.cfg"
        config.write_text(f"dataset = idx\ndata_dir = {self.data}\nhidden = 32  # small\nglobal_batch = 240\n"
                          "micro_batch = 30\nlast_step = 7\n")
        report_file = self.folder / "r.json"
        ended = harness.run(2, harness.TRAIN, "--config", config, "--last_step", "9", "--report", report_file)
        self.assertEqual(ended.code, 0, str(ended))
        report = json.loads(report_file.read_text())
        self.assertEqual(report["global_step"], 9)
        self.assertEqual(report["parameters_digest"], self.train(1, last_step=9)["parameters_digest"])

    def test_help_of_every_program(self):
        for program in (harness.TRAIN, harness.EVAL, harness.INSPECT):
            with self.subTest(program=program):
                ended = harness.execute(program, "--help")  # without mpirun
                self.assertEqual(ended.code, 0, str(ended))
                self.assertIn("Exit codes", ended.out)
                self.assertEqual(ended.err, "")
                self.assertRegex(harness.execute(program, "--version").out, r"^lockstep \d+\.\d+\.\d+\n$")
        shown = harness.run(3, harness.TRAIN, "--help")
        self.assertEqual(shown.out.count("Exit codes"), 1, "only the chief speaks")


if __name__ == "__main__":
    harness.main()
