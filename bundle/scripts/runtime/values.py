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

"""Settings checked where they are used: each by the name that the user knows it by, in one sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from scripts.runtime.errors import InputError

__all__ = [
    "fraction",
    "image_size",
    "is_number",
    "is_whole",
    "number",
    "numbers",
    "positive_fraction",
    "positive_number",
    "rgb",
    "truth_value",
    "whole_number",
]


def whole_number(name: str, value: Any, least: int = 1, words: str = "") -> None:
    """Raises InputError unless the value is an integer of `least` or more; `words` says what else would do."""
    if not is_whole(value) or value < least:
        raise InputError(f"{name} must be {words}an integer of {least} or more; got {value!r}.")


def number(name: str, value: Any) -> None:
    """Raises InputError unless the value is a number, 0 or more."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise InputError(f"{name} must be a number, 0 or more; got {value!r}.")


def positive_number(name: str, value: Any) -> None:
    """Raises InputError unless the value is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a number above 0; got {value!r}.")


def fraction(name: str, value: Any, words: str = "") -> None:
    """Raises InputError unless the value is a number from 0 to 1; words name what else is taken."""
    if not is_number(value) or not 0 <= value <= 1:
        hint = f" (did you mean {value / 100:g}?)" if is_number(value) and 2 <= value <= 100 else ""
        raise InputError(f"{name} must be {words}a fraction from 0 to 1; got {value!r}{hint}.")


def positive_fraction(name: str, value: Any) -> None:
    """Raises InputError unless the value is a number above 0 and up to 1."""
    positive_number(name, value)
    fraction(name, value)


def rgb(name: str, value: Any) -> None:
    """Raises InputError unless the value is a list of three integers from 0 to 255."""
    known = isinstance(value, (list, tuple)) and len(value) == 3
    if not known or not all(is_whole(part) and 0 <= part <= 255 for part in value):
        raise InputError(f"{name} must be red, green and blue from 0 to 255, as [200,0,0]; got {value!r}.")


def truth_value(name: str, value: Any) -> None:
    """Raises InputError unless the value is True or False. (On a command line ``false`` is a text, which is true.)"""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False; got {value!r}.")


def image_size(name: str, value: Any, least: int = 1) -> None:
    """Raises InputError unless the value is a height and a width of `least` pixels or more."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_whole, value))
    if not pair or min(value) < least:
        hint = f" (did you mean [{value},{value}]?)" if is_whole(value) and value >= least else ""
        raise InputError(
            f"{name} must be height and width, two integers of {least} or more, as [500,500]; got {value!r}{hint}."
        )


def numbers(name: str, value: Any) -> None:
    """Raises InputError unless the value is a list of numbers, each 0 or more."""
    if not isinstance(value, (list, tuple)) or not all(is_number(v) and 0 <= v < math.inf for v in value):
        raise InputError(f"{name} must be a list of numbers, each 0 or more; got {value!r}.")


def is_number(value: Any) -> bool:
    """Whether it is a number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether it is an integer, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)
