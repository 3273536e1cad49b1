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

"""What can be said of a file by its path alone: which one it is, of which version, and whether it can be read."""

from __future__ import annotations

import os
import stat
from os import PathLike
from pathlib import Path

from scripts.runtime.errors import first_line

__all__ = ["file_identity", "file_problem", "file_version"]


def file_identity(path: str) -> object:
    """What is the same for one file, however its name is written."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.normpath(path)
    return status.st_dev, status.st_ino


def file_version(path: str | PathLike) -> list[str | int]:
    """
    What is another once a file is another, or has been written to: absolute path, bytes, nanoseconds of the change.

    Raises:
        OSError: when there is no such file.
    """
    file = Path(path).resolve()
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]


def file_problem(path: str | PathLike) -> str | None:
    """Why a path is not that of a file that can be read; None if it is."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            Path(path).open("rb").close()
            return None
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file" + ("; write '/' for '\\'" if "\\" in os.fspath(path) else "")
    except OSError as error:
        return f"can't be read ({error.strerror})"
    except ValueError as error:  # a null byte, or half a character
        return f"is not a valid file name ({first_line(error)})"
    return "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
