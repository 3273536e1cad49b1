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

"""Compilation of inner loops by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled"]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Compile `function` at its first call, and keep the machine code on disk for the next process.

    Numba keeps it beside the module, or in the user's cache folder where the module's is read-only. Where neither can
    be written (a container without a home) Numba refuses to cache; it is then compiled anew in each process.
    """
    try:
        return njit(cache=True)(function)
    except RuntimeError:
        return njit(function)
