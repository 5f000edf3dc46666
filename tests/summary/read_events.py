"""Prints what TensorBoard's own reader finds in a directory, as JSON:
{"scalars": {TAG: [[STEP, VALUE], ...]}, "texts": {TAG: [[STEP, TEXT], ...]}}."""

import json
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util


def read_events(directory):
    keep_all = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
    reader = event_accumulator.EventAccumulator(directory, size_guidance=keep_all)
    reader.Reload()
    tags = reader.Tags()
    scalars = {tag: [[e.step, e.value] for e in reader.Scalars(tag)] for tag in tags["scalars"]}
    texts = {}
    for tag in tags["tensors"]:
        if reader.SummaryMetadata(tag).plugin_data.plugin_name == "text":
            texts[tag] = [[e.step, tensor_util.make_ndarray(e.tensor_proto).item().decode()]
                          for e in reader.Tensors(tag)]
    return {"scalars": scalars, "texts": texts}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: read_events.py DIRECTORY")
    print(json.dumps(read_events(sys.argv[1])))
