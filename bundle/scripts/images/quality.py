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

"""What of a slide's tissue is of no use: ink of pens, and what is out of focus, by rules that slides.md measures."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, laplace
from skimage.filters import gaussian
from skimage.transform import resize_local_mean

from scripts.images.slide import Slide, SlideView
from scripts.runtime.errors import InputError

__all__ = ["KINDS", "Focus", "check_kinds", "find_blur", "find_pen", "leave_out"]

KINDS = ("pen", "blur")
# Lengths are in micrometres.
INK_DETAIL = 8.0  # nuclei are as dark as ink, the mean of a few is not
NARROWEST_INK = 50.0  # of a pen's line; what is as dark or red and narrower is tissue
INK_EDGE = 16.0  # around ink, where it is pale
DARKEST = 1 / 255
FOCUS_MPP = 1.0  # micrometres per pixel at which sharpness is measured
PATCH = 128  # pixels of a side in which it is measured
LEAST_PATCH = 32
MOST_PATCHES = 1024  # of a slide: more would take longer than the rest of what is read before it is mapped
HALF = 0.5  # of a patch that must be tissue
COARSE = 2.0  # sigma in pixels, of the detail that a picture out of focus has left
FLAT = 4e-6  # mean square of its gradient, below which nothing can be said: half a grey level of 255 per pixel
SHARPEST, PART = 0.9, 0.1  # of the slide's sharpness, the quantile, and the part of it that is blurred
BLURRED, SHARP = 2.0, 3.0  # sharpness that is out of focus, or in focus, on any slide


def check_kinds(kinds: Collection[str]) -> list[str]:
    """Raises InputError unless it is a list of what can be left out."""
    known = isinstance(kinds, (list, tuple)) and all(kind in KINDS for kind in kinds)
    if not known:
        raise InputError(f"leave_out must be a list of {' and '.join(KINDS)}, or []; got {kinds!r}.")
    return list(kinds)


def leave_out(
    tissue: np.ndarray, overview: np.ndarray, view: SlideView, kinds: Collection[str]
) -> tuple[np.ndarray, dict[str, float]]:
    """
    Tissue without what is of no use.

    Args:
        tissue: (H, W) bool, in the overview.
        overview: (H, W, 3) in 0..1.
        view: that the overview is.
        kinds: of `KINDS`.

    Returns:
        (H, W) bool, and the share of the tissue that was left out as each of the kinds; none without tissue.
    """
    all_of_it, kept, shares = tissue.sum(), tissue, {}
    for kind in kinds:
        found = find_pen(overview, math.prod(view.mpp) ** 0.5) if kind == "pen" else find_blur(view.slide, kept)
        if all_of_it:
            shares[kind] = float((kept & found).sum() / all_of_it)
        kept = kept & ~found
    return kept, shares


def find_pen(overview: np.ndarray, mpp: float) -> np.ndarray:
    """
    Ink of a pen, by colours that haematoxylin and eosin don't have in a line's width.

    These absorb green light most. Blue ink absorbs more of red, green ink more of red and blue; red ink nearly as much
    of blue as of green, but hardly red; black and dark blue ink are darker than nuclei on an average of 8 micrometres.
    Pale ink of the colour of a stain is not found, nor what is narrower than 50 micrometres.

    Args:
        overview: (H, W, 3) in 0..1, with some glass, by whose colour it is corrected.
        mpp: micrometres per pixel.

    Returns:
        (H, W) bool.
    """
    factor = min(1.0, 2 * mpp / INK_DETAIL)
    small = resize_local_mean(overview, tuple(max(1, round(n * factor)) for n in overview.shape[:2]), channel_axis=-1)
    mpp /= factor
    smooth = gaussian(small, INK_DETAIL / 2 / mpp, channel_axis=-1)
    white = np.quantile(smooth, 0.99, axis=(0, 1))
    red, green, blue = -np.log((smooth / np.maximum(white, 0.5)).clip(DARKEST, 1)).transpose(2, 0, 1)
    is_blue = (red > 1.2 * green) & (red > 0.5)
    is_green = (np.minimum(red, blue) > 1.08 * green) & (np.minimum(red, blue) > 0.35)
    is_red = (blue > 0.65 * green) & (red < 0.4 * green) & (green > 1.2)
    is_dark = (red > 1.7) | (np.minimum(np.minimum(red, green), blue) > 1.1)
    ink = np.pad(is_blue | is_green | is_red | is_dark, 1, mode="edge")  # it may go on beyond the overview
    core = distance_transform_edt(ink) >= NARROWEST_INK / 2 / mpp
    if not core.any():
        return np.zeros(overview.shape[:2], bool)
    lines = (distance_transform_edt(~core) <= (NARROWEST_INK / 2 + INK_EDGE) / mpp)[1:-1, 1:-1]
    return _stretched(lines, overview.shape[:2])


class Focus:
    """
    How sharp a slide is, and from where on it is out of focus.

    Sharpness is the variance of the Laplacian over the mean square of the gradient that is left after a Gaussian of 2
    micrometres: of what detail there is, how much is fine. So smooth tissue, which has little of both, is not blurred.
    It is measured at 1 micrometre per pixel, or the slide's own resolution where this is coarser.

    Args:
        slide: open.
    """

    def __init__(self, slide: Slide) -> None:
        self.view = slide.at(max(FOCUS_MPP, slide.mpp_x, slide.mpp_y))

    def at(self, x: float, y: float) -> float:
        """Sharpness around a place, of which 0 and 1 are the slide's borders; NaN where nothing can be said."""
        side = min(PATCH, self.view.width, self.view.height)
        if side < LEAST_PATCH:
            return math.nan
        left, top = (
            min(max(0, round(part * n - side / 2)), n - side)
            for part, n in ((x, self.view.width), (y, self.view.height))
        )
        return sharpness(self.view.read(top, top + side, left, left + side).mean(axis=2))

    @staticmethod
    def least(values: Sequence[float] | np.ndarray) -> float:
        """
        The sharpness below which a slide of these is out of focus: a tenth of its best, but 2 at least and 3 at most.

        Examples:
            >>> [Focus.least(values) for values in ([60.0] * 9, [25.0] * 9, [1.0] * 9, [])]
            [3.0, 2.5, 2.0, 2.0]
        """
        known = np.asarray(values, float)[np.isfinite(values)]
        return float(np.clip(PART * np.quantile(known, SHARPEST), BLURRED, SHARP)) if known.size else BLURRED


def sharpness(grey: np.ndarray) -> float:
    """Of a patch (H, W), see `Focus`; NaN where there is nothing in it."""
    coarse = np.sum(np.square(np.gradient(gaussian_filter(grey, COARSE))), axis=0).mean()
    return float(laplace(grey).var() / coarse) if coarse >= FLAT else math.nan


def find_blur(slide: Slide, tissue: np.ndarray) -> np.ndarray:
    """
    Tissue out of focus, see `Focus`, in patches of 128 micrometres, of large slides in one of every so many.

    Where nothing can be said it counts as what is nearest.

    Args:
        slide: open.
        tissue: (H, W) bool, in an overview of it.

    Returns:
        (H, W) bool, in and around the tissue.
    """
    focus = Focus(slide)
    picture = Image.fromarray(tissue.astype(np.float32))
    step = 1.0
    while True:
        columns, rows = (max(1, round(n / (PATCH * step))) for n in (focus.view.width, focus.view.height))
        cells = np.argwhere(np.asarray(picture.resize((columns, rows), Image.Resampling.BOX)) >= HALF)
        if len(cells) <= MOST_PATCHES:
            break
        step *= max(1.05, math.sqrt(len(cells) / MOST_PATCHES))
    found = np.full((rows, columns), math.nan)
    for row, column in cells:
        found[row, column] = focus.at((column + 0.5) / columns, (row + 0.5) / rows)
    unknown = np.isnan(found)
    if unknown.all():
        return np.zeros(tissue.shape, bool)
    nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return _stretched((found < Focus.least(found))[tuple(nearest)], tissue.shape)


def _stretched(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST))
