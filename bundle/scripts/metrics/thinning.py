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

"""
Thinning of binary images to lines of one pixel, as MATLAB's ``bwmorph(mask, 'thin', inf)`` does it.

Guo and Hall, "Parallel thinning with two-subiteration algorithms", Comm. ACM 32(3), 1989, algorithm A1. The result is
that of ``skimage.morphology.thin``; the work is proportional to the number of pixels set and removed instead of the
size of the image times the thickness, since after the first pass only neighbours of removed pixels can change.
"""

from __future__ import annotations

import numpy as np

from scripts.runtime.compiled import compiled

__all__ = ["thin", "thin_pixels"]


def _deletion_tables() -> np.ndarray:
    """
    Which neighbourhoods lose their centre: (2, 256), one row a subiteration.

    Bit b of a neighbourhood is the neighbour x_(b+1): east first, then counter-clockwise. The centre goes if
    (G1) it has one crossing, (G2) 2 <= min(n1, n2) <= 3, and (G3) its east, or in the second subiteration its west,
    side is open.
    """
    tables = np.zeros((2, 256), dtype=np.bool_)
    for code in range(256):
        x = [bool(code >> b & 1) for b in range(8)]
        crossings = sum(not x[2 * i] and (x[2 * i + 1] or x[(2 * i + 2) % 8]) for i in range(4))
        n1 = sum(x[2 * i] or x[2 * i + 1] for i in range(4))
        n2 = sum(x[2 * i + 1] or x[(2 * i + 2) % 8] for i in range(4))
        if crossings == 1 and 2 <= min(n1, n2) <= 3:
            tables[0, code] = not ((x[1] or x[2] or not x[7]) and x[0])
            tables[1, code] = not ((x[5] or x[6] or not x[3]) and x[4])
    return tables


DELETION_TABLES = _deletion_tables()


@compiled
def _thin_pixels(pixels, stride, tables, state, codes):
    around = np.array([1, 1 - stride, -stride, -1 - stride, -1, stride - 1, stride, stride + 1])
    for pixel in pixels:
        state[pixel] = 1
    for pixel in pixels:
        code = 0
        for b in range(8):
            code |= np.int64(state[pixel + around[b]]) << b
        codes[pixel] = code

    # removed[bounds[s]:bounds[s + 1]] are the pixels that subiteration s removed.
    removed = np.empty(pixels.size, dtype=np.int64)
    before, begin, end = 0, 0, 0  # starts of the last two subiterations, and the end of the last
    step = 0
    while step < 2 or end > before:
        table = tables[step % 2]
        new_end = end
        if step < 2:
            for pixel in pixels:
                if state[pixel] == 1 and table[codes[pixel]]:
                    state[pixel] = 2
                    removed[new_end] = pixel
                    new_end += 1
        else:
            # The same subiteration last looked at these pixels two steps ago; only neighbours of what has gone since
            # can have changed their minds.
            for k in range(before, end):
                for b in range(8):
                    pixel = removed[k] + around[b]
                    if state[pixel] == 1 and table[codes[pixel]]:
                        state[pixel] = 2
                        removed[new_end] = pixel
                        new_end += 1
        for k in range(end, new_end):  # all at once: a subiteration is parallel
            pixel = removed[k]
            state[pixel] = 0
            for b in range(8):
                codes[pixel + around[b]] &= 255 ^ (1 << ((b + 4) % 8))
        before, begin, end = begin, end, new_end
        step += 1

    kept = np.empty(pixels.size - end, dtype=np.int64)
    n_kept = 0
    for pixel in pixels:
        if state[pixel] == 1:
            kept[n_kept] = pixel
            n_kept += 1
            state[pixel] = 0
    return kept


def thin_pixels(pixels: np.ndarray, stride: int, state: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """
    Thin the shape made of `pixels`.

    Args:
        pixels: int64 (n,), flat indices into an image of row length `stride`, none of them on its outermost frame.
        stride: row length of that image.
        state: scratch, uint8 of the image's size, all zero; all zero again afterwards.
        codes: scratch, uint8 of the image's size, any content.

    Returns:
        int64 (m,), the pixels that remain, in the order of `pixels`.
    """
    return _thin_pixels(pixels, stride, DELETION_TABLES, state, codes)


def thin(mask: np.ndarray) -> np.ndarray:
    """
    Thin a binary image until nothing changes; pixels beyond its frame are background.

    Args:
        mask: (H, W), non-zero is foreground.

    Returns:
        bool (H, W).

    Raises:
        ValueError: when `mask` is not two-dimensional.

    Examples:
        >>> thin(np.ones((3, 5))).astype(int)
        array([[0, 0, 0, 0, 0],
               [0, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have shape (H, W), got {mask.shape}.")
    padded = np.pad(np.asarray(mask) != 0, 1)
    scratch = np.zeros((2, padded.size), dtype=np.uint8)
    kept = thin_pixels(np.flatnonzero(padded), padded.shape[1], scratch[0], scratch[1])
    thinned = np.zeros(padded.size, dtype=bool)
    thinned[kept] = True
    return thinned.reshape(padded.shape)[1:-1, 1:-1]
