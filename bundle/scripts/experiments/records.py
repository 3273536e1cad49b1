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


"""Ignite handlers that record what a study keeps of a run beside its metrics: times, and probability maps."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from scripts.runtime.files import replacing

__all__ = ["InferenceTime", "MapWriter", "TrainingTime", "read_maps"]

LEVELS = 65535  # a probability in 16 bits


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # or the clock stops before the GPU has
    return perf_counter()


class TrainingTime:
    """
    Writes ``{"seconds": ..., "seconds_per_image": ...}``: from the start of each epoch to its last step.

    Validation and the saving of checkpoints are not counted; loading and augmentation are.

    Args:
        path: of the file.
        images: in an epoch.
    """

    def __init__(self, path: str, images: int) -> None:
        self.path = path
        self.images = images
        self.seconds: list[float] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.started = _now()
        self.seconds.append(0.0)

    def _step(self, engine: Engine) -> None:
        self.seconds[-1] = _now() - self.started

    def _write(self, engine: Engine) -> None:
        total = sum(self.seconds)
        seen = self.images * len(self.seconds)
        with replacing(self.path) as file:
            json.dump({"seconds": total, "seconds_per_image": total / seen, "images": seen}, file)


class InferenceTime:
    """
    Writes ``{"seconds_per_image": ...}``: the median, from the loaded batch to its map, without saving and scoring.

    Expects one image a batch.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.seconds: list[float] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.started = _now()

    def _stop(self, engine: Engine) -> None:
        self.seconds.append(_now() - self.started)

    def _write(self, engine: Engine) -> None:
        with replacing(self.path) as file:
            json.dump({"seconds_per_image": median(self.seconds), "images": len(self.seconds)}, file)


class MapWriter:
    """
    Writes each image's probability map, and its truth where there is one, as a file that `read_maps` reads.

    Expects ``probability`` and ``truth``, (1, W, H) at the size of the image's file. The files are numbered as the rows
    of ``metrics_per_image.csv``.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.count = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in engine.state.output:
            arrays = {"probability": (np.asarray(item["probability"].cpu())[0].T * LEVELS).round().astype(np.uint16)}
            if "truth" in item:
                arrays["truth"] = np.asarray(item["truth"].cpu())[0].T > 0.5
            with replacing(self.folder / f"{self.count}.npz", binary=True) as file:
                np.savez_compressed(file, **arrays)
            self.count += 1


def read_maps(folder: Path, position: int) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Of the image in row `position`, counted from 0, the probability (H, W) float32 in 0..1 and the truth, bool (H, W).
    """
    with np.load(folder / f"{position}.npz") as arrays:
        return arrays["probability"].astype(np.float32) / LEVELS, arrays.get("truth")
