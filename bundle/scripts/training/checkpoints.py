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

"""Checkpoints: the best, the last, and where a network's weights come from. Files are complete, or not there."""

from __future__ import annotations

import io
import logging
import math
import os
import zlib
from collections.abc import MutableMapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from scripts import bundle_version
from scripts.images.originals import Originals
from scripts.metrics.area import THRESHOLDS, area_errors, threshold_by_areas
from scripts.networks.map_network import trained_as, trained_originals
from scripts.networks.weights import load_tensors, not_finite
from scripts.runtime.command_line import was_left_out
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import write_bytes
from scripts.runtime.processes import sum_over_processes
from scripts.training.included import LEARNED_FROM, is_included

__all__ = [
    "BestCheckpoint",
    "LastCheckpoint",
    "NetworkLoader",
    "is_finite",
    "original_mpp",
    "original_size",
    "read_checkpoint",
    "trained_size",
    "used_model",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)


def trained_size(path: str | PathLike, default: Sequence[int]) -> list[int]:
    """
    The size [H, W] of images in pixels that the network of a checkpoint was trained on.

    Args:
        path: of the file.
        default: where it doesn't say, or can't be read, which `NetworkLoader` reports.
    """
    size, _ = _trained(path)
    return list(size or default)


def original_size(path: str | PathLike) -> list[float] | None:
    """
    How large the images were in their files that the network of a checkpoint was trained on.

    Returns:
        Height, width and spread, see `Originals`; None where the file doesn't say, or can't be read.
    """
    _, found = _trained(path)
    return None if found is None else list(found[:3])


def original_mpp(path: str | PathLike) -> float | None:
    """Micrometres per pixel, before the resizing, of the images that the network of a checkpoint was trained on."""
    _, found = _trained(path)
    return None if found is None else found.mpp


def used_model(path: str | PathLike, shipped: str | PathLike, settings: MutableMapping[str, Any]) -> dict[str, str]:
    """
    Say which model a run uses, and take ``spatial_size`` from it unless that has been typed.

    Args:
        path: of the checkpoint.
        shipped: folder of the models that come with the bundle.
        settings: what MONAI's parser has resolved so far, and doesn't resolve again; ``$__local_refs`` in a config.

    Returns:
        ``model``: the file and what it is, for people; ``model_checksum``, by which it is known again. Nothing where
        the file can't be read, which `NetworkLoader` reports.
    """
    size = trained_size(path, ())
    if size and was_left_out("spatial_size"):
        settings["spatial_size"] = size
    file = Path(path)
    try:
        if not file.is_file():  # one would wait for what is written into a pipe
            return {}
        checksum = zlib.crc32(file.read_bytes())
        changed = datetime.fromtimestamp(file.stat().st_mtime)
    except OSError:
        return {}
    if is_included(file, shipped):
        described = f"{file.name}, which comes with version {bundle_version()} of the bundle"
    else:
        described = f"{file} of {changed:%Y-%m-%d %H:%M}"
    described += f", trained at {size[0]} x {size[1]} pixels" if size else ""
    described += f" {LEARNED_FROM}" if is_included(file, shipped) else ""
    logger.info(f"Model: {described}.")
    return {"model": described, "model_checksum": f"{checksum:08x}"}


def _trained(path: str | PathLike) -> tuple[tuple[int, int] | None, Originals | None]:
    """The images that a network was trained on, resized and in their files; None where the file doesn't say."""
    if not Path(path).is_file():  # one would wait for what is written into a pipe
        return None, None
    file = os.stat(path)
    return _read_trained(str(path), file.st_ino, file.st_mtime_ns, file.st_size)


@lru_cache(maxsize=1)
def _read_trained(path: str, *version: int) -> tuple[tuple[int, int] | None, Originals | None]:
    """Read a version of a file once; a damaged one says nothing, which `NetworkLoader` reports."""
    try:
        state = _weights(torch.load(path, weights_only=True, map_location="cpu", mmap=True))
        return trained_as(state)[1], trained_originals(state)
    except Exception:  # torch.load raises nearly anything on a damaged file
        return None, None


def _weights(content: Any) -> Any:
    """The state dict of a file that is one, or that has one under ``"model"``."""
    return content["model"] if isinstance(content, dict) and "model" in content else content


def read_checkpoint(
    path: str | PathLike, map_location: str | torch.device | None = None, setting: str = "ckpt_path"
) -> Any:
    """
    What is in a file of a state dict, or of a checkpoint.

    Args:
        path: of the file.
        map_location: see `torch.load`.
        setting: which names the file, for what is said of it.

    Raises:
        InputError: when the file is missing, damaged, or an exported model.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint '{path}'; train first, or name one by --{setting}.")
    try:
        return load_tensors(path, map_location)
    except InputError:
        raise
    except Exception as error:  # it raises nearly anything on a damaged file
        raise InputError(
            f"'{path}' is damaged, or not a checkpoint that PyTorch reads ({first_line(error)}); name another by "
            f"--{setting}."
        ) from error


class NetworkLoader:
    """
    Loads a trained network when an engine starts.

    MONAI's `CheckpointLoader` says the same of a damaged file and of another network: a traceback.

    Args:
        network: takes the weights.
        path: file of a state dict, or of a checkpoint that has one under ``"model"``.
        map_location, setting: see `read_checkpoint`.

    Raises:
        InputError: when the file is missing, damaged, of another method, of another network, or has weights that are
            not finite.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str,
        map_location: str | torch.device | None = None,
        setting: str = "ckpt_path",
    ) -> None:
        self.network = network
        self.path = path
        self.map_location = map_location
        self.setting = setting

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        content = read_checkpoint(self.path, self.map_location, self.setting)
        try:
            self.network.load_state_dict(_weights(content))
        except InputError as error:
            raise InputError(f"The checkpoint '{self.path}' can't be used here: {error}") from error
        except (RuntimeError, TypeError) as error:
            # load_state_dict gives a headline, then a line for each kind of difference
            difference = str(error).splitlines()[-1].strip()[:200]
            raise InputError(
                f"The checkpoint '{self.path}' is of another network ({difference}); give its "
                "training's settings, such as --encoder, or name one that was trained with the same network settings."
            ) from error


class BestCheckpoint:
    """
    Writes the network of an engine whenever the engine's key metric is the best so far.

    MONAI's `CheckpointSaver` removes the file of the last best before it writes, and forgets the metric over a restart.

    Of a network that can `shift` its map, a constant is added to the logits of what is written, so that 0.5 marks areas
    like those that positive images of the engine's run have in the data set: on images that it has not been trained
    on, a network trained with hard labels is sure of too little. The network itself stays as it is.

    Args:
        path: of the file.
        area_step: to which areas are rounded up, see `area_errors`.
    """

    def __init__(self, path: str | PathLike, area_step: float = 0.1) -> None:
        self.path = Path(path)
        self.area_step = area_step
        self._area_errors = torch.zeros(len(THRESHOLDS), dtype=torch.float64)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._area_errors.zero_())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        errors = sum_over_processes(self._area_errors.to(idist.device())).cpu()
        if engine.state.best_metric_epoch != engine.state.epoch:
            return
        if not errors.any():
            write_checkpoint(engine.network.state_dict(), self.path)
            return
        threshold = threshold_by_areas(errors.numpy())
        before = {name: value.clone() for name, value in engine.network.state_dict().items()}
        engine.network.shift(-float(torch.logit(torch.tensor(threshold))))
        write_checkpoint(engine.network.state_dict(), self.path)
        engine.network.load_state_dict(before)
        _tell_of_shift()

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output if hasattr(engine.network, "shift") else []:
            if "probability" not in item:  # of a trainer
                continue
            label, area = item[CommonKeys.LABEL].flatten().tolist()
            if label == 1 and not math.isnan(area):
                self._area_errors += torch.from_numpy(
                    area_errors(item["probability"].cpu().numpy(), area, self.area_step)
                )


@cache
def _tell_of_shift() -> None:
    """Once in a program, which may train several rounds."""
    logger.info(
        "The probabilities of a saved model are adjusted: at 0.5 its masks of the positive validation images come "
        "nearest to the areas that the data set states."
    )


class LastCheckpoint:
    """
    Writes what is trained at the end of a run, also of one that fails, unless its weights have become useless.

    That is ``model`` and ``optimizer``; of a trainer without an optimizer the network's state dict alone.

    Attach it before the handlers that end a failing run.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.exception_raised)

    def write(self, engine: Engine) -> None:
        if not is_finite(engine.network):
            logger.warning(f"'{self.path}' is not written: the weights are not finite.")
            return
        state, optimizer = engine.network.state_dict(), getattr(engine, "optimizer", None)
        content = state if optimizer is None else {"model": state, "optimizer": optimizer.state_dict()}
        write_checkpoint(content, self.path)

    def exception_raised(self, engine: Engine, error: BaseException) -> None:
        try:
            self.write(engine)
        except InputError as failure:  # what ended the run is the news
            logger.warning(str(failure))
        raise error


def is_finite(network: torch.nn.Module) -> bool:
    """Whether no weight is NaN or infinite."""
    return not_finite(network.state_dict()) is None


def write_checkpoint(content: Any, path: str | PathLike) -> None:
    """
    Write what `torch.load` reads with ``weights_only``, in the first process of a run alone.

    Raises:
        InputError: when it can't be written, as on a full disk; an older file is still there then.
    """
    if idist.get_rank() != 0:
        return
    buffer = io.BytesIO()  # PyTorch, writing to a full disk itself, may end the process
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())
