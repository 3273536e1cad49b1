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

"""Pictures with one pixel that is unlike the others, and TIFFs of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

__all__ = ["COLUMN", "ROW", "SIZE", "contiguous", "marked", "tiff"]

SIZE = (5, 7)  # height, width
ROW, COLUMN = 1, 4  # of the marked pixel


def marked(mark: object, ground: object, dtype: type) -> np.ndarray:
    """(H, W) or (H, W, C) of `ground`, with one pixel of `mark`."""
    array = np.broadcast_to(np.array(ground, dtype), (*SIZE, *np.shape(ground))).copy()
    array[ROW, COLUMN] = mark
    return array


def tiff(array: np.ndarray, **options: object) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, array, **options)


def contiguous(extra: str) -> dict:
    return {"planarconfig": "contig", "extrasamples": [extra]}
