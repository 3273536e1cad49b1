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

"""Evaluators of a network of maps: one image at a time, at the size of its file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys
from torch.utils.data import DataLoader

from scripts.data.listing import ImageList
from scripts.images.slide_parts import item_name
from scripts.networks import check_finite
from scripts.runtime.errors import first_line, input_error_of, lack_of
from scripts.runtime.values import truth_value

__all__ = ["ItemwiseEvaluator", "MapEvaluator"]

logger = logging.getLogger(__name__)


class MapEvaluator(SupervisedEvaluator):
    """
    `SupervisedEvaluator` of one process's share of the images, which takes part in the metrics even with none.

    Args:
        device: of the network.
        amp: whether the network computes in half precision on a GPU. On a CPU it doesn't: a mask should not depend on
            the machine.
        postprocessing, kwargs: see `SupervisedEvaluator`.

    Raises:
        InputError: when `amp` is neither True nor False.
    """

    def __init__(
        self, *, device: torch.device | str, amp: bool = False, postprocessing: Callable | None = None, **kwargs: Any
    ) -> None:
        truth_value("amp", amp)
        on_gpu = torch.device(device).type == "cuda"
        super().__init__(device=device, amp=amp and on_gpu, postprocessing=postprocessing, **kwargs)
        self.postprocessing = postprocessing

    def run(self, global_epoch: int = 1) -> None:
        """See `SupervisedEvaluator.run`."""
        if self.state.epoch_length:
            super().run(global_epoch)
            return
        self.state.epoch = global_epoch
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
            self.fire_event(event)


class ItemwiseEvaluator(MapEvaluator):
    """
    An evaluator of one image at a time for which an image that can't be read, mapped or saved is that image's failure.

    It is logged as an error and kept in `left_out`, whose `report_left_out` ends the run with all of them; ``output``
    and ``batch`` of the state are empty then. A lack of memory, or of room on a disk, ends the run at once.

    Args:
        val_data_loader: of batches of one, over a data set with a ``transform``.
        left_out: a list to add to; its own by default.
        kwargs: see `MapEvaluator`.
    """

    def __init__(self, *, val_data_loader: DataLoader, left_out: ImageList | None = None, **kwargs: Any) -> None:
        super().__init__(val_data_loader=val_data_loader, **kwargs)
        self.left_out = ImageList() if left_out is None else left_out
        self._mapped = False
        self.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._check)
        dataset = val_data_loader.dataset
        if not getattr(dataset, "cache_num", 0):  # what is cached has been read
            dataset.transform = LoadOrTell(dataset.transform)

    def report_left_out(self) -> None:
        """See `ImageList.report_left_out`."""
        self.left_out.report_left_out()

    def _check(self) -> None:
        self._mapped = True
        check_finite(self.state.output[CommonKeys.PRED], _file_of(self.state.batch))

    def _iteration(self, engine: SupervisedEvaluator, batchdata: Mapping[str, Any]) -> Any:
        if FAILURE in batchdata:
            return self._leave_out(batchdata[CommonKeys.IMAGE][0], batchdata[FAILURE][0])
        self._mapped = False
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:  # of a writer, which may raise anything
            if not self._mapped or lack_of(error) is not None:
                raise
            if input_error_of(error) is None and not _is_of_files(error):
                logger.exception("An image can't be finished.")
            return self._leave_out(_file_of(batchdata), first_line(error))

    def _leave_out(self, image: str, reason: str) -> list:
        problem = f"'{image}': {reason}"
        if problem not in self.left_out.left_out:  # as of all slices of a volume
            logger.error(f"Left out: {problem}")
            self.left_out.left_out.append(problem)
        self.state.batch = self.state.output = []
        return []


FAILURE = "failure"


class LoadOrTell:
    """A transform of an item that returns its image's path and why it can't be read, if it can't."""

    def __init__(self, transform: Callable) -> None:
        self.transform = transform

    def __call__(self, item: Mapping[str, Any]) -> Any:
        try:
            return self.transform(item)
        except Exception as error:  # a decoder may raise anything on a damaged file
            if lack_of(error) is not None:
                raise
            return {CommonKeys.IMAGE: item_name(item), FAILURE: f"can't be read ({first_line(error)})"}


def _is_of_files(error: BaseException | None) -> bool:
    """Whether a file couldn't be written; MONAI's SaveImage keeps but the text of what its writers raised."""
    while error is not None:
        if isinstance(error, OSError) or "suitable writer" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _file_of(batch: Mapping[str, Any]) -> str:
    meta = getattr(batch[CommonKeys.IMAGE], "meta", {})
    name = meta.get("volume", meta.get("filename_or_obj", "?"))  # of a slice its volume
    return name[0] if isinstance(name, (list, tuple)) else str(name)
