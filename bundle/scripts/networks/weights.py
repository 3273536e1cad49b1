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

"""Reading files of weights: what is damaged, or is not finite, is never taken for a network."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

__all__ = ["load_tensors", "not_finite"]


def load_tensors(path: str | PathLike, map_location: str | torch.device | None = "cpu") -> Any:
    """
    What `torch.save` has written, its checksums compared first: `torch.load` reads changed bytes without a word.

    Args:
        path: of the file.
        map_location: see `torch.load`.

    Raises:
        Exception: nearly any, when the file is damaged or has more than tensors and plain values in it.
    """
    if zipfile.is_zipfile(path):  # PyTorch before 1.6 wrote no archive, and no checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the bytes of '{damaged}' in it have changed since they were written")
    return torch.load(path, map_location=map_location, weights_only=True)


def not_finite(state: Mapping[str, Any]) -> str | None:
    """
    The name of the first tensor of a state dict with a value that is NaN or infinite as float32, which networks compute
    in; None if there is none.
    """
    for name, value in state.items():
        floating = isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
        if floating and not bool(torch.isfinite(value.float() if value.dtype == torch.float64 else value).all()):
            return name
    return None
