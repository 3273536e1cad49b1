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

"""Noticing a training that has gone wrong: losses that are no numbers, masks that are all empty or all full."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from scripts.runtime.errors import InputError
from scripts.training.trainer import image_losses

__all__ = ["CollapseWarning", "FiniteLoss"]

logger = logging.getLogger(__name__)
EMPTY = "the masks of all positive validation images have been empty"
FULL = "the masks of all validation images have been full"
REMEDIES = {
    EMPTY: "Check that label 1 means cancer and that areas are fractions of the image, and try another learning rate; "
    "of the paper's methods, give the area less weight (--area_weight_scale 0.1) or --constraint two_sided.",
    FULL: "Check that there are negative images and areas in the data set, and try a smaller learning rate; of the "
    "paper's methods, give the area more weight (--area_weight_scale 10) or --constraint two_sided.",
}


class FiniteLoss:
    """
    Handler that stops a training before the step when the loss of an image is NaN or infinite, and names the image.

    Expects each image's ``image_loss`` in ``state.output``, as `AccumulatingTrainer` leaves it.

    Raises:
        InputError: naming the images.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        finite = torch.isfinite(image_losses(engine.state.output)).tolist()
        if not all(finite):
            names = getattr(engine.state.batch["image"], "meta", {}).get("filename_or_obj", [])
            names = [names] if isinstance(names, str) else list(names)
            named = [f"'{name}'" for name, good in zip(names, finite, strict=False) if not good]
            raise InputError(
                f"The loss is not finite in epoch {engine.state.epoch}, for {', '.join(named) or 'an image'}. "
                "The checkpoints from before are kept. If these are few images, look at them; if they are nearly all, "
                "the training has diverged: train anew with a smaller --learning_rate and --resume False."
            )


class CollapseWarning:
    """
    Handler that warns when a network has given up: in `patience` validations in a row, and as many again, the masks of
    all positive images were empty, or those of all images full.

    Expects ``pred``, (1, H, W) of 0 and 1, and ``label``, the weak target, in each output of the evaluator.

    Args:
        patience: validations in a row.
    """

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self.counts = {EMPTY: 0, FULL: 0}
        self.areas: list[tuple[bool, float]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self.areas.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self.judge())

    def __call__(self, engine: Engine) -> None:
        self.areas += [(bool(i["label"][0] > 0.5), float(i["pred"].float().mean())) for i in engine.state.output]

    def judge(self) -> None:
        """Count one validation, and warn if it is time to."""
        positive = [area for label, area in self.areas if label]
        found = {
            EMPTY: bool(positive) and max(positive) == 0,
            FULL: bool(self.areas) and min(area for _, area in self.areas) == 1,
        }
        for what, happened in found.items():
            self.counts[what] = self.counts[what] + 1 if happened else 0
            if happened and self.counts[what] % self.patience == 0:
                logger.warning(
                    f"The training has collapsed: {what} for {self.counts[what]} validations. {REMEDIES[what]}"
                )
