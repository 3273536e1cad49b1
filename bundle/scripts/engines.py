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
from ignite.metrics import Average
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from scripts.errors import InputError

__all__ = ["AccumulatingTrainer", "MeanLoss"]


class AccumulatingTrainer(SupervisedTrainer):
    """
    `SupervisedTrainer` that steps once per `batch_size` images, gathered from the loader's smaller batches.

    The gradient is that of the mean loss over those images, a short last batch of the loader included, and a short
    last step as well. (`SupervisedTrainer` alone averages the means of the small batches, which weighs images of a
    short one more.)

    What the batch has under the names in the loss's ``inputs`` goes to it as arguments of these names.

    Leaves the losses of the images in ``state.output["image_losses"]``, (B,), and their mean in ``state.mean_loss``.

    Args:
        batch_size: images per optimiser step: a multiple of the loader's batch size, or ``"all"`` for the
            whole training set, as the paper does.
        train_data_loader: a `DataLoader` with a batch size.
        loss_function: returns one loss per image, (B,). What it takes beside prediction and target, it may name in
            ``inputs``.
        kwargs: see `SupervisedTrainer`; `accumulation_steps` is set here.

    Raises:
        InputError: when `batch_size` is not a multiple of the loader's batch size.
    """

    def __init__(
        self,
        *,
        batch_size: int | str,
        train_data_loader: DataLoader,
        **kwargs: Any,
    ) -> None:
        micro = train_data_loader.batch_size
        whole = batch_size == "all"
        if not whole and (not isinstance(batch_size, int) or batch_size < 1 or batch_size % micro):
            raise InputError(
                f"batch_size must be 'all' or a multiple of micro_batch_size, which is {micro}; got {batch_size!r}."
            )
        # fewer than the data set's with `drop_last` or a sampler
        self.images = min(len(train_data_loader.sampler), len(train_data_loader) * micro)
        steps = len(train_data_loader) if whole else batch_size // micro
        super().__init__(train_data_loader=train_data_loader, accumulation_steps=steps, **kwargs)
        self.micro_batch_size = micro
        self._per_image_loss = self.loss_function
        self.loss_function = self._weighted_loss

    def _images_in_step(self) -> int:
        """Number of images whose gradients the current step gathers."""
        position = (self.state.iteration - 1) % self.state.epoch_length
        size = self.accumulation_steps * self.micro_batch_size
        start = position // self.accumulation_steps * size
        return min(size, self.images - start)

    def _weighted_loss(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # the trainer divides by `accumulation_steps` afterwards
        inputs = getattr(self._per_image_loss, "inputs", ())
        extra = {key: self.state.batch[key] for key in inputs if key in self.state.batch}
        losses = self._per_image_loss(prediction, target, **extra)
        self.state.output["image_losses"] = losses.detach()
        self.state.mean_loss = losses.detach().mean().item()
        return losses.sum() * (self.accumulation_steps / self._images_in_step())


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
