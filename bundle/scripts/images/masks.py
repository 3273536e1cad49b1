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

"""Where a mask is positive; of pictures of the usual kinds without PyTorch, whose import takes seconds."""

from __future__ import annotations

from os import PathLike

import numpy as np

from scripts.images.pictures import is_plain, read_picture

__all__ = ["load_positive"]


def load_positive(path: str | PathLike) -> np.ndarray:
    """Where a mask is positive, (1, W, H): what `load_mask` reads, which raises the same."""
    if not is_plain(path):
        from scripts.images.loading import load_mask

        return np.asarray(load_mask(path)) > 0
    pixels = read_picture(path)
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    has_alpha = pixels.shape[-1] in (2, 4)
    positive = (pixels[..., :-1] if has_alpha else pixels).max(axis=-1) > 0
    return (positive & (pixels[..., -1] > 0) if has_alpha else positive).T[np.newaxis]
