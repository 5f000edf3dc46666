"""Every bad input: one clear message, the documented exit code on every rank, soon; nothing written or lost."""

import os
import pathlib
import shutil
import signal

import harness
from harness import EndToEnd, Job

SOON = 1.0  # seconds beyond the start of MPI
IN_USE = 5.0  # a directory in use is given time to become free
RANKS = (1, 3)


class BadInput(EndToEnd):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.start = {ranks: min(harness.run_each(ranks, harness.TRAIN, "--version").seconds for _ in range(2))
                     for ranks in RANKS}
        # mpirun itself takes two seconds more to end when a program fails, whatever the program.
        script = f'"{harness.TRAIN}" --version; exit 64'
        cls.start_plain = min(harness.run(1, "sh", "-c", script).seconds for _ in range(2))

    def check(self, options, code, words, watched=None, within=SOON, without=(), ranks=RANKS, plain=False):
        """Runs at each number of ranks; `words` are regular expressions that the one message must hold. `plain`:
        once as a user starts it, too, where mpirun hands the exit code on."""
        watched = watched or self.folder
        for count, plainly in [(count, False) for count in ranks] + [(1, True)] * plain:
            with self.subTest(ranks=count, plain=plainly):
                limit = (self.start_plain if plainly else self.start[count]) + within
                before = harness.snapshot(watched, without)
                folders = {path for path in watched.rglob("*") if path.is_dir()}
                for _ in range(3):
                    launch = harness.run if plainly else harness.run_each
                    ended = launch(count, harness.TRAIN, *options)
                    if ended.seconds < limit:
                        break
                    # Another job may have the machine: look again, beside what a start takes now.
                    limit = max(limit, launch(count, harness.TRAIN, "--version").seconds + within)
                self.assertEqual(ended.code, code, str(ended))
                if not plainly:
                    self.assertEqual(ended.codes, [code] * count, str(ended))
                self.assertEqual(len(ended.errors()), 1, f"one message: {ended}")
                message = ended.err[ended.err.index("error: "):]
                for word in words:
                    self.assertRegex(message, word)
                self.assertNotRegex(ended.err, r"(?i)terminate called|segmentation|exception|abort\(\)")
                self.assertLess(ended.seconds, limit, str(ended))
                self.assertEqual(harness.snapshot(watched, without), before, "it wrote or lost something")
                self.assertEqual({path for path in watched.rglob("*") if path.is_dir()}, folders)

    # ---- the command line

    def test_options(self):
        run = str(self.folder / "run")
        for changes, words in [
                ({"last_step": -5}, ["--last_step -5", "at least 0"]),
                ({"lst_step": 5}, ["unknown option 'lst_step'", "did you mean --last_step"]),
                ({"qqqqqqqqqq": 5}, ["unknown option 'qqqqqqqqqq'", "--help"]),
                ({"last_step": "many"}, ["last_step", "many"]),
                ({"last_step": None}, ["--last_step N or --epochs E"]),
                ({"epochs": 3}, ["--last_step and --epochs"]),
                ({"global_batch": 100, "micro_batch": 30}, ["global_batch 100", "micro_batch 30", "25 or 50"]),
                ({"global_batch": 0}, ["--global_batch 0", "1 to"]),
                ({"hidden": "32,x"}, ["--hidden '32,x'", "for example"]),
                ({"learning_rate": "nan"}, ["--learning_rate"]),
                ({"save_checkpoint_secs": -1}, ["--save_checkpoint_secs -1"]),
                ({"optimizer": "sdg"}, ["'sdg'", "momentum"]),
                ({"weight_decay": -1}, ["--weight_decay -1"]),
                ({"clip_norm": "inf"}, ["--clip_norm inf"]),
                ({"schedule": "linear"}, ["--schedule 'linear'", "cosine"]),
                ({"schedule": "step"}, ["--schedule step", "--schedule_steps"]),
                ({"decay_factor": 0}, ["--decay_factor 0"]),
                ({"early_stopping_patience": -1}, ["--early_stopping_patience -1", "at least 0"]),
                ({"early_stopping_patience": 2, "early_stopping_min_delta": -0.5},
                 ["--early_stopping_min_delta -0\\.5", "at least 0"]),
                ({"early_stopping_patience": 2, "early_stopping_min_delta": "inf"}, ["--early_stopping_min_delta inf"]),
                ({"profile_steps": -2}, ["--profile_steps -2", "at least 0"]),
                ({"profile_secs": -1}, ["--profile_secs -1"]),
                ({"profile_secs": "nan"}, ["--profile_secs nan"]),
                ({"profile_steps": 2, "checkpoint_dir": None}, ["--profile_steps", "--profile_dir"]),
                ({"checkpoint_basename": "../a"}, ["--checkpoint_basename"]),
                ({"fresh": True, "restore_from": "ckpt-00000001.h5"}, ["--fresh and --restore_from"]),
                ({"kernels": "mkl"}, ["--kernels 'mkl'"]),
                ({"threads": 0}, ["--threads 0", "1 to"]),
                ({"model": "resnet", "depth": 21}, ["--depth 21", "6 n \\+ 2"]),
                ({"model": "resnet", "depth": 7}, ["--depth 7", "6 n \\+ 2"]),
                ({"model": "resnet", "depth": -4}, ["--depth -4"]),
                ({"model": "lenet"}, ["kernel of 5 is larger", "4, 4, 32"]),
                ({"hidden": "0"}, ["--hidden '0'"]),
                ({"hidden": "32,,32"}, ["--hidden '32,,32'"]),
                ({"model": "gpt"}, ["--model gpt", "--dataset idx"]),
                ({"model": "unet"}, ["--model unet", "--dataset idx", "npy"]),
                ({"model": "lenet", "dropout": 1}, ["--dropout 1 ", "below 1"]),
                ({"keep_best": "loss"}, ["keep_best 'loss'", "METRIC:K"]),
                ({"init_from": "a.h5"}, ["--init_from and --init_tensors"]),
                ({"report_parts": 1, "profile_steps": 5, "profile_dir": "x"}, ["--report_parts", "one of them"]),
                ({"bucket_bytes": -1}, ["--bucket_bytes -1", "0 to"]),
                ({"shard_optimizer": 1, "reduction": "mpi"}, ["--shard_optimizer 1", "canonical"]),
                ({"gradient_dtype": "bf16", "reduction": "mpi"}, ["--gradient_dtype bf16", "canonical"]),
                ({"precision": "fp16"}, ["--precision 'fp16'", "f32, bf16"]),
                ({"gradient_dtype": "f16"}, ["--gradient_dtype 'f16'", "f32, bf16"]),
        ]:
            with self.subTest(**changes):
                self.check(self.options(**{"checkpoint_dir": run} | changes), 64, words,
                           ranks=RANKS if changes.get("last_step") == -5 else (3,),
                           plain=changes.get("last_step") == -5)

    def test_networks_that_cannot_be(self):
        """Refused before anything of their size is asked of the machine."""
        text = self.folder / "a.txt"
        text.write_bytes(b"abc " * 100)
        empty = self.folder / "empty.txt"
        empty.write_bytes(b"")
        fields = harness.write_fields(self.folder / "fields", 4, 16)
        gpt = {"dataset": "text", "data_dir": text, "model": "gpt", "context": 16, "layers": 1, "width": 8, "heads": 2,
               "hidden": None, "global_batch": 4, "micro_batch": 2}
        unet = {"dataset": "npy", "data_dir": fields, "model": "unet", "hidden": None, "global_batch": 4, "micro_batch": 2}
        run = str(self.folder / "run")
        for changes, code, words in [
                (gpt | {"layers": 0}, 64, ["--layers 0", "1 to"]),
                (gpt | {"layers": 10**6}, 64, ["--layers 1000000", "1 to"]),
                (gpt | {"heads": 3}, 64, ["--width 8", "--heads 3", "divide"]),
                (gpt | {"heads": 0}, 64, ["--heads 0"]),
                (gpt | {"width": -8}, 64, ["--width -8"]),
                (gpt | {"context": 0}, 64, ["--context 0"]),
                (gpt | {"context": 2**40}, 64, ["--context 1099511627776"]),
                (gpt | {"context": 400}, 65, ["360 bytes", "context of 400"]),
                (gpt | {"data_dir": empty}, 65, ["0 bytes", "empty.txt"]),
                (gpt | {"layers": 1000, "width": 2**18, "heads": 2}, 64, ["GiB", "smaller model", "parameters"]),
                (gpt | {"width": 2**20}, 64, ["at most 1099511627776 elements"]),
                ({"hidden": "1000000,1000000"}, 64, ["GiB", "smaller model"]),
                ({"global_batch": 2**30, "micro_batch": 2**30}, 64, ["GiB", "smaller .*batch"]),
                ({"global_batch": 2**30, "micro_batch": 1}, 64, ["GiB", "smaller .*batch"]),
                (unet | {"levels": 12}, 64, ["12 levels", "multiples of 2048"]),
                (unet | {"levels": 0}, 64, ["--levels 0"]),
                (unet | {"channels": 2**16}, 64, ["GiB"]),
        ]:
            with self.subTest(**changes):
                options = self.options(**{"checkpoint_dir": run} | changes)
                if changes.get("hidden"):
                    self.check(options, code, words, ranks=(3,))
                    continue
                ended = harness.execute(harness.TRAIN, *options)
                self.assertEqual(ended.code, code, str(ended))
                self.assertEqual(len(ended.errors()), 1, str(ended))
                for word in words:
                    self.assertRegex(ended.err[ended.err.index("error: "):], word)
                self.assertFalse(pathlib.Path(run).exists())

    def test_options_of_a_wait(self):
        for options, words in [
                (("--wait_for_step", -1), ["--wait_for_step -1", "at least 0"]),
                (("--wait_for_step", "soon"), ["wait_for_step", "soon"]),
                (("--wait_for_step", 5, "--checkpoint", "ckpt-00000001.h5"), ["--checkpoint and --wait_for_step"]),
                (("--wait_for_step", 5, "--max_wait_secs", -1), ["--max_wait_secs -1", "at least 0"]),
        ]:
            with self.subTest(options=options):
                ended = harness.execute(harness.EVAL, "--dataset", "idx", "--data_dir", self.data, "--checkpoint_dir",
                                        self.folder, *options)
                self.assertEqual(ended.code, 64, str(ended))
                self.assertEqual(len(ended.errors()), 1, str(ended))
                for word in words:
                    self.assertRegex(ended.err[ended.err.index("error: "):], word)
        # Nobody saves there: the job ends at the limit, and the chief says so for all.
        ended = harness.run_each(3, harness.EVAL, "--dataset", "idx", "--data_dir", self.data, "--checkpoint_dir",
                            self.folder, "--wait_for_step", 5, "--max_wait_secs", 0.2)
        self.assertEqual(ended.codes, [75] * 3, str(ended))
        self.assertEqual(len(ended.errors()), 1, str(ended))
        self.assertRegex(ended.err, f"error: .*step 5 .*{self.folder}.*")
        self.assertEqual(harness.snapshot(self.folder), {})

    def test_options_of_later_versions_are_refused(self):
        for name, value in [("dataset", "hdf5")]:
            with self.subTest(option=name):
                # Without mpirun: what is refused is refused before any rank counts.
                ended = harness.execute(harness.TRAIN, *self.options(**{name: value},
                                                                    checkpoint_dir=self.folder / "run"))
                self.assertEqual(ended.code, 64, str(ended))
                self.assertEqual(len(ended.errors()), 1, str(ended))
                self.assertIn(name, ended.err)
                self.assertIn("not in this version", ended.err)
        self.assertEqual(harness.snapshot(self.folder), {})

    def test_configuration_files(self):
        config = self.folder / "a.cfg"
        config.write_text("last_step = 5\nlearning_rte = 0.1\n")
        self.check(["--config", str(config)], 64, ["learning_rte", "a\\.cfg", "did you mean --learning_rate"])
        config.write_text("last_step = 5\nthis is no line\n")
        self.check(["--config", str(config)], 64, ["a\\.cfg"], ranks=(3,))
        self.check(["--config", str(self.folder / "none.cfg")], 64, ["none\\.cfg"], ranks=(3,))

    # ---- data

    def broken_data(self, change):
        folder = self.folder / "data"
        shutil.copytree(self.data, folder)
        change(folder)
        return folder

    def check_data(self, change, words, ranks=RANKS, plain=False):
        data = self.broken_data(change)
        self.check(self.options(data_dir=data, checkpoint_dir=self.folder / "run"), 65, words, ranks=ranks,
                   plain=plain)
        shutil.rmtree(data)

    def test_missing_data(self):
        self.check_data(lambda data: (data / "train-images-idx3-ubyte.gz").unlink(), ["train-images-idx3-ubyte"],
                        plain=True)
        self.check_data(lambda data: (data / "t10k-labels-idx1-ubyte").unlink(), ["t10k-labels-idx1-ubyte"], (3,))
        self.check(self.options(data_dir=self.folder / "nowhere", checkpoint_dir=self.folder / "run"), 65,
                   ["nowhere"], ranks=(3,))

    def test_truncated_data(self):
        def cut(name, share):
            def change(data):
                content = (data / name).read_bytes()
                (data / name).write_bytes(content[:int(len(content) * share)])
            return change
        self.check_data(cut("train-images-idx3-ubyte.gz", 0.6), ["train-images-idx3-ubyte.gz"])
        self.check_data(cut("train-labels-idx1-ubyte.gz", 0.0), ["train-labels-idx1-ubyte.gz"], (3,))
        self.check_data(cut("t10k-images-idx3-ubyte", 0.5), ["t10k-images-idx3-ubyte"], (3,))

    def test_damaged_gzip(self):
        def flip(data):
            path = data / "train-images-idx3-ubyte.gz"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 16
            path.write_bytes(content)
        self.check_data(flip, ["train-images-idx3-ubyte.gz"], (3,))

    def test_wrong_magic_number(self):
        def wrong(data):
            (data / "t10k-images-idx3-ubyte").write_bytes(b"\x12\x34\x56\x78" + bytes(100))
        self.check_data(wrong, ["t10k-images-idx3-ubyte", "IDX"])

        def of_floats(data):
            (data / "train-images-idx3-ubyte.gz").unlink()
            (data / "train-images-idx3-ubyte").write_bytes(harness.idx_bytes([2, 2, 2], bytes(32), kind=0x0d))
        self.check_data(of_floats, ["train-images-idx3-ubyte"], (3,))

    def test_labels_that_do_not_match_images(self):
        def fewer(data):
            (data / "train-labels-idx1-ubyte.gz").unlink()
            (data / "train-labels-idx1-ubyte").write_bytes(harness.idx_bytes([719], bytes(719)))
        self.check_data(fewer, ["720", "719"])

    # ---- the checkpoint directory

    def test_unwritable_directory(self):
        plain = self.folder / "plain"
        plain.write_text("a file")
        self.check(self.options(checkpoint_dir=plain / "run"), 74, ["plain", "Not a directory"])
        self.check(self.options(checkpoint_dir=plain), 74, ["plain", "Not a directory|File exists"], ranks=(3,))
        self.check(self.options(checkpoint_dir="/proc/lockstep"), 74, ["/proc/lockstep"], ranks=(3,))

    def test_directory_of_somebody_else(self):
        """As root nothing is unwritable, so root tries it as nobody."""
        closed = self.folder / "closed"
        closed.mkdir(mode=0o555)
        words = []
        program = harness.TRAIN
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                self.skipTest("needs setpriv to become nobody")
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            program = self.folder / "lockstep-train"
            shutil.copy(harness.TRAIN, program)
            program.chmod(0o755)
            for folder in (self.scratch, self.folder):
                folder.chmod(0o755)
        for target in (closed, closed / "run"):
            ended = harness.execute(*words, program, *self.options(checkpoint_dir=target))
            self.assertEqual(ended.code, 74, str(ended))
            self.assertEqual(len(ended.errors()), 1, str(ended))
            self.assertIn("Permission denied", ended.err)
            self.assertIn(str(closed), ended.err)
            self.assertEqual(harness.snapshot(closed), {})

    def test_a_second_job_in_the_same_directory(self):
        # The first would never end by itself, so that it is there for the second on any machine.
        changes = {"hidden": "256,128", "last_step": 1000000, "save_checkpoint_steps": 10}
        run = self.folder / "run"
        report = self.folder / "first.json"
        with Job(2, harness.TRAIN, *self.options(**changes, checkpoint_dir=run, report=report)) as first:
            harness.wait_for(lambda: harness.newest_step(run) >= 20, "the first job to save")
            first.signal_ranks(signal.SIGSTOP)  # it lives, and what changes now was changed by the second
            holder = harness.read_json(run / ".lock")
            self.check(self.options(**changes, checkpoint_dir=run), 78,
                       ["is in use by", f"pid {holder['pid']}", "another directory"], within=IN_USE)
            shown = harness.execute(harness.INSPECT, run)
            self.assertEqual(shown.code, 0)
            self.assertIn(f"pid {holder['pid']}", shown.out)
            measured = harness.run(2, harness.EVAL, "--checkpoint_dir", run, "--dataset", "idx", "--data_dir", self.data)
            self.assertEqual(measured.code, 0, "evaluation needs no lock")
            first.signal_ranks(signal.SIGCONT)
            first.signal_ranks(signal.SIGUSR1)
            ended = first.wait()
        self.assertEqual(ended.code, 75, str(ended))
        stopped = harness.read_json(report)
        expected = self.train(2, **{**changes, "save_checkpoint_steps": 0, "last_step": stopped["global_step"]})
        self.assertEqual(stopped["parameters_digest"], expected["parameters_digest"], "the first job is unharmed")

    # ---- checkpoints of others

    # A launch that is refused may say so in status.json; everything else stays as it is.
    KEPT = ("status.json",)

    def test_a_checkpoint_of_another_model_or_other_settings(self):
        run = self.folder / "run"
        self.train(2, checkpoint_dir=run, save_checkpoint_steps=10)
        for changes, words in [
                ({"hidden": "64"}, ["ckpt-00000040.h5", "dense0/weight.*\\[144, 32\\]", "\\[144, 64\\]"]),
                ({"hidden": "32,32"}, ["missing '/model/dense2/weight'"]),
                ({"seed": 2}, ["setting 'seed' was '1' \\(this run: '2'\\)"]),
                ({"global_batch": 120, "learning_rate": 0.2}, ["'global_batch' was '240'", "'learning_rate' was '0.1'"]),
                ({"optimizer": "adam"}, ["optimizer"]),
                ({"schedule": "cosine"}, ["'schedule' was 'constant' \\(this run: 'cosine over 60 steps to 0'\\)"]),
                ({"weight_decay": 0.1}, ["'weight_decay' was '0'"]),
        ]:
            with self.subTest(**changes):
                self.check(self.options(checkpoint_dir=run, **{"last_step": 60, **changes}), 78, words, watched=run,
                           without=self.KEPT, ranks=RANKS if changes == {"hidden": "64"} else (3,))
        # Other data of the same shape.
        other = harness.make_data(self.folder / "other", train=721)
        self.check(self.options(checkpoint_dir=run, last_step=60, data_dir=other), 78, ["data_digest"], watched=run,
                   without=self.KEPT, ranks=(3,))
        # Named, the learning rate may change; the run is as good as ever.
        report = self.train(2, checkpoint_dir=run, last_step=50, learning_rate=0.05, allow_change="learning_rate")
        self.assertEqual((report["restored_from"], report["global_step"]), ("ckpt-00000040.h5", 50))
        # The other direction is refused without a name again.
        self.check(self.options(checkpoint_dir=run, last_step=60), 78, ["'learning_rate' was '0.05'"], watched=run,
                   without=self.KEPT, ranks=(3,))

    def test_a_loss_that_is_not_finite(self):
        run = self.folder / "run"
        ended = harness.run_each(3, harness.TRAIN, *self.options(checkpoint_dir=run, learning_rate=1e30, last_step=50,
                                                                save_checkpoint_steps=1))
        self.assertEqual(ended.codes, [70] * 3, str(ended))
        self.assertEqual(ended.err.count("error: loss is not finite"), 1, str(ended))
        self.assertEqual(harness.read_json(run / "status.json")["exit_code"], 70)
        shown = harness.execute(harness.INSPECT, "--json", *[run / name for name in harness.checkpoints(run)])
        self.assertEqual(shown.code, 0, "what was published verifies")
        self.assertNotRegex(shown.out, '"(nan|inf)": [1-9]')


if __name__ == "__main__":
    harness.main()
