# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Draw the training curves of one or more runs from their TensorBoard logs into one picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PANELS = {
    "loss": {"epoch_loss": "training, all maps", "val_loss": "validation, fused map"},
    "F-measure": {"f_pos": "F+ (positives)", "f_neg": "F- (negatives)"},
}


def read_scalars(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar in a run's log."""
    log = EventAccumulator(str(run)).Reload()
    events = {tag: log.Scalars(tag) for tag in log.Tags()["scalars"]}
    return {tag: ([e.step for e in scalars], [e.value for e in scalars]) for tag, scalars in events.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="output_dir of each run")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    missing = [str(run) for run in arguments.runs if not list(run.glob("events.out.tfevents.*"))]
    if missing:
        sys.exit(f"error: there is no TensorBoard log in {', '.join(missing)}")
    figure = Figure(figsize=(5 * len(arguments.runs), 6), layout="constrained")
    grid = figure.subplots(len(PANELS), len(arguments.runs), squeeze=False)
    for column, run in enumerate(arguments.runs):
        scalars = read_scalars(run)
        for row, (label, tags) in enumerate(PANELS.items()):
            axes = grid[row, column]
            for tag, name in tags.items():
                if tag in scalars:
                    axes.plot(*scalars[tag], label=name)
            axes.set(ylabel=label, xlabel="epoch")
            axes.legend(frameon=False)
        grid[0, column].set_title(run.name)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=110)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
