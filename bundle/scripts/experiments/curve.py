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

"""
Do more labels help? Trains on growing parts of the training images, and says what each does on the validation images.

    cdws curve DATA [--fractions 0.25 0.5 0.75 1] [--output_dir runs/curve] [--SETTING VALUE]

No masks are needed: what counts is how far image-level probabilities are off the labels, and areas outside of what is
stated. A part that has been trained is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts import bundle_root
from scripts.runtime.command_line import Parser
from scripts.runtime.errors import InputError, report_input_errors

if __name__ == "__main__":  # before imports that take seconds, in which a signal would be a traceback
    report_input_errors()

import numpy as np

from scripts.data.datalist import load_datalist
from scripts.experiments.variants import take_subset
from scripts.review.doubt import doubt_of
from scripts.review.findings import read_findings, reviewed_name
from scripts.review.record import FINDINGS
from scripts.runtime.files import replacing

__all__ = ["Point", "table", "verdict"]

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
SURE = 2.0  # standard errors


class Point(NamedTuple):
    """What a training on so many images says of each validation image, in one order."""

    images: int
    label: np.ndarray
    """Of each image by how much the image-level probability is off its label, 0..1."""
    area: np.ndarray
    """Of each image how far the area is outside of what is stated, 0..1, see `Doubt`."""


def table(points: Sequence[Point]) -> str:
    """A line for each point: means, and by how much label and area together are better than at the point before."""
    lines = [f"{'training images':>16}{'label off by':>14}{'area off by':>13}{'better by':>18}"]
    for before, point in zip((None, *points), points, strict=False):
        gain = "" if before is None else "{:+.3f} +- {:.3f}".format(*_gain(before, point))
        lines.append(f"{point.images:>16}{point.label.mean():>14.3f}{point.area.mean():>13.3f}{gain:>18}")
    return "\n".join(lines)


def verdict(points: Sequence[Point]) -> str:
    """Whether the last of the labels have helped: a sentence."""
    before, last = points[-2:]
    gain, error = _gain(before, last)
    more = f"The last {last.images - before.images} of {last.images} images"
    if gain > SURE * error:
        return f"{more} have made it better by {gain:.3f} (+- {error:.3f}): more labels are likely to help."
    return (
        f"{more} have changed nothing that {len(last.label)} validation images could show "
        f"({gain:+.3f} +- {error:.3f}): rather correct the labels that are there (cdws review) than give more."
    )


def _gain(before: Point, after: Point) -> tuple[float, float]:
    """Mean over the images of how much label and area together are less off, and its standard error."""
    gains = (before.label + before.area) - (after.label + after.area)
    return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.inf


def train(folder: Path, data: dict[str, list], method: str, settings: Sequence[str]) -> None:
    """Train in a folder on a data set, unless that is done, and look at its validation images."""
    configs = Path(bundle_root()) / "configs"
    for name, splits in {"data": data, "validation": {"validation": data["validation"]}}.items():
        with replacing(folder / f"{name}.json") as file:
            json.dump(splits, file, indent=1)
    common = ["--output_dir", str(folder), "--allow_outside", "True", "--logging_file", "False"]
    runs = {
        "training": (("train", method), ["--dataset_dir", str(folder / "data.json"), *settings]),
        "inferring": (("inference", method, "review"), ["--dataset_dir", str(folder / "validation.json")]),
    }
    for run, (names, words) in runs.items():
        files = repr([str(configs / f"{name}.json") for name in names])
        command = [sys.executable, "-m", "monai.bundle", "run", run, "--config_file", files, *words, *common]
        environment = os.environ | {"PYTHONPATH": bundle_root()}
        if subprocess.run(command, env=environment, check=False).returncode:
            raise InputError(f"The {run} in '{folder}' has failed, see above: {shlex.join(command)}")


def point_of(folder: Path, data: dict[str, list], area_step: float) -> Point:
    """What the training in a folder says of the validation images."""
    found = read_findings(folder / "review").of
    doubts = [
        doubt_of(found[reviewed_name(item, folder)], item["label"], item.get("area"), area_step)
        for item in data["validation"]
    ]
    return Point(len(data["training"]), *(np.array([getattr(d, part) for d in doubts]) for part in ("label", "area")))


def main() -> None:
    parser = Parser(prog="cdws curve", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of dataset.json, or that file")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="(0.25 0.5 0.75 1)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/curve"), help="(runs/curve)")
    parser.add_argument("--method", default="recommended", help="(recommended)")
    parser.add_argument("--area_step", type=float, default=0.1, help="to which areas are rounded up (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the parts, and of the trainings (0)")
    options, settings = parser.parse_known_args()
    try:
        run(options, settings)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace, settings: Sequence[str]) -> None:
    """Run the command. Raises InputError for what can't be used."""
    fractions = sorted(set(options.fractions))
    if len(fractions) < 2 or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise InputError(f"--fractions must be two or more, above 0 and up to 1; got {options.fractions}.")
    if not (Path(bundle_root()) / "configs" / f"{options.method}.json").is_file():
        raise InputError(f"There is no method '{options.method}'; cdws train -h lists the methods.")
    splits = load_datalist(options.data.absolute(), allow_outside=True)
    if any(isinstance(item["label"], str) for items in splits.values() for item in items):
        raise InputError("Labels must be 0 or 1 here, and masks under 'mask'; cdws data from-masks writes it so.")
    settings = ["--area_step", str(options.area_step), "--seed", str(options.seed), *settings]
    points = []
    for fraction in fractions:
        folder = options.output_dir.absolute() / f"{100 * fraction:g}"
        data = {"training": take_subset(splits["training"], fraction, options.seed), "validation": splits["validation"]}
        if not (folder / "review" / FINDINGS).is_file():
            train(folder, data, options.method, settings)
        points.append(point_of(folder, data, options.area_step))
        print(table(points), flush=True)
    print(verdict(points))


if __name__ == "__main__":
    main()
