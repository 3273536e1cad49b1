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

"""Ignite handlers that show progress, draw maps into TensorBoard, and write the results of evaluation and inference."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import ignite.handlers
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from scripts.evaluation import ImageScores, best_threshold, score_image, summarise
from scripts.files import replacing
from scripts.losses import generalized_mean

__all__ = ["MapImages", "PredictionTable", "ProgressBar", "ScoreCollector", "ScoreWriter"]

logger = logging.getLogger(__name__)


class ProgressBar(ignite.handlers.ProgressBar):
    """
    One bar over a whole run, with the time left.

    Args:
        desc: what is going on.
        shown: attributes of the engine's state to show beside the bar.
    """

    def __init__(self, desc: str, shown: Sequence[str] = ()) -> None:
        super().__init__(persist=True, desc=desc, mininterval=0.5)
        self.shown = list(shown)

    def attach(self, engine: Engine) -> None:
        super().attach(engine, state_attributes=self.shown, closing_event_name=Events.COMPLETED)


class MapImages:
    """
    Draws validation images into TensorBoard: input, truth where known, fused map and every side output in a row.

    Attach it to the evaluator; the step is the trainer's epoch.

    Args:
        network: a `CDWSNet`.
        summary_writer: of TensorBoard.
        mean, std: normalisation of the network's input, undone for the picture.
        count: number of images, spread evenly over the validation set.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        summary_writer: SummaryWriter,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        count: int = 6,
    ) -> None:
        self.network = network
        self.summary_writer = summary_writer
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.count = count

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        shown = np.linspace(1, engine.state.epoch_length, min(self.count, engine.state.epoch_length)).round()
        if engine.state.iteration % engine.state.epoch_length not in shown % engine.state.epoch_length:
            return
        item = engine.state.output[0]
        with torch.no_grad():
            maps = self.network.eval().maps(item["image"][None].to(next(self.network.parameters()).device))[0].cpu()
        grey = [map_.expand(3, -1, -1) for map_ in maps.unsqueeze(1)]
        if "truth" in item:
            truth = torch.nn.functional.interpolate(item["truth"][None].float(), size=maps.shape[1:])[0]
            grey.insert(0, truth.cpu().expand(3, -1, -1))
        picture = (item["image"].cpu() * self.std + self.mean).clamp(0, 1)
        row = torch.cat([torch.as_tensor(panel) for panel in (picture, *grey)], dim=1)  # MONAI's axes: (C, W, H)
        name = Path(item["image"].meta["filename_or_obj"]).stem
        tag = f"input, {'truth, ' if 'truth' in item else ''}fusion, sides/{name}"
        self.summary_writer.add_image(tag, row.transpose(1, 2), engine.state.epoch)


class ScoreCollector:
    """
    Scores every image that an evaluator sees.

    Expects in each output: ``probability`` and ``pred``, (1, H, W) at the size of the truth; ``label``, the weak
    target; and ``truth``, (1, H, W), where it is known.

    Args:
        r: sharpness of the generalized mean that gives the image-level probability.
    """

    def __init__(self, r: float = 4.0) -> None:
        self.r = r
        self.scores: list[ImageScores] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in engine.state.output:
            truth = item.get("truth")
            self.scores.append(
                score_image(
                    image=str(item["image"].meta["filename_or_obj"]),
                    label=int(item["label"][0]),
                    probability=float(generalized_mean(item["probability"][None], self.r)),
                    prediction=np.asarray(item["pred"].cpu())[0] > 0.5,
                    truth=None if truth is None else np.asarray(truth.cpu())[0] > 0.5,
                )
            )


class ScoreWriter(ScoreCollector):
    """
    Writes ``metrics.json`` and ``metrics_per_image.csv`` when an evaluation ends, and prints the metrics.

    Args:
        output_dir: folder of both.
        split: name of the split, noted in ``metrics.json``.
        calibration: collector that has seen the validation images, on which the image-level threshold is chosen.
        r: see `ScoreCollector`.
    """

    def __init__(self, output_dir: str, split: str, calibration: ScoreCollector, r: float = 4.0) -> None:
        super().__init__(r)
        self.output_dir = Path(output_dir)
        self.split = split
        self.calibration = calibration

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.write())

    def write(self) -> None:
        known = self.calibration.scores
        threshold = best_threshold([s.label for s in known], [s.probability for s in known])
        metrics = {"split": self.split, "images": len(self.scores), **summarise(self.scores, threshold)}
        columns = [f.name for f in fields(ImageScores) if f.name != "disc_f"]
        with replacing(self.output_dir / "metrics_per_image.csv") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(asdict(s) for s in self.scores)
        with replacing(self.output_dir / "metrics.json") as file:
            json.dump(metrics, file, indent=4)
        lines = [f"  {name:<16}{value:.3f}" for name, value in metrics.items() if isinstance(value, float)]
        logger.info("\n".join([f"{self.split}, {len(self.scores)} images:", *lines]))
        logger.info(f"Written: {self.output_dir / 'metrics.json'}, {self.output_dir / 'metrics_per_image.csv'}")


class PredictionTable:
    """
    Writes ``predictions.csv`` during inference: image, image-level probability, predicted area fraction.

    Expects ``probability`` and ``pred``, (1, H, W), in each output. A row is on disk as soon as its image is done.

    Args:
        output_dir: folder of the table.
        r: sharpness of the generalized mean.
    """

    def __init__(self, output_dir: str, r: float = 4.0) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.r = r

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: logger.info(f"Written: {self.path.parent}"))

    def start(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write("w", [("image", "probability", "area_fraction")])

    def __call__(self, engine: Engine) -> None:
        rows = []
        for item in engine.state.output:
            probability = float(generalized_mean(item["probability"][None], self.r))
            area = float(item["pred"].float().mean())
            rows.append((item["image"].meta["filename_or_obj"], f"{probability:.6g}", f"{area:.6g}"))
        self._write("a", rows)

    def _write(self, mode: str, rows: list[tuple]) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
