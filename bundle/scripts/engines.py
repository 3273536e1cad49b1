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

"""Training whose every step is the exact gradient over many images, however few fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from torch.utils.data import DataLoader

from scripts.processes import add_gradients_up, process_count, send_weights, sum_over_processes
from scripts.sampling import Batch

__all__ = ["AccumulatingTrainer", "MeanLoss", "PartialEvaluator"]


class AccumulatingTrainer(SupervisedTrainer):
    """
    `SupervisedTrainer` that steps once per step of a `StepSampler`, gathered from its smaller batches and processes.

    The gradient is that of the mean loss over the step's images in all processes, a short last batch included, and a
    short last step as well. (`SupervisedTrainer` alone averages the means of the small batches, and
    `DistributedDataParallel` the means of the processes, both of which weigh images of a short one more.) All processes
    start from the weights of the first one.

    What the batch has under the names in the loss's ``inputs`` goes to it as arguments of these names.

    Leaves the losses of the images in ``state.output["image_losses"]``, (B,), and their mean in ``state.mean_loss``: of
    many processes that over the last step's images in all of them.

    Args:
        train_data_loader: a `DataLoader` with a `StepSampler` as its ``batch_sampler``.
        loss_function: returns one loss per image, (B,). What it takes beside prediction and target, it may name in
            ``inputs``.
        kwargs: see `SupervisedTrainer`; `accumulation_steps` is set here.
    """

    def __init__(self, *, train_data_loader: DataLoader, **kwargs: Any) -> None:
        sampler = train_data_loader.batch_sampler
        self._batches = sampler.plan()
        # batches of the first step; later ones have as many, but perhaps the last, at whose end there is a step anyway
        steps = 1 + next((i for i, batch in enumerate(self._batches) if batch.ends_step), 0)
        super().__init__(train_data_loader=train_data_loader, accumulation_steps=steps, **kwargs)
        self._per_image_loss = self.loss_function
        self.loss_function = self._weighted_loss
        self._step_loss = 0.0
        for source in (sampler, train_data_loader.dataset):
            if hasattr(source, "set_epoch"):
                self.add_event_handler(Events.EPOCH_STARTED, lambda _, to=source: to.set_epoch(self.state.epoch))
        self.add_event_handler(Events.STARTED, lambda _: send_weights(self.network))
        if process_count() > 1:
            self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda _: self._join_processes())

    def _batch(self) -> Batch:
        """Place of the current batch in the epoch."""
        return self._batches[(self.state.iteration - 1) % self.state.epoch_length]

    def _weighted_loss(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # the trainer divides by `accumulation_steps` afterwards
        batch = self._batch()
        inputs = getattr(self._per_image_loss, "inputs", ())
        extra = {key: self.state.batch[key] for key in inputs if key in self.state.batch}
        losses = self._per_image_loss(prediction, target, **extra)[: batch.counted]
        self.state.output["image_losses"] = losses.detach()
        if process_count() == 1 or not hasattr(self.state, "mean_loss"):
            self.state.mean_loss = losses.detach().mean().item()
        return losses.sum() * (self.accumulation_steps / batch.images_in_step)

    def _join_processes(self) -> None:
        """Once a step: gradients are added up, and so are the losses."""
        batch = self._batch()
        self._step_loss = self._step_loss + self.state.output["image_losses"].sum()
        if batch.ends_step:
            add_gradients_up(self.network)
            self.state.mean_loss = sum_over_processes(self._step_loss).item() / batch.images_in_step
            self._step_loss = 0.0


class PartialEvaluator(SupervisedEvaluator):
    """`SupervisedEvaluator` of one process's share of the images, which takes part in the metrics even with none."""

    def run(self, global_epoch: int = 1) -> None:
        """See `SupervisedEvaluator.run`."""
        if self.state.epoch_length:
            super().run(global_epoch)
            return
        self.state.epoch = global_epoch
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
            self.fire_event(event)


class MeanLoss(Average):
    """
    Mean loss over the images of an epoch, whatever the sizes of its batches; NaN when that of an image is.

    Args:
        image_losses: from an engine's output to the losses of its images, (B,); an `AccumulatingTrainer`'s by default.
    """

    def __init__(self, image_losses: Callable[[Any], torch.Tensor] = itemgetter("image_losses")) -> None:
        super().__init__(output_transform=lambda output: image_losses(output).unsqueeze(1))

    def compute(self) -> float:
        return float(super().compute())
