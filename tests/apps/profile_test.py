"""Timelines of lockstep-train: traces that a viewer can draw, a track for each rank, and the training as without."""

import harness
from harness import EndToEnd


class Profile(EndToEnd):
    def check_timeline(self, path, step, ranks):
        timeline = harness.read_json(path)
        events = timeline["traceEvents"]
        self.assertEqual({event["ph"] for event in events}, {"M", "X"})
        names = {(event["name"], event["tid"]): event["args"]["name"] for event in events if event["ph"] == "M"}
        self.assertEqual(names.pop(("process_name", 1)), f"lockstep, {ranks} ranks")
        self.assertEqual(names, {("thread_name", rank + 1): f"rank {rank}" for rank in range(ranks)})
        for rank in range(ranks):
            phases = [event for event in events if event["ph"] == "X" and event["tid"] == rank + 1]
            self.assertLessEqual({"step", "reduce", "finish", "stop_at_step"}, {phase["name"] for phase in phases})
            open_until = []
            for phase in sorted(phases, key=lambda phase: (phase["ts"], -phase["dur"])):
                self.assertEqual((phase["pid"], phase["args"]["step"]), (1, step))
                self.assertGreaterEqual(phase["ts"], 0)
                self.assertGreaterEqual(phase["dur"], 0)
                # One inside the other or one after the other: else a viewer drops or misplaces them. Times have
                # been rounded to 0.001 microseconds.
                while open_until and phase["ts"] > open_until[-1] - 0.01:
                    open_until.pop()
                end = phase["ts"] + phase["dur"]
                self.assertTrue(not open_until or end <= open_until[-1] + 0.01, f"{phase} overlaps in {path}")
                open_until.append(end)

    def test_by_steps(self):
        without = self.train(3, last_step=9)
        for ranks in (1, 3):
            with self.subTest(ranks=ranks):
                directory = self.folder / f"run-{ranks}"
                report = self.train(ranks, last_step=9, checkpoint_dir=directory, profile_steps=4)
                timelines = {path.name: path for path in directory.glob("timeline-*")}
                self.assertEqual(set(timelines), {"timeline-4.json", "timeline-8.json"})
                for step in (4, 8):
                    self.check_timeline(timelines[f"timeline-{step}.json"], step, ranks)
                for key in ("parameters_digest", "loss", "global_step"):
                    self.assertEqual(report[key], without[key], key)

    def test_a_place_of_its_own(self):
        """Where it cannot write, it says so and training goes on."""
        self.train(2, last_step=5, profile_steps=2, profile_dir=self.folder / "a" / "b")
        self.assertEqual({path.name for path in (self.folder / "a" / "b").iterdir()}, {"timeline-2.json", "timeline-4.json"})
        (self.folder / "file").write_text("")
        report = self.train(2, last_step=5, profile_steps=2, profile_dir=self.folder / "file")
        self.assertEqual(report["global_step"], 5)
        self.assertIn("warning: the profile of step 2 is not written: ", report["stderr"])
        self.assertIn("training goes on", report["stderr"])

    def test_by_seconds(self):
        """So short an interval is over whenever it is looked at, whatever the machine: with the word that the chief
        sends in the steps between the profiles."""
        directory = self.folder / "run"
        self.train(2, last_step=5, checkpoint_dir=directory, profile_secs=1e-9)
        self.assertEqual({path.name for path in directory.glob("timeline-*")},
                         {f"timeline-{step}.json" for step in (3, 5)})


if __name__ == "__main__":
    harness.main()
