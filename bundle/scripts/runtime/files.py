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

"""Writing files so that an interrupted run leaves no half of one, and what results may be called."""

from __future__ import annotations

import atexit
import csv
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from uuid import uuid4

from scripts import bundle_root
from scripts.runtime.command_line import is_rewritten
from scripts.runtime.errors import InputError
from scripts.runtime.processes import by_first_process

try:
    import fcntl
except ImportError:  # Windows, where folders are not claimed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "PARTIAL",
    "claim",
    "is_table",
    "new_folder",
    "refuse_to_replace",
    "replacing",
    "report_written",
    "result_name",
    "write_bytes",
    "write_rows",
]

logger = logging.getLogger(__name__)
PARTIAL = f".{'[0-9a-f]' * 32}.part*"  # what `replacing` leaves when it is killed
LONGEST_NAME = 255  # bytes, of the usual file systems
LONGEST_ENDING = len("_probability.ome.zarr")
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # what a formula begins with, also in full width
_claimed: dict[Path, IO] = {}


@contextmanager
def replacing(path: str | PathLike, binary: bool = False) -> Iterator[IO]:
    """
    Open a file for writing that takes its name, or the place of an older one, only when it is complete.

    Any number of threads, processes and machines may write one path at a time: the last that is complete stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.part")
    text = {} if binary else {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with temporary.open("wb" if binary else "w", **text) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | PathLike, content: bytes | memoryview) -> None:
    """
    Write a file that takes its name, or the place of an older one, when all of it is on the disk.

    Raises:
        InputError: when it can't be written, as on a full disk; an older file is still there then.
    """
    try:
        with replacing(path, binary=True) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"'{path}' can't be written ({error.strerror or error}); make room, and give the same command again."
        ) from error


def result_name(path: str | PathLike, name: str | None = None) -> str:
    """
    What the results of a file, or of a folder of files, are called: its name, that of a file without the suffix.

    ``..`` and ``.`` have the name of the folder that they are.

    Args:
        path: of the file or folder.
        name: to be checked instead, where a suffix is more than what comes after the last dot.

    Raises:
        InputError: when that can't be the name of a file that anybody sees: it is nothing but dots, begins with one, or
            is too long.
    """
    if name is None:
        whole = os.path.basename(os.path.abspath(path))
        name = whole if Path(path).is_dir() else Path(whole).stem
    surplus = len(os.fsencode(name)) + LONGEST_ENDING - LONGEST_NAME
    if not name.strip("."):
        raise InputError(f"'{path}' gives its results no name; rename it.")
    if name.startswith("."):
        raise InputError(f"'{path}' begins with a dot, so its results would be hidden; rename it.")
    if surplus > 0:
        raise InputError(f"The name of '{path}' is {surplus} bytes too long for its results; shorten it.")
    return name


def write_rows(file: IO, rows: Iterable[Sequence[Any]]) -> None:
    """
    Write rows of CSV in which a spreadsheet finds no formula: text that would be one begins with an apostrophe.

    Args:
        file: open for writing text, with ``newline=""``.
        rows: of cells. Numbers, also as text, stay what they are.
    """
    csv.writer(file).writerows([_harmless(cell) for cell in row] for row in rows)


def is_table(path: str | PathLike, columns: Sequence[str]) -> bool:
    """Whether a file is a table of `write_rows` whose columns begin with these."""
    try:
        with Path(path).open(newline="", encoding="utf-8", errors="backslashreplace") as file:
            header = next(csv.reader(file), [])
    except (OSError, csv.Error):
        return False
    return header[: len(columns)] == list(columns)


def refuse_to_replace(paths: Iterable[Path], proof: str) -> None:
    """
    Raises InputError naming the first of these files that is there.

    Args:
        paths: that results will have.
        proof: why nothing says that they are results.
    """
    found = next((path for path in paths if os.path.lexists(path)), None)
    if found is not None:
        raise InputError(
            f"'{found}' would be replaced by a result, and may be yours ({proof}); move it, or name another folder "
            "with --prediction_dir."
        )


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


@contextmanager
def new_folder(folder: str | PathLike) -> Iterator[Path]:
    """
    A folder to fill that takes its name only when it is complete; nothing is left when filling it fails.

    A process that is killed leaves it under a hidden name, and the next one that makes a folder there removes it.

    Args:
        folder: of a copy of the bundle; must not exist, and not lie in the bundle.

    Raises:
        InputError: when it exists, lies in the bundle, or can't be made.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise InputError(f"'{folder}' exists already; remove it, or name another folder.")
    if folder.resolve().is_relative_to(Path(bundle_root()).resolve()):
        raise InputError(f"'{folder}' lies in the bundle itself; name one outside of it.")
    temporary = folder.with_name(f".{uuid4().hex}.part")
    with ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(folder.parent)
            temporary.mkdir()
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
            held.enter_context(_locked(temporary))
        except OSError as error:
            raise InputError(f"'{folder}' can't be created ({error.strerror}); name another folder.") from error
        yield temporary
        temporary.rename(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder of `new_folder`. Whether it is held: neither Windows nor some networks have one."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


def _remove_left_over(parent: Path) -> None:
    """Remove what `new_folder` has left there in processes that were killed: nobody has its lock."""
    for folder in parent.glob(PARTIAL.removesuffix("*")):
        if folder.is_dir() and not folder.is_symlink():
            with suppress(OSError), _locked(folder) as is_mine:
                if is_mine:
                    shutil.rmtree(folder)


def report_written(paths: Mapping[str, str | PathLike]) -> None:
    """Log where a run has put what; what it didn't write is left out."""
    for what, path in paths.items():
        if Path(path).exists():
            logger.info(f"{what}: {path}")


def claim(folders: Sequence[str | PathLike], run: str) -> None:
    """
    Make folders, and keep them for this process until it ends, so that no second run of the kind replaces its files.

    Half files of a run that was killed are removed, unless a run of another kind, which may be writing them, is alive.

    The lock is the operating system's on ``.RUN.lock``, and ends with the process however that ends; the file goes with
    it, unless the process is killed. The first process of a distributed run claims for all.

    Args:
        folders: to write into.
        run: kind of the run: ``"training"``, ``"evaluating"`` or ``"inferring"``.

    Raises:
        InputError: naming a folder that can't be written to, or that another run has, with its process.
    """
    _make(folders)
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        return
    for folder in {Path(folder).resolve() for folder in folders}:
        path = folder / f".{run}.lock"
        if path in _claimed:
            continue
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not _is_at(file, path):  # its owner has ended, and removed it, in between
                file.close()
                file = path.open("a+", encoding="utf-8")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise InputError(
                f"Another {run} ({owner}) is writing into '{folder}'; wait until it ends, or name another folder."
            ) from None
        except OSError as error:  # some network file systems have no locks
            file.close()
            logger.warning(f"'{folder}' can't be locked ({error.strerror}): do not start a second {run} there.")
            continue
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        if not _claimed:
            atexit.register(_release, os.getpid())
        _claimed[path] = file
        others = [other for other in folder.glob(".*.lock") if other not in _claimed]
        for partial in folder.glob(PARTIAL) if not any(map(_is_locked, others)) else ():
            if not partial.is_dir():
                partial.unlink(missing_ok=True)


def _release(owner: int) -> None:
    """Remove the files of this process's locks, while it has them; a process that was forked from it has none."""
    if os.getpid() == owner:
        for path, file in _claimed.items():
            with suppress(OSError):
                if _is_at(file, path):
                    path.unlink()
            file.close()


def _is_at(file: IO, path: Path) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@by_first_process
def _make(folders: Sequence[str | PathLike]) -> None:
    for folder in folders:
        if is_rewritten(folder):
            raise InputError(f"'{folder}' has '::', which MONAI's parser makes from '#'; name a folder without '#'.")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"The folder '{folder}' can't be written to ({error.strerror}); name another.") from error


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # removed since it was found
        return False
    except OSError:  # of another process, or another user
        return True
    return False
