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

import logging
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import MetaTensor
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils import CommonKeys
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from scripts.data.original_sizes import original_sizes
from scripts.images.originals import originals_of
from scripts.runtime.errors import InputError, is_out_of_memory
from scripts.runtime.processes import add_gradients_up, process_count, send_weights, sum_over_processes
from scripts.runtime.values import positive_number, truth_value, whole_number
from scripts.training.sampling import Batch
from scripts.training.schedule import SCHEDULES

__all__ = [
    "AccumulatingTrainer",
    "MeanLoss",
    "epoch_loss",
    "half_precision",
    "image_losses",
    "per_image",
]

logger = logging.getLogger(__name__)
TIMED = (3, 12)  # iterations, from the end of the first to that of the second, by which a training's time is foretold


class AccumulatingTrainer(SupervisedTrainer):
    """
    `SupervisedTrainer` that steps once per step of a `StepSampler`, gathered from its smaller batches and processes.

    The gradient is that of the mean loss over the step's images in all processes, a short last batch included, and a
    short last step as well. (`SupervisedTrainer` alone averages the means of the small batches, and
    `DistributedDataParallel` the means of the processes, both of which weigh images of a short one more.) All processes
    start from the weights of the first one.

    A batch that does not fit into memory goes through the network in halves, or halves of these, from then on; the
    gradient is the same, but for a network that normalises over the batch, or draws numbers (dropout). The iteration's
    events are fired when all of the batch has been through.

    With ``amp`` the network computes in half precision, forth and back, see `half_precision`, on a CPU too; weights,
    losses and steps stay float32.

    What the batch has under the names in the loss's ``inputs`` goes to it as arguments of these names. A loss with a
    ``teacher_decay`` has a teacher: an exponential average of the network's weights over the steps, which keeps that
    much of itself at each (Tarvainen and Valpola, NeurIPS 2017). Its map (B, 1, H, W) of the same images is the
    ``ranking`` that such a loss is given whenever it ``needs_ranking``, unless the batch has one already; it is 0 where
    the loss has a method ``ranks`` and that says False of an image's target. Where the
    batch has a ``window`` of each image, the network is shown that alone then, the teacher the whole image; the loss is
    told what was ``seen``.

    A network that can ``calibrate`` itself on training images does so before the first step; one with ``learns_from``
    is told how large the images are in their files.

    The mean loss over an epoch is its key metric, ``epoch_loss``, the lowest the best. A training that will take more
    than an hour says so at its beginning.

    Leaves in ``state.output`` an item for each image, as MONAI does when it decollates: ``image``, ``label``, ``pred``,
    its own ``image_loss``, and ``loss``, the mean of the batch. ``state.mean_loss`` is that mean; of many processes
    that over the last step's images in all of them.

    What its result depends on beside its parts is named in `recorded`, see `record`.

    Args:
        train_data_loader: a `DataLoader` with a `StepSampler` as its ``batch_sampler``.
        loss_function: returns one loss per image, (B,). What it takes beside prediction and target, it may name in
            ``inputs``.
        lr_schedule: one of `SCHEDULES`, or what makes a schedule of the optimiser and of the number of all steps. It
            moves on at every step.
        max_norm: to which a step's gradient is cut; None leaves it as it is.
        max_epochs: number of epochs, 1 or more.
        amp: see above.
        kwargs: see `SupervisedTrainer`; ``decollate`` is not needed.

    Raises:
        InputError: for an unknown schedule, a `max_norm` that is not above 0, and a loss with weights for another
            number of maps than the network gives; and by `run`, when a single image does not fit into memory.
    """

    recorded = ("mixed_precision", "lr_schedule", "max_norm")

    def __init__(
        self,
        *,
        train_data_loader: DataLoader,
        max_epochs: int,
        lr_schedule: str | Callable[[torch.optim.Optimizer, int], LRScheduler] = "constant",
        max_norm: float | None = None,
        amp: bool = False,
        **kwargs: Any,
    ) -> None:
        whole_number("max_epochs", max_epochs)
        truth_value("amp", amp)
        if max_norm is not None:
            positive_number("max_norm", max_norm)
        if not callable(lr_schedule) and lr_schedule not in SCHEDULES:
            raise InputError(f"lr_schedule must be one of {', '.join(SCHEDULES)}, got '{lr_schedule}'.")
        if hasattr(kwargs["loss_function"], "check_maps") and hasattr(kwargs["network"], "map_names"):
            kwargs["loss_function"].check_maps(len(kwargs["network"].map_names))
        warm_up = getattr(kwargs["loss_function"], "warm_up", 0)
        if warm_up >= max_epochs:
            more = "more --steps" if max_epochs == 1 else "more --steps or a smaller --warm_up"
            logger.warning(f"Too short a training for areas to be used: warm_up takes all of it. Give {more}.")
        sampler = train_data_loader.batch_sampler
        self._batches = sampler.plan()
        half = half_precision(torch.device(kwargs["device"]))
        # MONAI's amp is the one with a scaled loss
        kwargs = {**epoch_loss(), **kwargs, "decollate": False, "amp": amp and half == torch.float16}
        super().__init__(train_data_loader=train_data_loader, max_epochs=max_epochs, **kwargs)
        self.mixed_precision = amp
        self._autocast = {"enabled": amp, "dtype": half} | self.amp_kwargs
        self._step_loss = 0.0
        self._fitting: int | None = None  # images that go through the network at once; None: all of a batch
        for source in (sampler, train_data_loader.dataset, kwargs.get("loss_function")):
            if hasattr(source, "set_epoch"):
                self.add_event_handler(Events.EPOCH_STARTED, lambda _, to=source: to.set_epoch(self.state.epoch))
        steps = self.state.max_epochs * sampler.steps
        self.lr_scheduler = SCHEDULES.get(lr_schedule, lr_schedule)(self.optimizer, steps)
        self.lr_schedule = lr_schedule
        self.max_norm = max_norm
        decay = getattr(self.loss_function, "teacher_decay", None)
        self.teacher = None if decay is None else _teacher(self.network, decay)
        self.add_event_handler(Events.STARTED, self._begin)
        self._timed_from: float | None = None
        for iteration in TIMED:
            self.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), self._foretell)

    def _begin(self, engine: SupervisedTrainer) -> None:
        if hasattr(self.network, "calibrate"):
            self.network.calibrate(self._samples())
        if hasattr(self.network, "learns_from"):
            items = getattr(self.data_loader.dataset, "data", ())
            self.network.learns_from(originals_of(original_sizes(items), [item.get("mpp") for item in items]))
        send_weights(self.network)
        if self.teacher is not None and self.teacher.n_averaged == 0:
            self.teacher.update_parameters(self.network)

    def _foretell(self, engine: SupervisedTrainer) -> None:
        now = time.monotonic()
        if self.state.iteration == TIMED[0]:
            self._timed_from = now
        elif self._timed_from is not None:  # not resumed between the two
            left = self.state.max_epochs * self.state.epoch_length - self.state.iteration
            self._tell_hours(left * (now - self._timed_from) / (TIMED[1] - TIMED[0]) / 3600)

    def _tell_hours(self, hours: float) -> None:
        if hours > 1:
            logger.info(
                f"This training will take about {hours:.1f} hours, and validation; fewer epochs (--max_epochs, of "
                "recommended.json --steps) or a smaller --spatial_size shorten it."
            )

    def _samples(self, images: int = 96, batch_size: int = 16) -> Iterator[torch.Tensor]:
        """Batches of so many training images at most, from all over the list."""
        dataset = self.data_loader.dataset
        chosen = range(0, len(dataset), max(1, len(dataset) // images))[:images]
        for start in range(0, len(chosen), batch_size):
            some = [_plain(dataset[i][CommonKeys.IMAGE]) for i in chosen[start : start + batch_size]]
            yield torch.stack(some).to(self.state.device)

    def _iteration(self, engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
        index = (self.state.iteration - 1) % self.state.epoch_length
        batch = self._batches[index]
        image, label, *_ = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        names = getattr(self.loss_function, "inputs", ())
        given = {name: _plain(batchdata[name]) for name in names if name in batchdata}
        extra = {name: value.to(self.state.device, non_blocking=self.non_blocking) for name, value in given.items()}

        self.network.train()
        if index == 0 or self._batches[index - 1].ends_step:
            self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        prediction, losses = self._accumulate(_plain(image), _plain(label), extra, batch)
        if process_count() == 1 or not hasattr(self.state, "mean_loss"):
            self.state.mean_loss = losses.mean().item()
        items = {CommonKeys.IMAGE: image, CommonKeys.LABEL: label, CommonKeys.PRED: prediction}
        self.state.output = per_image(losses, items)
        for event in ("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED"):
            self.fire_event(IterationEvents[event])
        if process_count() > 1:
            self._join_processes(losses, batch)
        if batch.ends_step:
            self._step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _accumulate(
        self, image: torch.Tensor, label: torch.Tensor, extra: Mapping[str, Any], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of a batch to that of its step; predictions (B, ...), and losses of images that count."""
        done: list[tuple[torch.Tensor, torch.Tensor]] = []
        start = 0
        while start < len(image):
            part = slice(start, start + (self._fitting or len(image)))
            some = {name: value[part] for name, value in extra.items()}
            counted = max(0, min(batch.counted - start, len(image[part])))
            result = self._forward_and_backward(image[part], label[part], some, counted, batch.images_in_step)
            if result is None:  # no frame of the failed attempt is alive here, nor are its tensors
                self._make_room(image[part])
            else:
                done.append(result)
                start = part.stop
        predictions, losses = zip(*done, strict=True)
        return torch.cat(predictions), torch.cat(losses)

    def _forward_and_backward(
        self, image: torch.Tensor, label: torch.Tensor, extra: Mapping[str, Any], counted: int, images_in_step: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None when they don't fit into memory: then the gradient is what it was."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        before = [p.grad for p in parameters]
        for p in parameters:  # so that a backward pass that fails half-way leaves nothing behind
            p.grad = None
        try:
            with torch.autocast(image.device.type, **self._autocast):
                windows, extra = extra.get("window"), {k: v for k, v in extra.items() if k != "window"}
                is_ranked = "ranking" in extra or (self.teacher is not None and self.loss_function.needs_ranking)
                if "ranking" not in extra and is_ranked:
                    extra["ranking"] = self._teachers_map(image, label)
                if windows is None or not is_ranked:
                    prediction = self.inferer(image, self.network)
                else:
                    prediction = _in_windows(lambda part: self.inferer(part, self.network), image, windows)
                    extra["seen"] = _in_windows(lambda part: torch.ones_like(part[:, :1]), image, windows) > 0
                losses = self.loss_function(prediction, label, **extra)[:counted]
                loss = losses.sum() / images_in_step
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        except (RuntimeError, MemoryError) as error:
            for p, gradient in zip(parameters, before, strict=True):
                p.grad = gradient
            if not is_out_of_memory(error):
                raise
            return None
        for p, gradient in zip(parameters, before, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else gradient.add_(p.grad)
        return prediction.detach(), losses.detach()

    @torch.no_grad()
    def _teachers_map(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.loss_function, "ranks"):
            return self.inferer(image, self.teacher)
        ranked = self.loss_function.ranks(label)
        ranking = image.new_zeros(len(image), 1, *image.shape[2:])
        if ranked.any():
            ranking[ranked] = self.inferer(image[ranked], self.teacher).to(ranking.dtype)
        return ranking

    def _make_room(self, image: torch.Tensor) -> None:
        """Halve what goes through the network at once."""
        count, size = len(image), "x".join(map(str, image.shape[2:]))
        if count == 1:
            raise InputError(
                f"A single image of {size} pixels does not fit into the memory of {image.device} in training; give a "
                "smaller --spatial_size, --amp True, or another --device, and check that nothing else uses it."
            )
        self._fitting = count // 2
        logger.warning(
            f"{count} images of {size} pixels do not fit into the memory of {image.device}: continuing with "
            f"{self._fitting} at once; the steps stay the same (--micro_batch_size {self._fitting} saves the attempt)."
        )
        if image.is_cuda:
            torch.cuda.empty_cache()

    def _step(self) -> None:
        if self.max_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.lr_scheduler.step()
        if self.teacher is not None:
            self.teacher.update_parameters(self.network)

    def _join_processes(self, losses: torch.Tensor, batch: Batch) -> None:
        """Once a step: gradients are added up, and so are the losses."""
        self._step_loss = self._step_loss + losses.sum()
        if batch.ends_step:
            add_gradients_up(self.network)
            self.state.mean_loss = sum_over_processes(self._step_loss).item() / batch.images_in_step
            self._step_loss = 0.0


def _teacher(network: torch.nn.Module, decay: float) -> AveragedModel:
    """The network's average over the steps, buffers included, which no optimiser trains."""
    teacher = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return teacher.eval().requires_grad_(False)


def _in_windows(
    network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, windows: torch.Tensor
) -> torch.Tensor:
    """Maps (B, M, H, W) of a network that is shown but a window (top, left, height, width) of each image; 0 outside."""
    places = [(slice(top, top + height), slice(left, left + width)) for top, left, height, width in windows.tolist()]
    parts = network(torch.stack([one[:, rows, columns] for one, (rows, columns) in zip(image, places, strict=True)]))
    maps = parts.new_zeros(*parts.shape[:2], *image.shape[2:])
    for index, (rows, columns) in enumerate(places):
        maps[index, :, rows, columns] = parts[index]
    return maps


def half_precision(device: torch.device) -> torch.dtype:
    """
    What a device computes in with mixed precision.

    Returns:
        bfloat16, which has the range of float32: no gradient vanishes, no loss need be scaled. float16 for a GPU
        without it, which is one before NVIDIA's Ampere.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def per_image(
    losses: torch.Tensor, items: Mapping[str, Sequence[torch.Tensor]] | None = None
) -> list[dict[str, torch.Tensor]]:
    """
    A trainer's output as MONAI's handlers take it: a dictionary for each image.

    Args:
        losses: (B,).
        items: what else is known of each image, by its name.
    """
    mean = losses.mean()
    return [
        {CommonKeys.LOSS: mean, "image_loss": loss, **{name: value[i] for name, value in (items or {}).items()}}
        for i, loss in enumerate(losses)
    ]


def image_losses(output: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """The losses (B,) of the images in a trainer's output."""
    return torch.stack([item["image_loss"] for item in output]) if output else torch.zeros(0)


def _plain(value: Any) -> Any:
    """Without MONAI's record of where it is from, which networks and losses have no use for."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def epoch_loss() -> dict[str, Any]:
    """What makes the mean loss over an epoch a trainer's key metric, the lowest the best: arguments of its class."""
    return {"key_train_metric": {"epoch_loss": MeanLoss()}, "metric_cmp_fn": operator.lt}


class MeanLoss(Average):
    """
    Mean loss over the images of an epoch, whatever the sizes of its batches; NaN when that of an image is.

    Args:
        losses: from an engine's output to the losses of its images, (B,); an `AccumulatingTrainer`'s by default.
    """

    def __init__(self, losses: Callable[[Any], torch.Tensor] = image_losses) -> None:
        super().__init__(output_transform=lambda output: losses(output).unsqueeze(1))

    def compute(self) -> float:
        return float(super().compute())
