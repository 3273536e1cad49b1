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

"""The record of a training: what its result depends on, read off the objects that were built from the settings."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence, Set
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from monai.engines import Evaluator, Trainer
from torch import nn
from torch.utils.tensorboard import SummaryWriter

__all__ = ["describe", "describe_items", "record"]

# Where something is computed or written, and what is only drawn from: the result doesn't depend on it.
LEFT_OUT = (torch.device, PurePath, SummaryWriter, logging.Logger, np.random.RandomState, np.random.Generator)


def record(trainer: Trainer, evaluator: Evaluator) -> dict[str, Any]:
    """
    What the result of a training depends on, before it begins: by its path in the objects, `loss.constraint.tolerance`.

    The number of epochs is not in it, nor are paths, devices, and what changes no result (``micro_batch_size``,
    workers, caches).

    Args:
        trainer: with a ``network``; ``loss_function`` and ``optimizer`` if it has some; a data set, its own or that of
            its loader; and the names in ``recorded`` of attributes that count.
        evaluator: of the validation, with its ``postprocessing``.

    Returns:
        Numbers, texts and truth values; the same in every process that builds the same.
    """
    dataset = getattr(trainer, "dataset", None) or trainer.data_loader.dataset
    validation = evaluator.data_loader.dataset
    sampler = getattr(trainer.data_loader, "batch_sampler", None)
    parts = {
        "network": _network(trainer.network),
        "loss": getattr(trainer, "loss_function", None),
        "optimizer": _optimizer(getattr(trainer, "optimizer", None)),
        "trainer": {"": _name(type(trainer))} | {name: getattr(trainer, name) for name in _recorded(trainer)},
        "sampler": {name: getattr(sampler, name) for name in _recorded(sampler)},
        "data": {
            "seed": getattr(dataset, "seed", None),
            "training": describe_items(dataset.data),
            "validation": describe_items(validation.data),
        },
        "transforms": {"training": dataset.transform, "validation": validation.transform},
        "validation": {
            "interval": getattr(trainer.state, "val_interval", None),
            "key_metric": evaluator.state.key_metric_name,
            "postprocessing": getattr(evaluator, "postprocessing", None),
        },
    }
    return describe(parts)


def describe(value: Any) -> dict[str, Any]:
    """
    A value by its parts, each under its path; what has been met before is left out.

    Args:
        value: numbers and texts stand for themselves, None is left out; of others there are the members, of an object
            its class and its public attributes, of a function its name, of a tensor its shape and a checksum.

    Examples:
        >>> describe({"rate": 0.1, "sizes": [2, 3], "part": {"name": "side"}})
        {'rate': 0.1, 'sizes': '[2, 3]', 'part.name': 'side'}
    """
    found: dict[str, Any] = {}
    _describe(value, "", found, {})
    return found


def describe_items(items: Sequence[dict]) -> str:
    """What a training depends on of its items: number, and a checksum of file names, labels and areas."""
    known = [
        {key: Path(value).name if isinstance(value, str) else value for key, value in sorted(item.items())}
        for item in items
    ]
    return f"{len(items)} ({_checksum(json.dumps(known, default=str))})"


def _describe(value: Any, path: str, found: dict[str, Any], seen: dict[int, Any]) -> None:
    plain = _plain(value)
    if plain is not None:
        found[path] = plain
    if plain is not None or value is None or isinstance(value, LEFT_OUT) or id(value) in seen:
        return
    seen[id(value)] = value  # kept, so that no other object gets its number
    if isinstance(value, Mapping):
        members = {str(key): member for key, member in value.items()}
    elif isinstance(value, (Sequence, Set)):
        members = {str(index): member for index, member in enumerate(value)}
    elif isinstance(value, partial):
        members = {"": _name(value.func), "arguments": [*value.args, dict(value.keywords)]}
    elif isinstance(value, type) or hasattr(value, "__qualname__"):
        members = {"": _name(value)}
    else:
        members = {"": _name(type(value))}
        members |= {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
        if isinstance(value, nn.Module):
            del members["training"]  # the mode
            members |= dict(value.named_children())
    for name, member in members.items():
        _describe(member, f"{path}.{name}".strip(".") if name else path, found, seen)


def _plain(value: Any) -> Any:
    """A number, text or truth value that says it all; None where there is none."""
    if isinstance(value, str):
        return str(value)  # of an enumeration its text
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (float, np.generic, torch.dtype, torch.Size)):
        return str(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        return f"{list(array.shape)} ({_checksum(array.tobytes())})"
    if isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float, str)) for v in value):
        return str([_plain(v) for v in value])
    return None


def _network(network: nn.Module) -> dict[str, Any]:
    """Its class and options; of the layers, of which there are many, a checksum."""
    options = {k: v for k, v in vars(network).items() if not k.startswith("_") and k != "training"}
    saved = network.state_dict()
    fixed = {name: buffer for name, buffer in network.named_buffers() if name not in saved}
    return {"": _name(type(network)), **options, "layers": _checksum(repr(network)), **fixed}


def _optimizer(optimizer: torch.optim.Optimizer | None) -> dict[str, Any] | None:
    if optimizer is None:
        return None
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    return {"": _name(type(optimizer)), **{str(index): group for index, group in enumerate(groups)}}


def _recorded(thing: Any) -> Sequence[str]:
    return getattr(thing, "recorded", ())


def _name(thing: Any) -> str:
    """Where a class or function is defined."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _checksum(content: str | bytes) -> str:
    return sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:12]
