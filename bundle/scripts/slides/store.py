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


"""The unfinished map of a slide on disk, which a run that was cut off goes on with; its rows can be waited for."""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np

from scripts.runtime.files import PARTIAL, replacing

__all__ = ["AwaitedRows", "TileStore"]

ZSTD = b"\x28\xb5\x2f\xfd"  # how its data begin: ten times as fast as zlib for maps, whose low bits are noise


class TileStore:
    """
    Square tiles of one map in a folder: a file of compressed tiles and a journal of them. Both only grow.

    A tile counts when its line in the journal is complete and its data are unharmed, so that the process may end at
    any moment, and end again while it takes up what was there. What was written for another `key` is thrown away.
    Threads may read tiles while one puts others.

    Args:
        folder: for the files; made.
        key: all that the tiles depend on.
        size: side of the tiles.
        dtype: of their values.
    """

    def __init__(self, folder: str | Path, key: str, size: int, dtype: type) -> None:
        self.folder = Path(folder)
        self.size, self.dtype = size, np.dtype(dtype)
        self._places: dict[tuple[int, int], tuple[int, int, int]] = {}  # offset, length, checksum; length 0: all zero
        self._lock = threading.Lock()  # of the data's file, which has one place to read and write at
        self._key, self._tiles, self._lines = (self.folder / n for n in ("key.json", "tiles.bin", "tiles.jsonl"))
        if not self._key.is_file() or self._key.read_bytes() != key.encode():
            self._clear()
            with replacing(self._key) as file:
                file.write(key)
        self._data = self._tiles.open("a+b")
        self._journal = self._lines.open("a+b")
        self._recover()

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has a store, of whatever key."""
        return (folder / "key.json").is_file()

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place in self._places

    def __len__(self) -> int:
        return len(self._places)

    def put(self, row: int, column: int, tile: np.ndarray) -> None:
        """Keep a tile; one smaller than the size of tiles is at the edge, and filled up with zeros."""
        content = b""
        if tile.any():
            whole = np.zeros((self.size, self.size), self.dtype)
            whole[: tile.shape[0], : tile.shape[1]] = tile
            content = imagecodecs.zstd_encode(whole, level=1)
        with self._lock:
            offset = self._data.seek(0, 2)
            self._data.write(content)
            self._data.flush()
        self._places[row, column] = (offset, len(content), zlib.crc32(content))
        self._note((row, column), self._places[row, column])

    def is_zero(self, row: int, column: int) -> bool:
        """Whether a tile is zero everywhere; so is one that was never put."""
        return self._places.get((row, column), (0, 0, 0))[1] == 0

    def get(self, row: int, column: int) -> np.ndarray:
        """A tile (size, size), not to be written to."""
        if self.is_zero(row, column):
            return np.zeros((self.size, self.size), self.dtype)
        offset, length, _ = self._places[row, column]
        with self._lock:
            self._data.seek(offset)
            content = self._data.read(length)
        # zlib: up to version 0.7.0
        values = imagecodecs.zstd_decode(content) if content.startswith(ZSTD) else zlib.decompress(content)
        return np.frombuffer(values, self.dtype).reshape(self.size, self.size)

    def close(self) -> None:
        self._data.close()
        self._journal.close()

    def remove(self) -> None:
        """Close, and remove the folder, unless there is something else in it."""
        self.close()
        self._clear()
        with suppress(OSError):
            self.folder.rmdir()

    def _clear(self) -> None:
        """Remove what a store has made, and nothing else; the key first, without which the others don't count."""
        for path in (self._key, self._tiles, self._lines, *self.folder.glob(PARTIAL)):
            path.unlink(missing_ok=True)

    def _note(self, place: tuple[int, int], stored: tuple[int, int, int]) -> None:
        self._journal.write(json.dumps([*place, *stored]).encode() + b"\n")
        self._journal.flush()

    def _recover(self) -> None:
        """Take over what earlier runs have completed."""
        available = self._data.seek(0, 2)
        self._journal.seek(0)
        line = b"\n"
        for line in self._journal:
            try:
                row, column, offset, length, checksum = json.loads(line)
                whole = 0 <= offset <= offset + length <= available
            except (ValueError, TypeError):  # cut off while it was written
                continue
            if whole:
                self._data.seek(offset)
                if zlib.crc32(self._data.read(length)) == checksum:
                    self._places[row, column] = (offset, length, checksum)
        if not line.endswith(b"\n"):  # the next line begins anew
            self._journal.write(b"\n")
            self._journal.flush()


class AwaitedRows:
    """
    Rows of tiles, some of which are still to come, for threads that wait until a row is complete.

    When its block is left, no more tiles come, and nobody waits any longer.

    Args:
        rows: of each tile that is still to come.
    """

    def __init__(self, rows: Iterable[int]) -> None:
        self._missing = Counter(rows)
        self._changed = threading.Condition()
        self._left = False

    def __enter__(self) -> AwaitedRows:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def arrived(self, row: int) -> None:
        """A tile of this row is there."""
        with self._changed:
            self._missing[row] -= 1
            self._changed.notify_all()

    def wait(self, row: int) -> None:
        """
        Come back when the row is complete.

        Raises:
            CancelledError: when the block was left before it was.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._missing[row] <= 0 or self._left)
            if self._missing[row] > 0:
                raise CancelledError
