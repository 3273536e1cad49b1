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

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.utils.tensorboard import SummaryWriter

from scripts.evaluation.figures import Example, draw_curves, draw_examples, draw_maps
from scripts.evaluation.scores import (
    ImageScores,
    Thresholds,
    baseline_table,
    choose_thresholds,
    score_image,
    summarise,
    volume_dice,
)
from scripts.images.colours import ToRGB
from scripts.images.loading import load_image
from scripts.losses.instances import instances_of
from scripts.losses.pooling import Pooling
from scripts.metrics import BoundaryFMeasure, PixelAveragePrecision
from scripts.networks import MapNetwork
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing, write_rows
from scripts.runtime.processes import gather, process_rank, share, union

__all__ = [
    "EvaluationReport",
    "MapImages",
    "MapPanels",
    "PredictionTable",
    "ScoreCollector",
    "SideOutputs",
    "image_probability",
]

logger = logging.getLogger(__name__)


class MapPanels:
    """
    Some images of an evaluation, for `show` to put somewhere: input, truth where known, every map of the network.

    The maps are those of the network, before superpixels take their means.

    Args:
        network: whose maps are shown.
        mean, std: normalisation of the network's input, undone for the picture.
        count: number of images, spread evenly over those evaluated.
    """

    def __init__(
        self,
        network: MapNetwork,
        mean: Sequence[float],
        std: Sequence[float],
        count: int = 6,
    ) -> None:
        self.network = network
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.count = count
        self.own: Sequence[int] = ()
        self.shown: set[int] = set()
        self.chosen: dict[int, tuple[Path, dict[str, np.ndarray]]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        images = len(gather(range(engine.state.epoch_length)))
        self.own = share(range(images))  # places of this process's images among those of all
        self.shown = set(np.linspace(0, images - 1, min(self.count, images)).round().astype(int).tolist())
        self.chosen = {}

    def __call__(self, engine: Engine) -> None:
        if not engine.state.output:  # an image that can't be read
            return
        place = self.own[(engine.state.iteration - 1) % engine.state.epoch_length]
        if place in self.shown:
            item = engine.state.output[0]
            self.chosen[place] = Path(item["image"].meta["filename_or_obj"]), self._panels(item, engine.state.device)

    def finish(self, engine: Engine) -> None:
        chosen = union(self.chosen)
        if process_rank() == 0:
            for place in sorted(chosen):
                self.show(*chosen[place], engine.state.epoch)

    def show(self, image: Path, panels: dict[str, np.ndarray], epoch: int) -> None:
        """Of each chosen image its file, and pictures in 0..1: (3, H, W) the input, (1, H, W) all others."""
        raise NotImplementedError

    def _panels(self, item: dict, device: torch.device) -> dict[str, np.ndarray]:
        with torch.no_grad():
            maps = self.network.eval().maps(item["image"][None].to(device))[0].cpu()
        picture = (item["image"].cpu() * self.std + self.mean).clamp(0, 1)
        if len(picture) != 3:  # neighbouring slices: the one between them
            picture = picture[len(picture) // 2].expand(3, -1, -1)
        panels = {"input": picture}
        if "truth" in item:
            panels["truth"] = torch.nn.functional.interpolate(item["truth"][None].float(), size=maps.shape[1:])[0].cpu()
        panels |= dict(zip(self.network.map_names, maps.unsqueeze(1), strict=True))
        return {name: np.asarray(panel.swapaxes(1, 2)) for name, panel in panels.items()}  # MONAI has (C, W, H)


class MapImages(MapPanels):
    """
    Draws validation images into TensorBoard, the panels of each in a row; the step is the trainer's epoch.

    Args:
        summary_writer: of TensorBoard.
        network, mean, std, count: see `MapPanels`.
    """

    def __init__(self, summary_writer: SummaryWriter, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.summary_writer = summary_writer

    def show(self, image: Path, panels: dict[str, np.ndarray], epoch: int) -> None:
        row = np.concatenate([np.broadcast_to(panel, (3, *panel.shape[1:])) for panel in panels.values()], axis=2)
        self.summary_writer.add_image(f"{', '.join(panels)}/{image.stem}", row, epoch)


class SideOutputs(MapPanels):
    """
    Draws ``side_outputs.png`` during evaluation: what each side of the network sees, as Figure 4 of the paper.

    Args:
        output_dir: folder of the picture.
        network, mean, std, count: see `MapPanels`.
    """

    def __init__(self, output_dir: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = Path(output_dir) / "side_outputs.png"
        self.rows: dict[str, dict[str, np.ndarray]] = {}

    def finish(self, engine: Engine) -> None:
        super().finish(engine)
        if process_rank() == 0:
            self.draw()

    def show(self, image: Path, panels: dict[str, np.ndarray], epoch: int) -> None:
        self.rows[image.name] = panels

    def draw(self) -> None:
        if not self.rows:
            return
        figure = draw_maps(self.rows, self.network.receptive_fields())
        with replacing(self.path, binary=True) as file:
            figure.savefig(file, dpi=110, format="png")
        logger.info(f"Written: {self.path}")


class ScoreCollector:
    """
    Scores every image that an evaluator sees.

    Expects in each output: ``probability``, (1, H, W) at the size of the truth; ``label``, the weak target;
    ``truth``, (1, H, W), where it is known; and ``instances``, (1, H, W), the superpixels where there are some.

    Args:
        threshold: probability from which on a pixel counts as positive.
        pool: gives the image-level probability; the paper's generalized mean by default.
    """

    def __init__(self, threshold: float = 0.5, pool: Pooling | None = None) -> None:
        self.threshold = threshold
        self.pool = pool or Pooling()
        self.scores: list[ImageScores] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def all_scores(self) -> list[ImageScores]:
        """Those of all processes, in the order of the images."""
        return gather(self.scores)

    def __call__(self, engine: Engine) -> None:
        for item in engine.state.output:
            truth = item.get("truth")
            self.scores.append(
                score_image(
                    image=str(item["image"].meta["filename_or_obj"]),
                    label=int(item["label"][0]),
                    image_probability=image_probability(item, self.pool),
                    probability=np.asarray(item["probability"].cpu())[0],
                    truth=None if truth is None else np.asarray(truth.cpu())[0] > 0.5,
                    threshold=self.threshold,
                    volume=item["image"].meta.get("volume"),
                )
            )


class EvaluationReport(ScoreCollector):
    """
    Writes what an evaluation found: numbers, pictures, and a summary on the screen.

    ``metrics.json``, ``metrics_per_image.csv``; of slices also ``metrics_per_volume.csv``; and, where the pixel truth
    is known, ``curves.png`` and ``examples.png`` (the best, median and worst positives and the worst negative by
    F-measure), both in TensorBoard as well. The numbers are in ``state.metrics`` too, for handlers that come after.

    Args:
        output_dir: folder of the files.
        split: name of the split, noted in ``metrics.json``.
        calibration: collector that has seen the validation images, on which thresholds are chosen.
        summary_writer: of TensorBoard.
        threshold, pool: see `ScoreCollector`.
    """

    def __init__(
        self,
        output_dir: str,
        split: str,
        calibration: ScoreCollector,
        summary_writer: SummaryWriter,
        threshold: float = 0.5,
        pool: Pooling | None = None,
    ) -> None:
        super().__init__(threshold, pool)
        self.output_dir = Path(output_dir)
        self.split = split
        self.calibration = calibration
        self.summary_writer = summary_writer
        self.boundary = BoundaryFMeasure("all")
        self.pixels = PixelAveragePrecision()
        self.maps = tempfile.TemporaryDirectory()  # memory must not grow with the images

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        super().__call__(engine)
        start = len(self.scores) - len(engine.state.output)
        for position, (item, source) in enumerate(zip(engine.state.output, engine.state.batch, strict=True), start):
            if "truth" in item:
                self.boundary([item["probability"]], [item["truth"]])
                self.pixels([item["probability"]], [item["truth"]])
                probability, truth = (np.asarray(item[key].cpu())[0] for key in ("probability", "truth"))
                maps = {"probability": probability, "truth": truth > 0.5}
                if "picture" in source:  # a slice: its file is a whole volume
                    maps["picture"] = np.asarray(source["picture"].cpu())
                np.savez_compressed(self._maps_file(position), **maps)

    def write(self, engine: Engine) -> None:
        scores = self.all_scores()
        if {s.label for s in scores} != {0, 1}:
            raise InputError(f"The split '{self.split}' can't be scored: of one class, no image could be used.")
        metrics = {"split": self.split, "images": len(scores)}
        metrics |= summarise(scores, self._thresholds())
        written: list[Path] = []
        volumes = volume_dice(scores)
        if volumes:
            metrics |= {"volumes": len(volumes), "dice_per_volume": mean(volumes.values())}
        known = "f_pos" in metrics
        if known:
            metrics |= self.boundary.aggregate() | {"px_ap": float(self.pixels.aggregate())}
        else:
            unknown = [s.image for s in scores if s.f_measure is None]
            logger.warning(f"No region scores: {len(unknown)} images have no mask, the first is {unknown[0]}.")
        numbers = {name: v for name, v in metrics.items() if isinstance(v, (int, float)) and not math.isnan(v)}
        engine.state.metrics.update(numbers)
        if process_rank() == 0:
            written += self._write_tables(scores, metrics, volumes)
        if known:  # after the tables: a picture is the last thing that may fail
            written += self._draw(scores, metrics["px_ap"])
        if process_rank() > 0:
            return
        shown = ("auc", "accuracy", "ods", "ois", "boundary_ap", "px_ap", "dice_per_volume")
        rest = "  ".join(f"{name} {metrics[name]:.3f}" for name in shown if name in metrics)
        logger.info(f"{self.split}, {len(scores)} images\n{baseline_table(metrics)}\n{rest}")
        logger.info("Written: " + ", ".join(map(str, written)))

    def _write_tables(
        self, scores: list[ImageScores], metrics: dict[str, Any], volumes: dict[str, float]
    ) -> list[Path]:
        written = [self.output_dir / name for name in ("metrics.json", "metrics_per_image.csv")]
        if volumes:
            written.append(self.output_dir / "metrics_per_volume.csv")
            with replacing(written[-1]) as file:
                write_rows(file, [("volume", "dice"), *volumes.items()])
        with replacing(written[1]) as file:
            columns = [f.name for f in fields(ImageScores) if f.name not in ("disc_f", "f_by_threshold", "volume")]
            write_rows(file, [columns, *([getattr(s, name) for name in columns] for s in scores)])
        with replacing(written[0]) as file:
            json.dump({k: None if v != v else v for k, v in metrics.items()}, file, indent=4)  # JSON has no NaN
        return written

    def _thresholds(self) -> Thresholds:
        """Chosen on the validation images; none where the data set has none of both classes."""
        scores = self.calibration.all_scores()
        if {s.label for s in scores} == {0, 1}:
            return choose_thresholds(scores)
        logger.warning(
            "There are no validation images to choose thresholds on: accuracy and the scores at the best threshold are "
            "left out."
        )
        return Thresholds(None, None)

    def _draw(self, scores: list[ImageScores], px_ap: float) -> list[Path]:
        examples = self._examples(scores)
        boundary, pixels = self.boundary.scores(), self.pixels.curve()
        if process_rank() > 0:
            return []
        figures = {"curves": draw_curves(boundary, pixels, px_ap)}
        if examples:
            figures["examples"] = draw_examples(examples)
        paths = []
        for name, figure in figures.items():
            paths.append(self.output_dir / f"{name}.png")
            with replacing(paths[-1], binary=True) as file:
                figure.savefig(file, dpi=130, format="png")
            FigureCanvasAgg(figure).draw()
            picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
            self.summary_writer.add_image(f"{self.split}/{name}", picture, dataformats="HWC")
        self.summary_writer.flush()
        return paths

    def _examples(self, scores: list[ImageScores]) -> list[Example]:
        """The images to show; the map of each is with the process that has made it."""
        chosen = _choose_examples(scores)
        places = {position: place for place, position in enumerate(share(range(len(scores))))}
        own = {
            title: self._example(title, scores[position], places[position])
            for title, position in chosen.items()
            if position in places
        }
        examples = union({title: example for title, example in own.items() if example is not None})
        return [examples[title] for title in chosen if title in examples]

    def _example(self, title: str, scores: ImageScores, place: int) -> Example | None:
        maps = np.load(self._maps_file(place))
        try:
            colours = maps["picture"] if "picture" in maps else np.asarray(ToRGB()(load_image(scores.image)))
        except Exception as error:  # it could be read before, and was scored
            logger.warning(f"'{scores.image}' can't be shown ({first_line(error)}).")
            return None
        image, truth, probability = (
            picture.swapaxes(0, 1)  # from MONAI's (W, H) to what is seen
            for picture in (np.moveaxis(colours, 0, -1), maps["truth"], maps["probability"])
        )
        title = f"{title}, F {scores.f_measure:.2f}\n{Path(scores.image).name}"
        return Example(title, image, truth, probability, probability >= self.threshold)

    def _maps_file(self, position: int) -> Path:
        return Path(self.maps.name) / f"{position}.npz"


def _choose_examples(scores: list[ImageScores]) -> dict[str, int]:
    """Titles and positions of the images to show."""
    by_score = sorted(range(len(scores)), key=lambda position: scores[position].f_measure)
    positives, negatives = ([i for i in by_score if scores[i].label == label] for label in (1, 0))
    chosen = {"best": positives[-1], "median": positives[len(positives) // 2], "worst": positives[0]}
    return chosen | {"worst negative": negatives[0]}


class PredictionTable:
    """
    Writes ``predictions.csv`` during inference: image, image-level probability, predicted area fraction.

    Expects ``probability`` and ``pred``, (1, H, W), in each output; and ``instances``, the superpixels, where there are
    some. A row is on disk as soon as its image is done, in ``predictions.csv.part`` until all of them are.

    Args:
        output_dir: folder of the table.
        pool: gives the image-level probability; the paper's generalized mean by default.
    """

    columns = ("image", "probability", "area_fraction")

    def __init__(self, output_dir: str, pool: Pooling | None = None) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.partial = self.path.with_name(f"{self.path.name}.part")
        self.pool = pool or Pooling()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def complete(self, engine: Engine) -> None:
        self.partial.replace(self.path)
        logger.info(f"Written: {self.path.parent}")

    def start(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write("w", [self.columns])

    def __call__(self, engine: Engine) -> None:
        rows = []
        for item in engine.state.output:
            probability = image_probability(item, self.pool)
            area = float(item["pred"].float().mean())
            rows.append((item["image"].meta["filename_or_obj"], f"{probability:.6g}", f"{area:.6g}"))
        self._write("a", rows)

    def _write(self, mode: str, rows: list[tuple]) -> None:
        with self.partial.open(mode, newline="", encoding="utf-8", errors="backslashreplace") as file:
            write_rows(file, rows)


def image_probability(item: dict, pool: Pooling) -> float:
    """Pooled ``probability``, (1, H, W), of an evaluator's output; over its ``instances`` where it has some."""
    superpixels = item.get("instances")
    return float(pool(*instances_of(item["probability"][None], None if superpixels is None else superpixels[None])))
