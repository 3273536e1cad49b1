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

"""Checks of what a user may set, before anything expensive starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from scripts.images.limits import MIN_SIZE
from scripts.networks import VGG16_STAGES
from scripts.runtime.command_line import is_rewritten
from scripts.runtime.errors import InputError
from scripts.runtime.processes import by_first_process

__all__ = ["check_settings"]

MAX_STAGES = len(VGG16_STAGES)


@by_first_process
def check_settings(
    spatial_size: Sequence[int],
    folders: Mapping[str, str | PathLike],
    positive_integers: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    positive_numbers: Mapping[str, Any] | None = None,
    fractions: Mapping[str, Any] | None = None,
    booleans: Mapping[str, Any] | None = None,
    stages: int = 3,
    per_stage: Mapping[str, Any] | None = None,
    smallest_size: int = MIN_SIZE,
) -> None:
    """
    Check settings under the names by which the user knows them; the folders are made.

    Args:
        spatial_size: two integers, at least `smallest_size`, and large enough for so many stages.
        folders: must be writable.
        positive_integers: at least 1.
        numbers: at least 0.
        positive_numbers: above 0.
        fractions: from 0 to 1.
        booleans: True or False. On the command line ``false`` is a text, which Python takes for true.
        stages: of the network, 1 to 5.
        per_stage: lists of as many numbers.
        smallest_size: of an image that the network takes, 1 or more.

    Raises:
        InputError: naming every setting that can't be used, with its value.
    """
    problems = []
    if not _is(Integral, stages) or not 1 <= stages <= MAX_STAGES:
        problems.append(f"stages must be a whole number from 1 to {MAX_STAGES}; got {stages!r}")
        stages = 1
    if not _is(Integral, smallest_size):
        problems.append(f"the smallest size must be a whole number; got {smallest_size!r}")
        smallest_size = MIN_SIZE
    least = max(smallest_size, 2 ** (stages - 1))  # every stage but the last halves it
    pair = isinstance(spatial_size, (list, tuple)) and len(spatial_size) == 2
    if not pair or not all(_is(Integral, size) and size >= least for size in spatial_size):
        problems.append(f"spatial_size must be two integers of {least} or more, as [500,500]; got {spatial_size!r}")
    for name, value in (positive_integers or {}).items():
        if not _is(Integral, value) or value < 1:
            problems.append(f"{name} must be an integer of 1 or more; got {value!r}")
    for name, value in (numbers or {}).items():
        if not _is(Real, value) or not value >= 0:
            problems.append(f"{name} must be a number, 0 or more; got {value!r}")
    for name, value in (positive_numbers or {}).items():
        if not _is(Real, value) or not 0 < value < math.inf:
            problems.append(f"{name} must be a number above 0; got {value!r}")
    for name, value in (fractions or {}).items():
        if not _is(Real, value) or not 0 <= value <= 1:
            hint = f"; did you mean {value / 100:g}?" if _is(Real, value) and 1 < value <= 100 else ""
            problems.append(f"{name} must be a fraction from 0 to 1; got {value!r}{hint}")
    for name, value in (booleans or {}).items():
        if not isinstance(value, bool):
            problems.append(f"{name} must be True or False; got {value!r}")
    for name, value in (per_stage or {}).items():
        listed = isinstance(value, (list, tuple)) and all(_is(Real, v) for v in value)
        if not listed or len(value) != stages:
            problems.append(f"{name} must be a list of {stages} numbers, one for each of the stages; got {value!r}")
    for name, path in folders.items():
        if is_rewritten(path):
            problems.append(f"{name} '{path}' has '::', which MONAI's parser makes from '#'; name a folder without '#'")
            continue
        why = _why_not_writable(path)
        if why:
            problems.append(f"{name} '{path}' can't be written to ({why})")
    if problems:
        raise InputError("The settings can't be used: " + "; ".join(problems) + ".")


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _why_not_writable(folder: str | PathLike) -> str | None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror
