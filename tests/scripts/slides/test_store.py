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


"""An unfinished map is taken up where it was left."""

from __future__ import annotations

import multiprocessing
import os
import zlib
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from scripts.slides.store import AwaitedRows, TileStore


def filled(folder, key: str = "a") -> TileStore:
    store = TileStore(folder, key, 4, np.uint16)
    for column in range(3):
        store.put(0, column, np.full((4, 4), 1000 + column, np.uint16))
    store.put(1, 0, np.zeros((4, 4), np.uint16))
    return store


def test_tiles_come_back(tmp_path):
    filled(tmp_path / "s")  # left open, as a killed process leaves it
    store = TileStore(tmp_path / "s", "a", 4, np.uint16)
    assert len(store) == 4
    assert [int(store.get(0, column)[0, 0]) for column in range(3)] == [1000, 1001, 1002]
    assert store.is_zero(1, 0)
    assert (1, 0) in store
    assert (1, 1) not in store


def test_a_tile_at_the_edge_is_filled_up(tmp_path):
    store = TileStore(tmp_path / "s", "a", 4, np.uint16)
    store.put(0, 0, np.full((2, 3), 7, np.uint16))
    expected = np.zeros((4, 4))
    expected[:2, :3] = 7
    np.testing.assert_array_equal(store.get(0, 0), expected)


def test_another_key_begins_anew(tmp_path):
    filled(tmp_path / "s").close()
    assert len(TileStore(tmp_path / "s", "b", 4, np.uint16)) == 0


@pytest.mark.parametrize("damage", ["journal", "data", "torn data"])
def test_what_was_cut_off_is_left_out(tmp_path, damage):
    filled(tmp_path / "s").close()
    journal, data = tmp_path / "s" / "tiles.jsonl", tmp_path / "s" / "tiles.bin"
    if damage == "journal":
        lines = journal.read_text().splitlines()
        journal.write_text("\n".join([*lines[:2], lines[2][:5]]))
    elif damage == "data":
        data.write_bytes(data.read_bytes()[:-6] + b"wrong.")
    else:
        data.write_bytes(data.read_bytes()[:-1])
    store = TileStore(tmp_path / "s", "a", 4, np.uint16)
    assert [(0, column) in store for column in range(3)] == [True, True, False]
    store.put(0, 2, np.full((4, 4), 5, np.uint16))
    store.close()
    again = TileStore(tmp_path / "s", "a", 4, np.uint16)
    assert [int(again.get(0, column)[0, 0]) for column in range(3)] == [1000, 1001, 5]


def test_no_finished_tile_is_lost_wherever_the_run_is_cut_off(tmp_path):
    """A run that is killed may leave any part of what it appended; so may the one that takes it up, and so on."""
    filled(tmp_path / "s").close()
    journal, data = ((tmp_path / "s" / name).read_bytes() for name in ("tiles.jsonl", "tiles.bin"))
    for cut in range(len(journal) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "key.json").write_text("a")
        (folder / "tiles.bin").write_bytes(data + b"half a tile")
        (folder / "tiles.jsonl").write_bytes(journal[:cut])
        complete = journal[:cut].count(b"]")  # each line ends in one
        store = TileStore(folder, "a", 4, np.uint16)
        assert (folder / "tiles.jsonl").read_bytes().startswith(journal[:cut])  # at no time is there less
        assert len(store) == complete
        store.put(5, 5, np.full((4, 4), 55, np.uint16))
        store.close()
        again = TileStore(folder, "a", 4, np.uint16)
        assert len(again) == complete + 1
        assert [int(again.get(0, k)[0, 0]) for k in range(3) if (0, k) in again] == [1000, 1001, 1002][:complete]
        assert again.get(5, 5).min() == 55
        again.close()


def test_a_tile_of_version_0_7_0_is_taken_over(tmp_path):
    """It was written by zlib."""
    filled(tmp_path / "s").close()
    content = zlib.compress(np.full((4, 4), 77, np.uint16).tobytes(), 1)
    (tmp_path / "s" / "tiles.bin").write_bytes(content)
    (tmp_path / "s" / "tiles.jsonl").write_text(f"[0, 9, 0, {len(content)}, {zlib.crc32(content)}]\n")
    assert (TileStore(tmp_path / "s", "a", 4, np.uint16).get(0, 9) == 77).all()


def test_a_damaged_tile_costs_no_other(tmp_path):
    filled(tmp_path / "s").close()
    data = tmp_path / "s" / "tiles.bin"
    data.write_bytes(b"\0" + data.read_bytes()[1:])
    journal = tmp_path / "s" / "tiles.jsonl"
    noise = b'\0\0\n[1]\n"a"\n[0, 9, -5, 5, 1]\n[0, 9, 0, 1e99, 1]\n[0, 9, null, 1, 1]\n\xff\n'
    journal.write_bytes(noise + journal.read_bytes())
    store = TileStore(tmp_path / "s", "a", 4, np.uint16)
    assert sorted(place for place in [(0, 0), (0, 1), (0, 2), (0, 9), (1, 0)] if place in store) == [
        (0, 1),
        (0, 2),
        (1, 0),
    ]


def put_many(folder: Path, told: Connection) -> None:
    store = TileStore(folder, "a", 64, np.uint16)
    for number in range(len(store), 60_000):
        store.put(number, 0, np.full((64, 64), number, np.uint16))
        told.send(number)


@pytest.mark.skipif(os.name != "posix", reason="processes are forked, which starts them at once")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_no_finished_tile_is_lost_by_kills(tmp_path):
    """Killed five times after some tiles: what was told to be there is there."""
    last = -1
    for more in (3, 40, 17, 1, 5):
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=put_many, args=(tmp_path / "s", send))
        process.start()
        for _ in range(more):
            last = receive.recv()
        process.kill()
        process.join()
    store = TileStore(tmp_path / "s", "a", 64, np.uint16)
    assert last >= 65
    assert all(int(store.get(number, 0)[3, 3]) == number for number in range(last + 1))


@pytest.mark.parametrize("end", ["another key", "remove"])
def test_what_others_keep_in_the_folder_stays(tmp_path, end):
    filled(tmp_path / "s").close()
    (tmp_path / "s" / "mine").mkdir()
    (tmp_path / "s" / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "s" / "a.png").write_text("keep")
    (tmp_path / "s" / f".{'0' * 32}.part").write_text("of a killed run")
    if end == "remove":
        TileStore(tmp_path / "s", "a", 4, np.uint16).remove()
    else:
        TileStore(tmp_path / "s", "b", 4, np.uint16).close()
    stays = {"mine", "a.png"} | (set() if end == "remove" else {"key.json", "tiles.bin", "tiles.jsonl"})
    assert {path.name for path in (tmp_path / "s").iterdir()} == stays
    assert (tmp_path / "s" / "mine" / "notes.txt").read_text() == "keep"


def test_nothing_is_left_of_a_store_that_is_removed(tmp_path):
    store = filled(tmp_path / "s")
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_tiles_are_read_while_others_are_put(tmp_path):
    store = TileStore(tmp_path / "s", "a", 32, np.uint16)
    tiles = np.random.default_rng(0).integers(0, 65536, (200, 32, 32), np.uint16)
    with ThreadPoolExecutor(3) as threads, AwaitedRows(range(200)) as rows:

        def read(row: int) -> np.ndarray:
            rows.wait(row)
            return store.get(row, 0)

        first, second = (threads.map(read, range(200)) for _ in range(2))
        for row, tile in enumerate(tiles):
            store.put(row, 0, tile)
            rows.arrived(row)
    np.testing.assert_array_equal(list(first), tiles)
    np.testing.assert_array_equal(list(second), tiles)


def test_a_row_is_waited_for_until_its_last_tile():
    with ThreadPoolExecutor(1) as thread, AwaitedRows([3, 5, 5]) as rows:
        rows.wait(4)  # nothing is to come
        waiting = thread.submit(rows.wait, 5)
        rows.arrived(5)
        rows.arrived(3)
        assert wait([waiting], timeout=0.2).not_done
        rows.arrived(5)
        waiting.result(timeout=60)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nobody_waits_for_rows_that_never_come(error):
    with ThreadPoolExecutor(1) as thread:
        try:
            with AwaitedRows([0, 1]) as rows:
                waiting = thread.submit(rows.wait, 1)
                rows.arrived(0)
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        with pytest.raises(CancelledError):
            waiting.result(timeout=60)
        rows.wait(0)
