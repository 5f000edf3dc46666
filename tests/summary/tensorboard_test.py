"""TensorBoard's own reader returns what EventWriter wrote. Argument: the program write_events."""

import subprocess
import sys
import tempfile

from read_events import read_events

with tempfile.TemporaryDirectory() as directory:
    subprocess.run([sys.argv[1], directory], check=True)
    found = read_events(directory)

assert found["texts"] == {"configuration": [[0, "global_batch: **128**"]]}, found
assert set(found["scalars"]) == {"loss", "global_step/sec"}, found
assert found["scalars"]["global_step/sec"] == [[40, 123.5]], found
loss = found["scalars"]["loss"]
# The second file goes on at 31: the first one's 40 and 50 are hidden.
assert [step for step, _ in loss] == [10, 20, 30, 40], found
assert all(abs(value - expected) < 1e-7 for (_, value), expected in zip(loss, [0.1, 0.05, 1 / 30, 7.0])), found
