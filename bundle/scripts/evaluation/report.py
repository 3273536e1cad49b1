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

"""Scores of every image that an evaluator sees, and their report in numbers and pictures."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from scripts.evaluation.figures import Example, draw_curves, draw_examples, render
from scripts.evaluation.predictions import image_probability
from scripts.evaluation.scores import (
    ENOUGH,
    ImageScores,
    Thresholds,
    baseline_table,
    choose_thresholds,
    is_rough,
    score_image,
    summarise,
    volume_dice,
)
from scripts.images.colours import ToRGB
from scripts.images.loading import load_image
from scripts.images.slide_parts import source_of
from scripts.losses.pooling import Pooling
from scripts.metrics import BoundaryFMeasure, PixelAveragePrecision
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing, write_rows
from scripts.runtime.processes import gather, process_rank, share, union
from scripts.runtime.values import fraction

__all__ = ["EvaluationReport", "ScoreCollector"]

NOT_IN_TABLE = ("disc_f", "f_by_threshold", "area_errors", "volume")
logger = logging.getLogger(__name__)


class ScoreCollector:
    """
    Scores every image that an evaluator sees.

    Expects in each output: ``probability``, (1, H, W) at the size of the truth; ``label``, the weak target;
    ``truth``, (1, H, W), where it is known; and ``instances``, (1, H, W), the superpixels where there are some. In the
    batch ``tissue`` of a picture mapped in tiles, see `image_probability`.

    Args:
        threshold: probability from which on a pixel counts as positive.
        pool: gives the image-level probability; the paper's generalized mean by default.
        area_step: to which areas are rounded up.

    Raises:
        InputError: when the threshold is no fraction.
    """

    def __init__(self, threshold: float = 0.5, pool: Pooling | None = None, area_step: float = 0.1) -> None:
        fraction("threshold", threshold)
        self.area_step = area_step
        self.threshold = threshold
        self.pool = pool or Pooling()
        self.scores: list[ImageScores | None] = []  # None: an image that was left out

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def all_scores(self) -> list[ImageScores]:
        """Those of all processes, in the order of the images."""
        return [scores for scores in gather(self.scores) if scores is not None]

    def __call__(self, engine: Engine) -> None:
        if not engine.state.output:
            self.scores.append(None)
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            truth = item.get("truth")
            self.scores.append(
                score_image(
                    image=str(item["image"].meta["filename_or_obj"]),
                    label=int(item["label"][0]),
                    image_probability=image_probability(item, self.pool, source.get("tissue")),
                    probability=np.asarray(item["probability"].cpu())[0],
                    truth=None if truth is None else np.asarray(truth.cpu())[0] > 0.5,
                    threshold=self.threshold,
                    volume=item["image"].meta.get("volume"),
                    area=None if item["label"][1].isnan() else float(item["label"][1]),
                    area_step=self.area_step,
                )
            )


class EvaluationReport(ScoreCollector):
    """
    Writes what an evaluation found: numbers, pictures, and a summary on the screen.

    ``metrics.json``, ``metrics_per_image.csv``; of slices also ``metrics_per_volume.csv``; ``examples.png`` (the best,
    median and worst positives and the worst negative, by F-measure, or by probability where some image has no mask),
    and, where all have one, ``curves.png``; both in TensorBoard as well. The numbers are in ``state.metrics`` too, for
    handlers that come after.

    Args:
        output_dir: folder of the files.
        split: name of the split, noted in ``metrics.json``.
        calibration: collector that has seen the validation images, on which thresholds are chosen; it need not have
            where these are the split.
        summary_writer: of TensorBoard.
        threshold, pool, area_step: see `ScoreCollector`.
        spatial_size, model: noted in ``metrics.json``: height and width of the network's images, see `used_model`.
    """

    def __init__(
        self,
        output_dir: str,
        split: str,
        calibration: ScoreCollector,
        summary_writer: SummaryWriter,
        threshold: float = 0.5,
        pool: Pooling | None = None,
        area_step: float = 0.1,
        spatial_size: Sequence[int] | None = None,
        model: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(threshold, pool, area_step)
        self.output_dir = Path(output_dir)
        self.split = split
        self.model = dict(model or {})
        self.spatial_size = None if spatial_size is None else list(spatial_size)
        self.calibration = calibration
        self.summary_writer = summary_writer
        self.boundary = BoundaryFMeasure("all")
        self.pixels = PixelAveragePrecision()
        self.maps = Path(tempfile.mkdtemp())  # memory must not grow with the images
        weakref.finalize(self, shutil.rmtree, self.maps, ignore_errors=True)

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
            maps = {key: np.asarray(item[key].cpu())[0] for key in ("probability", "truth") if key in item}
            if "truth" in maps:
                maps["truth"] = maps["truth"] > 0.5
            if "picture" in source:  # a slice: its file is a whole volume
                maps["picture"] = np.asarray(source["picture"].cpu())
            elif "part" in item["image"].meta:  # of a slide, to be read again
                maps["part"] = np.asarray(item["image"].meta["part"])
            np.savez_compressed(self._maps_file(position), **maps)

    def write(self, engine: Engine) -> None:
        gathered = gather(self.scores)
        scores = [s for s in gathered if s is not None]
        if {s.label for s in scores} != {0, 1}:
            raise InputError(f"The split '{self.split}' can't be scored: no image of one of the classes could be used.")
        metrics = {"split": self.split, "images": len(scores), **self.model}
        metrics |= {} if self.spatial_size is None else {"spatial_size": self.spatial_size}
        calibrating = scores if self.split == "validation" else self.calibration.all_scores()
        thresholds, chosen_on = self._thresholds(calibrating)
        metrics |= summarise(scores, thresholds)
        metrics |= {} if thresholds.image is None else {"calibration_images": chosen_on}
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
        # after the tables: a picture is the last thing that may fail
        written += self._draw(gathered, metrics.get("px_ap"))
        if process_rank() > 0:
            return
        shown = (
            "auc",
            "accuracy",
            "ods",
            "ois",
            "boundary_ap",
            "px_ap",
            "border_recall",
            "inner_recall",
            "dice_per_volume",
        )
        rest = "  ".join(f"{name} {metrics[name]:.3f}" for name in shown if name in metrics)
        of = f", by {self.model['model']}" if self.model else ""
        logger.info(f"{self.split}, {len(scores)} images{of}\n{baseline_table(metrics)}\n{rest}")
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
            columns = [f.name for f in fields(ImageScores) if f.name not in NOT_IN_TABLE]
            write_rows(file, [columns, *([getattr(s, name) for name in columns] for s in scores)])
        with replacing(written[0]) as file:
            json.dump({k: None if v != v else v for k, v in metrics.items()}, file, indent=4)  # JSON has no NaN
        return written

    def _thresholds(self, scores: list[ImageScores]) -> tuple[Thresholds, int]:
        """Chosen on the validation images, and their number; none where the data set has none of both classes."""
        if {s.label for s in scores} == {0, 1}:
            thresholds = choose_thresholds(scores)
            if is_rough(len(scores)):
                logger.warning(
                    f"The threshold of a yes, {thresholds.image:.3g}, is rough: {len(scores)} validation images chose "
                    f"it; with {ENOUGH} or more it would be surer."
                )
            return thresholds, len(scores)
        logger.warning(
            "There are no validation images to choose thresholds on: accuracy and the scores at the best threshold are "
            "left out."
        )
        return Thresholds(None, None), 0

    def _draw(self, scores: list[ImageScores | None], px_ap: float | None) -> list[Path]:
        """Draw the examples, and the curves where there is a score of all pixels."""
        examples = self._examples(scores, by_masks=px_ap is not None)
        curves = None if px_ap is None else (self.boundary.scores(), self.pixels.curve(), px_ap)
        if process_rank() > 0:
            return []
        figures = {} if curves is None else {"curves": draw_curves(*curves)}
        if examples:
            figures["examples"] = draw_examples(examples)
        paths = []
        for name, figure in figures.items():
            picture = render(figure, dpi=130)
            paths.append(self.output_dir / f"{name}.png")
            with replacing(paths[-1], binary=True) as file:
                Image.fromarray(picture).save(file, "PNG")
            self.summary_writer.add_image(f"{self.split}/{name}", picture, dataformats="HWC")
        self.summary_writer.flush()
        return paths

    def _examples(self, scores: list[ImageScores | None], by_masks: bool) -> list[Example]:
        """The images to show; the map of each is with the process that has made it."""
        chosen = _choose_examples(scores, by_masks)
        places = {position: place for place, position in enumerate(share(range(len(scores))))}
        own = {
            title: self._example(title, scores[position], places[position], by_masks)
            for title, position in chosen.items()
            if position in places
        }
        examples = union({title: example for title, example in own.items() if example is not None})
        return [examples[title] for title in chosen if title in examples]

    def _example(self, title: str, scores: ImageScores, place: int, by_masks: bool) -> Example | None:
        maps = np.load(self._maps_file(place))
        try:
            source = source_of(json.loads(str(maps["part"]))) if "part" in maps else scores.image
            colours = maps["picture"] if "picture" in maps else np.asarray(ToRGB()(load_image(source)))
        except Exception as error:  # it could be read before, and was scored
            logger.warning(f"'{scores.image}' can't be shown ({first_line(error)}).")
            return None
        image, probability = (
            picture.swapaxes(0, 1)  # from MONAI's (W, H) to what is seen
            for picture in (np.moveaxis(colours, 0, -1), maps["probability"])
        )
        truth = maps["truth"].T if "truth" in maps else None
        score = f"F {scores.f_measure:.2f}" if by_masks else f"probability {scores.probability:.2f}"
        title = f"{title}, {score}\n{Path(scores.image).name}"
        return Example(title, image, truth, probability, probability >= self.threshold)

    def _maps_file(self, position: int) -> Path:
        return self.maps / f"{position}.npz"


def _choose_examples(scores: list[ImageScores | None], by_masks: bool) -> dict[str, int]:
    """Titles and positions of the images to show, by masks where all images have one."""
    used = [(position, one) for position, one in enumerate(scores) if one is not None]
    if by_masks:
        ranked = sorted(used, key=lambda item: item[1].f_measure)
    else:  # how sure the network is of the label
        ranked = sorted(used, key=lambda item: abs(1 - item[1].label - item[1].probability))
    positives, negatives = ([position for position, one in ranked if one.label == label] for label in (1, 0))
    chosen = {"best": positives[-1], "median": positives[len(positives) // 2], "worst": positives[0]}
    return chosen | {"worst negative": negatives[0]}
