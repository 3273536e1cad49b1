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
from pathlib import Path
from typing import Any

import torch

from scripts.runtime.errors import InputError, first_line

__all__ = [
    "fit_channels",
    "load_tensors",
    "not_finite",
    "not_floating",
    "read_state_dict",
    "refuse_not_finite",
    "refuse_not_floating",
]


def load_tensors(path: str | PathLike, map_location: str | torch.device | None = "cpu", checksums: bool = True) -> Any:
    """
    What `torch.save` has written, its checksums compared first: `torch.load` reads changed bytes without a word.

    Args:
        path: of the file.
        map_location: see `torch.load`.
        checksums: whether a file without them is refused, as PyTorch before 1.6 wrote it.

    Raises:
        InputError: when the file is TorchScript, of which PyTorch would only say that it may run any code.
        Exception: nearly any, when the file is damaged or has more than tensors and plain values in it.
    """
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(f"'{path}' is an exported model, TorchScript; name the model.pt of its training.")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the bytes of '{damaged}' in it have changed since they were written")
    content = torch.load(path, map_location=map_location, weights_only=True)
    if checksums and not is_archive:
        raise ValueError(
            "it is in the format of PyTorch before 1.6, without checksums: load it, and torch.save it again"
        )
    return content


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


def not_floating(state: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> str | None:
    """
    The name of the first tensor of a state dict, and its type, that is integer or complex where that of the network,
    `own`, is floating-point: PyTorch would convert it without a word. None if there is none.
    """
    for name, value in own.items():
        given = state.get(name)
        if value.is_floating_point() and isinstance(given, torch.Tensor) and not given.is_floating_point():
            return f"'{name}' ({str(given.dtype).removeprefix('torch.')})"
    return None


def read_state_dict(path: str | PathLike) -> dict[str, torch.Tensor]:
    """
    Pretrained weights from a file.

    Raises:
        InputError: when there is no such file, or it holds no state dict that PyTorch can read.
    """
    if not Path(path).is_file():
        raise InputError(f"There are no pretrained weights '{path}'; give 'imagenet', 'random', or an existing file.")
    try:
        state = load_tensors(path, checksums=False)  # torchvision's and others' weights are published without
    except InputError:
        raise
    except Exception as error:  # unpickling a damaged file may raise anything
        raise InputError(
            f"'{path}' is not a state dict that PyTorch can read ({first_line(error)}); save one with torch.save."
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"'{path}' holds a {type(state).__name__}, not a state dict.")
    return state


def refuse_not_floating(state: Mapping[str, Any], own: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises InputError when pretrained weights of that source are not floating-point where the network's are."""
    other = not_floating(state, own)
    if other is not None:
        raise InputError(f"The weights '{source}' are not floating-point in {other}; give other weights.")


def refuse_not_finite(state: Mapping[str, Any], source: str) -> None:
    """Raises InputError when pretrained weights of that source have a value that is NaN or infinite."""
    damaged = not_finite(state)
    if damaged is not None:
        raise InputError(f"The weights '{source}' have values in '{damaged}' that are not finite; give other weights.")


def fit_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """
    Weights (C, 3, h, w) of a first layer for another number of channels: so many equal channels give the features that
    they give as grey RGB. Those of other than three channels stay, for `load_state_dict` to refuse.
    """
    if channels == weight.shape[1] or weight.shape[1] != 3:
        return weight
    return weight.sum(dim=1, keepdim=True).expand(-1, channels, -1, -1) / channels
