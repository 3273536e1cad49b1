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

"""Random changes of an image that leave its area true."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import (
    RandFlipd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SelectItemsd,
    Transform,
)

from scripts.data.artefacts import RandArtefactd, RandWindowd
from scripts.data.stains import RandStaind
from scripts.runtime.values import fraction, number, positive_fraction

__all__ = ["random_changes"]


def random_changes(
    keys: Sequence[str],
    spatial_size: Sequence[int],
    colour_shift: float = 0.0,
    artefacts: float = 0.0,
    stain_shift: float = 0.0,
    window: float = 1.0,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    pasting: Transform | None = None,
) -> list[Transform]:
    """
    Flips along both axes and, of a square, quarter turns, each of every second image at random; and other colours.

    A crop would make the area untrue, and so would a rotation by any other angle.

    Args:
        keys: of what is changed with the image, the first, where it is there. Only these, and the label, are kept.
        spatial_size: of the images.
        colour_shift: by how much contrast and brightness of each channel change at most, in standard deviations.
        artefacts: probability that an image is blurred, a negative one inked, folded or blank, see `RandArtefactd`.
        stain_shift: by which factor and offset the density of each stain changes at most, see `RandStain`.
        window: part of height and width in which the network is trained, see `RandWindowd`; 1 for the whole image.
        mean, std: by which the images have been normalised.
        pasting: what comes before all others, see `RandPasteNegatived`.

    Returns:
        Transforms for a list of others: in a `Compose` of their own they would draw other numbers from a seed.

    Raises:
        InputError: when the shift is no number of 0 or more, or another is not a fraction.
    """
    number("colour_shift", colour_shift)
    fraction("artefacts", artefacts)
    fraction("stain_shift", stain_shift)
    positive_fraction("train_window", window)
    options = {"keys": keys, "prob": 0.5, "allow_missing_keys": True}
    changes: list[Transform] = [RandFlipd(spatial_axis=axis, **options) for axis in (0, 1)]
    if spatial_size[0] == spatial_size[1]:
        changes.append(RandRotate90d(max_k=1, **options))
    if artefacts:
        changes.append(RandArtefactd(keys[0], artefacts, mean, std))
    if stain_shift:
        changes.append(RandStaind(keys[0], stain_shift, mean, std))
    if window < 1:
        changes.append(RandWindowd(keys[0], window))
    if colour_shift:
        changes.append(RandScaleIntensityd(keys[0], factors=colour_shift, prob=1.0, channel_wise=True))
        changes.append(RandShiftIntensityd(keys[0], offsets=colour_shift, prob=1.0, channel_wise=True))
    if pasting is not None:
        changes.insert(0, pasting)
    return [*changes, SelectItemsd(["label", "window", *keys], allow_missing_keys=True)]
