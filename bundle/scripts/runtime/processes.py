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
Many processes of `torch.distributed` that train one network: starting them, sharing work out, adding results up.

Without a process group, or in one of a single process, everything here does what one process would do. Every process
must make the same calls in the same order.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from hashlib import sha256
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from scripts.runtime.command_line import keep_typed, typed_setting
from scripts.runtime.errors import InputError, first_line, input_error_of, report_input_errors

if TYPE_CHECKING:
    import torch

__all__ = [
    "add_gradients_up",
    "agreed_seed",
    "by_first_process",
    "gather",
    "launched_processes",
    "leave_processes",
    "local_device",
    "process_count",
    "process_rank",
    "processes_here",
    "send_weights",
    "share",
    "start_alone",
    "start_processes",
    "sum_over_processes",
    "summary_writer_folder",
    "union",
]

K = TypeVar("K")
T = TypeVar("T")
TIMEOUT = timedelta(hours=1)  # the others wait for as long while the first one checks, or draws, the data
LONGEST_RUN = timedelta(days=30)  # the same where each has work of its own, of any length
REPORT_WAIT = timedelta(seconds=10)
LAUNCHER_SETS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def process_count() -> int:
    """Number of processes that train together."""
    if "torch.distributed" not in sys.modules:  # nor imported for this: it takes seconds
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def processes_here() -> int:
    """Number of those on this machine, as torchrun says it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or process_count()


def process_rank() -> int:
    """Number of this process, from 0; the first one writes and shows what all have found."""
    if process_count() == 1:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def local_device() -> torch.device:
    """The GPU of this process, by its number on its machine (``LOCAL_RANK``); the CPU where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def start_alone(settings: MutableMapping[str, Any] | None = None, dealt: bool = False) -> None:
    """
    Begin a run that doesn't share its work: errors are reported as by `report_input_errors`, and paths are as typed.

    Args:
        settings: see `keep_typed`.
        dealt: whether processes that a launcher has started deal the work out by themselves, as those of slides do.

    Raises:
        InputError: when a launcher has started many processes, each of which would do all of it, in one folder; or for
            a typed ``device`` that there is not.
    """
    report_input_errors()
    if settings is not None:
        keep_typed(settings)
        _check_device(typed_setting("device"))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not dealt:
        raise InputError(
            f"A launcher has started {count} processes, each of which would do all of the work: for training add "
            "multi_gpu_train.json at the end of --config_file, for evaluation multi_gpu_evaluate.json; start inference "
            "of pictures and volumes without torchrun."
        )


def _check_device(typed: Any) -> None:
    if typed is None:
        return
    import torch

    try:
        torch.empty(0, device=typed)
    except Exception as error:  # RuntimeError, AssertionError, TypeError, by what is wrong
        others = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise InputError(
            f"There is no device '{typed}' here ({first_line(error)}); leave --device out, or give "
            f"{' or '.join(['cpu', *others])}."
        ) from error


def start_processes(
    device: torch.device | str = "cpu", seed: int | None = None, settings: MutableMapping[str, Any] | None = None
) -> None:
    """
    Join the processes that a launcher such as ``torchrun`` has started: over gloo for the CPU, NCCL for GPUs.

    From now on input errors are reported as by `report_input_errors`, one that all processes meet once; and all but
    the first process are quiet, unless something goes wrong.

    Args:
        device: of this process.
        seed: that of the first process; what others draw (dropout) differs from it. Order and augmentation of the
            images don't depend on it, and initial weights are those of the first process.
        settings: see `keep_typed`.

    Raises:
        InputError: when no launcher has started this process, or there are more processes than GPUs.
    """
    import torch
    import torch.distributed as dist

    report_input_errors()
    sentence = sys.excepthook  # before PyTorch puts the rank in front of every line
    device = torch.device(device)
    missing = [name for name in LAUNCHER_SETS if name not in os.environ]
    if missing and not dist.is_initialized():
        raise InputError(
            f"multi_gpu configs need a launcher, which sets {', '.join(missing)}: start with "
            "torchrun --nproc_per_node=N -m monai.bundle run ... (or leave the multi_gpu config out)."
        )
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"process {device.index} of this machine has no GPU, there are {torch.cuda.device_count()}; "
                "start as many with --nproc_per_node."
            )
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    _report_once(sentence)
    if process_rank() > 0:
        logging.disable(logging.INFO)
        if seed is not None:
            torch.manual_seed(seed + process_rank())
    if settings is not None:
        keep_typed(settings)


@contextmanager
def launched_processes() -> Iterator[tuple[int, int]]:
    """
    This process's rank and the number of them, for work that is dealt out rather than done together.

    Those that a launcher has started wait for each other at the end, since it ends all when the first one fails.
    """
    import torch.distributed as dist

    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield rank, count
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=LONGEST_RUN)
    try:
        yield rank, count
        dist.barrier()
    finally:
        if own:
            leave_processes()


def leave_processes() -> None:
    """End the process group, so that the launcher sees an orderly end."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _report_once(sentence: Callable) -> None:
    """
    Let only the first process that meets an input error report it.

    The others wait for that: as soon as one process has ended, the launcher ends all of them.
    """
    import torch.distributed as dist

    traceback = sys.excepthook
    store = dist.distributed_c10d._get_default_store()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        input_error = input_error_of(error)
        if input_error is None:
            traceback(kind, error, trace)
            return
        key = sha256(str(input_error).encode()).hexdigest()
        try:
            if store.add(key, 1) > 1:
                store.wait([f"{key} is reported"], REPORT_WAIT)
                return
        except Exception:  # the process that holds the store is gone: better twice than never
            sentence(kind, error, trace)
            return
        sentence(kind, error, trace)
        sys.stderr.flush()
        store.set(f"{key} is reported", "1")

    sys.excepthook = hook


def by_first_process(function: Callable[..., T]) -> Callable[..., T]:
    """
    Decorate what one process should do for all, such as checking the data: all get its result, or its error.

    The result must be picklable.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        if process_count() == 1:
            return function(*args, **kwargs)
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if process_rank() == 0:
            try:
                outcome[0] = function(*args, **kwargs)
            except Exception as error:
                failure = error
                outcome[1] = str(input_error_of(error) or f"the first process failed: {error!r}")
        dist.broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise InputError(outcome[1])
        return outcome[0]

    return call


def agreed_seed(seed: int | None) -> int:
    """The seed; where there is none a random one, the same for all processes."""
    if seed is not None:
        return seed
    import torch.distributed as dist

    drawn = [random.SystemRandom().getrandbits(31)]
    if process_count() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a sequence that all have: uneven where it must be, none twice, perhaps empty."""
    return items[process_rank() :: process_count()]


def gather(items: Sequence[T]) -> list[T]:
    """What all processes have made of their `share` of a sequence, in the order of that sequence."""
    if process_count() == 1:
        return list(items)
    import torch.distributed as dist

    shares: list[Any] = [None] * process_count()
    dist.all_gather_object(shares, list(items))
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def union(items: Mapping[K, T]) -> dict[K, T]:
    """What all processes have, each under keys of its own."""
    if process_count() == 1:
        return dict(items)
    import torch.distributed as dist

    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, dict(items))
    return {key: item for part in parts for key, item in part.items()}


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over the processes; of a single one the tensor itself."""
    if process_count() == 1:
        return values
    import torch.distributed as dist

    total = values.detach().contiguous().clone()
    dist.all_reduce(total)
    return total


def add_gradients_up(network: torch.nn.Module) -> None:
    """Replace every gradient by its sum over the processes, which must have gradients of the same parameters."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(sum_over_processes(parameter.grad))


def send_weights(network: torch.nn.Module) -> None:
    """Give all processes the parameters and buffers of the first one."""
    if process_count() == 1:
        return
    import torch
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            sent = tensor.detach().contiguous().clone()
            dist.broadcast(sent, src=0)
            tensor.copy_(sent)


def summary_writer_folder(log_dir: str) -> str:
    """The folder of the TensorBoard log in the first process; in the others a temporary one, which nobody sees."""
    if process_rank() == 0:
        return log_dir
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name
