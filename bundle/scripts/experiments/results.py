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


"""The results of a study, read back from its cells' files."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from scripts.experiments.cell import SPECIFICATION, evaluation_folder, runs_of
from scripts.experiments.plan import Plan, Row
from scripts.experiments.records import read_maps
from scripts.experiments.runner import cell_folder
from scripts.metrics import compute_region_f_measure

__all__ = [
    "Evaluation",
    "RowResults",
    "choose_area_weights",
    "choose_fusion_weights",
    "fusion_scores",
    "read_rows",
    "simplex",
]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one cell."""

    folder: Path
    metrics: Mapping[str, float]
    """``metrics.json``; with ``marked``, the predicted area of positive images; and seconds per image."""
    images: tuple[Mapping[str, str], ...]
    """Rows of ``metrics_per_image.csv``."""
    specification: Mapping[str, Any]


@dataclass(frozen=True)
class RowResults:
    """A row of the table with the evaluations it is made of."""

    row: Row
    evaluations: tuple[Evaluation, ...]

    def values(self, key: str) -> list[float]:
        return [e.metrics[key] for e in self.evaluations if e.metrics.get(key) is not None]

    def image_scores(self, label: int) -> dict[str, float]:
        """F-measure of each image of a class, mean over the evaluations that have it."""
        scores = defaultdict(list)
        for evaluation in self.evaluations:
            for image in evaluation.images:
                if int(image["label"]) == label and image["f_measure"]:
                    scores[image["image"]].append(float(image["f_measure"]))
        return {name: mean(values) for name, values in scores.items()}


def read_rows(output_dir: Path, plan: Plan) -> list[RowResults]:
    return [
        RowResults(row, tuple(_read_evaluation(cell_folder(output_dir, cell), row.map) for cell in row.cells))
        for row in plan.rows
    ]


def _read_evaluation(cell: Path, map_name: str) -> Evaluation:
    folder = evaluation_folder(cell, map_name)
    with (folder / "metrics_per_image.csv").open(newline="", encoding="utf-8") as file:
        images = tuple(csv.DictReader(file))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["marked"] = mean(float(image["area_predicted"]) for image in images if image["label"] == "1")
    specification = json.loads((cell / SPECIFICATION).read_text(encoding="utf-8"))
    rounds = [run.folder for run in runs_of(specification, cell) if run.id == "training"]
    for key, timed in (("training_seconds", rounds), ("inference_seconds", [folder])):
        paths = [part / "timing.json" for part in timed]
        if all(path.is_file() for path in paths):
            metrics[key] = sum(json.loads(path.read_text(encoding="utf-8"))["seconds_per_image"] for path in paths)
    return Evaluation(folder, metrics, images, specification)


def choose_area_weights(rows: Sequence[RowResults], candidates: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The overlay of the candidate whose mean of F+ and F- is highest, mean over folds; the first among equals."""
    scores = [mean(results.values("f_mean")) for results in rows]
    best = scores.index(max(scores))
    return {
        "_desc_": f"Overlay: area weights chosen by cross-validation, mean of F+ and F- {scores[best]:.3f}.",
        "side_area_weights": list(candidates[best][:-1]),
        "fusion_area_weight": candidates[best][-1],
    }


def simplex(step: float, count: int = 3) -> list[tuple[float, ...]]:
    """All weights that are multiples of a step, 0 or more, and sum to 1: (1 / step + 2 choose 2) of three."""
    units = round(1 / step)

    def split(left: int, parts: int) -> list[tuple[int, ...]]:
        if parts == 1:
            return [(left,)]
        return [(first, *rest) for first in range(left + 1) for rest in split(left - first, parts - 1)]

    return [tuple(part / units for part in parts) for parts in split(units, count)]


def fusion_scores(
    sides: Sequence[RowResults], weights: Sequence[Sequence[float]], threshold: float = 0.5
) -> list[tuple[float, float]]:
    """
    F+ and F- of each choice of weights, mean over folds of the means over images.

    Args:
        sides: results of each side on the same held-out folds.
        weights: to try, one weight a side.
        threshold: probability from which on a pixel is positive.
    """
    folds = []
    for fold in zip(*(side.evaluations for side in sides), strict=True):
        scores: dict[str, list] = {"0": [], "1": []}
        for position, image in enumerate(fold[0].images):
            maps, truths = zip(*(read_maps(evaluation.folder / "maps", position) for evaluation in fold), strict=True)
            stacked = np.stack(maps).reshape(len(maps), -1)
            truth = truths[0].ravel()
            # one after the other: all of them at once would not fit into memory for large images
            fused = (np.asarray(choice, np.float32) @ stacked >= threshold for choice in weights)
            scores[image["label"]].append([compute_region_f_measure(mask, truth)[0] for mask in fused])
        folds.append([np.mean(scores[label], axis=0) for label in ("1", "0")])
    return [tuple(pair) for pair in np.mean(folds, axis=0).T.tolist()]


def choose_fusion_weights(weights: Sequence[Sequence[float]], scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The overlay of the weights with the highest mean of F+ and F-; the first among equals."""
    means = [sum(pair) / 2 for pair in scores]
    best = means.index(max(means))
    return {
        "_desc_": f"Overlay: fusion weights chosen by cross-validation, mean of F+ and F- {means[best]:.3f}.",
        "fusion_weights": list(weights[best]),
    }
