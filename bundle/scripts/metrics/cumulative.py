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

"""Cumulative metrics whose state is a table of counts, of one size however many images there were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.metrics import CumulativeIterationMetric

__all__ = ["CumulativeCounts"]

Images = NdarrayOrTensor | Sequence[NdarrayOrTensor]


def _as_tensor(image: NdarrayOrTensor) -> torch.Tensor:
    return image if isinstance(image, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(image))


def _as_tensors(images: Images) -> torch.Tensor | list[torch.Tensor]:
    return [_as_tensor(image) for image in images] if isinstance(images, (list, tuple)) else _as_tensor(images)


class CumulativeCounts(CumulativeIterationMetric):
    """
    Adds up integer counts over images and, when asked, over the processes of `torch.distributed`.

    MONAI's cumulative metrics keep one row an image. Here every process has exactly one row, the sum, so that memory
    does not grow, and a process that got no image at all takes part in the gathering like the others. Sums of integers
    do not depend on their order: the result is the same for any number of processes.

    A subclass implements `_compute_tensor`, which returns counts with a leading batch axis, `aggregate`, and where
    counts are more than summed, `_pool`.

    Args:
        shape: shape of the pooled counts.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)
        super().__init__()

    def __call__(self, y_pred: Images, y: Images | None = None, **kwargs: Any) -> torch.Tensor:
        """
        Add a batch.

        Args:
            y_pred: (B, 1, H, W), or a list of (1, H, W), tensors or NumPy arrays.
            y: the same; lists may hold images of different sizes.

        Returns:
            Counts of this batch.

        Raises:
            ValueError: when `y` is missing or has another number of images than `y_pred`.
        """
        if y is None or len(y_pred) != len(y):
            raise ValueError(f"y must have as many images as y_pred: {len(y_pred)}, got {0 if y is None else len(y)}.")
        if len(y_pred) == 0:
            raise ValueError("y_pred must have at least one image.")
        return super().__call__(_as_tensors(y_pred), _as_tensors(y), **kwargs)

    def _pool(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.sum(dim=0)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._buffers = [[torch.zeros(self._shape, dtype=torch.int64)]]

    def extend(self, *data: torch.Tensor) -> None:
        """Add the counts of a batch, as `_compute_tensor` returns them."""
        self._buffers[0][0] += self._pool(data[0])
        self._synced = False

    def append(self, *data: torch.Tensor) -> None:
        """Add the counts of one image."""
        self.extend(data[0][None])

    def get_buffer(self) -> torch.Tensor:
        """Pooled counts of all processes."""
        return super().get_buffer().sum(dim=0)
