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
Merging what two annotators have given, as the paper does (section V-A.2), with a third where they disagree.

Labels: two areas within one step of each other are averaged and rounded up to a step. Masks: a region, connected in
the union of both, stands as the intersection where the overlap is above 80 %; the paper doesn't say of what, here it
is of the union. All else is for a third annotator: his label counts, and in a region of masks what two of three mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from skimage.measure import label as connected_regions

from scripts.labelling.journal import Answer, Subject, place_of

__all__ = ["merge_answers", "merge_masks"]

STEP = Fraction(1, 10)
OVERLAP = 0.8


def merge_answers(
    first: Mapping[Subject, Answer], second: Mapping[Subject, Answer], third: Mapping[Subject, Answer] | None = None
) -> tuple[dict[Subject, Answer], list[Subject]]:
    """
    Labels and areas of two annotators as one.

    Args:
        first, second: answers by image; an image that only one has labelled is not decided.
        third: answers that decide where the two don't agree.

    Returns:
        The merged answers, and the images that are left to decide, sorted.
    """
    merged, undecided = {}, []
    for image in sorted({*first, *second}, key=place_of):
        answer = _agreement(first.get(image), second.get(image)) or (third or {}).get(image)
        if answer is None or answer.label is None:
            undecided.append(image)
        else:
            merged[image] = answer
    return merged, undecided


def _agreement(first: Answer | None, second: Answer | None) -> Answer | None:
    if first is None or second is None or first.label is None or first.label != second.label:
        return None
    areas = [Fraction(str(a.area)) for a in (first, second) if a.area is not None]
    if not areas or first.label == 0:
        return Answer(first.label)
    if max(areas) - min(areas) > STEP:
        return None
    steps = math.ceil(sum(areas) / len(areas) / STEP)
    return Answer(1, float(min(steps * STEP, 1)))


def merge_masks(
    first: np.ndarray, second: np.ndarray, third: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Masks of two annotators as one.

    Args:
        first, second, third: boolean, of one shape (H, W).

    Returns:
        The merged mask, and the regions that are left to decide, both boolean (H, W).

    Raises:
        ValueError: when the shapes differ.
    """
    if first.shape != second.shape or (third is not None and third.shape != first.shape):
        raise ValueError("masks to be merged must have the same size")
    first, second = first > 0, second > 0
    regions = connected_regions(first | second, connectivity=2)
    count = regions.max() + 1
    common = np.bincount(regions[first & second], minlength=count)
    agreed = common > OVERLAP * np.bincount(regions.ravel(), minlength=count)
    agreed[0] = False  # the background
    disputed = (regions > 0) & ~agreed[regions]
    merged = first & second & agreed[regions]
    if third is None:
        return merged, disputed
    votes = first.astype(np.uint8) + second + (third > 0)
    return merged | (disputed & (votes >= 2)), np.zeros_like(disputed)
