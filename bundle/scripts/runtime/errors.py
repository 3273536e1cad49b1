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

"""Input errors: one sentence for the user, instead of a traceback through the configuration parser."""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
import threading
from types import FrameType, TracebackType

__all__ = [
    "InputError",
    "Stopped",
    "first_line",
    "input_error_of",
    "is_out_of_memory",
    "lack_of",
    "report_input_errors",
]

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of GPUs, of the CPU on Linux, Windows

LONGEST_REASON = 400  # letters of what a library said


class InputError(ValueError):
    """The user's data or settings can't be used; the message names the offending item and the remedy."""


class Stopped(SystemExit):
    """The run was told to stop by a signal; its exit status is 128 and the signal's number, as in a shell."""


def input_error_of(error: BaseException | None) -> InputError | None:
    """The `InputError` behind `error` (through ``raise ... from ...``); None when it is something else."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, or Python, has found no memory, of a GPU or of the machine."""
    # torch.OutOfMemoryError is a RuntimeError, but that of the CPU's memory is no class of its own
    named = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    return named or isinstance(error, MemoryError)


def lack_of(error: BaseException | None) -> str | None:
    """What an error says that has a lack of memory, or of room on a disk, behind it; None of any other."""
    while error is not None:
        if is_out_of_memory(error):
            return (
                f"There is not enough memory ({first_line(error)}). Give a smaller --spatial_size (of slides: "
                "--tile_size), --cache_rate 0 in training, or another --device, and check that nothing else uses it."
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _no_room(error.filename)
        if os.strerror(errno.ENOSPC) in str(error):  # MONAI's SaveImage keeps but the text of what its writers raised
            return _no_room(str(error).splitlines()[0].split()[-1].rstrip("."))  # ... a suitable writer for NAME.
        error = error.__cause__ or error.__context__
    return None


def _no_room(name: str | None) -> str:
    where = f" to write '{name}'" if name else ""
    return f"There is no room{where} ({os.strerror(errno.ENOSPC)}). Make room, and give the same command again."


def first_line(error: BaseException) -> str:
    """
    First line of the innermost cause, which is the decoder's or library's own word.

    A line that ends in a colon goes on with those after it: pydicom lists there what each of its plugins said.
    PyTorch's reason comes after advice to run the code in a checkpoint, which is left out.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    reason = f"{lines[0]} {'; '.join(lines[1:])}" if lines[0].endswith(":") else lines[0]
    return textwrap.shorten(reason, LONGEST_REASON, placeholder=" ...")


def report_input_errors() -> None:
    """
    From now on an uncaught `InputError` ends the program with its message alone, and so does a lack of memory,
    or of room on a disk.

    MONAI wraps an error in one exception per level of the configuration; a user can do nothing with those.
    Any other exception keeps its traceback. The exit status is 1 either way.

    SIGINT (Ctrl-C) and SIGTERM end the program with one line and exit status 130 or 143, after a network in training
    has been saved.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sentence = input_error_of(error) or lack_of(error)
        if sentence is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"\nerror: {sentence}", file=sys.stderr)

    sys.excepthook = hook
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once
    print(f"\nstopped by {signal.Signals(number).name}; give the same command again to go on", file=sys.stderr)
    raise Stopped(128 + number)
