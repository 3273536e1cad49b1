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

"""Two runs into one folder, and the leftovers of one that was killed."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.runtime.errors import InputError
from scripts.runtime.files import claim

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"
HOLDER = """
import os, sys
from scripts.runtime.files import claim
claim(sys.argv[1:], "training")
print(os.getpid(), flush=True)
input()
"""


class Holder:
    """A process that has claimed a folder."""

    def __init__(self, python: str, folder: Path) -> None:
        pipes = {"stdin": -1, "stdout": -1}
        self.process = subprocess.Popen([python, "-c", HOLDER, folder], cwd=BUNDLE, text=True, **pipes)
        self.pid = int(self.process.stdout.readline())

    def end(self) -> None:
        """As a run does that has finished."""
        self.process.communicate("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()  # until nobody can write


@pytest.fixture
def holder(tmp_path: Path, quick_python: str) -> Iterator[Holder]:
    holder = Holder(quick_python, tmp_path)
    yield holder
    holder.kill()


def test_a_second_run_is_refused_and_one_of_another_kind_is_not(tmp_path: Path, holder: Holder) -> None:
    with pytest.raises(InputError, match=f"Another training .process {holder.pid} on .* is writing into '{tmp_path}'"):
        claim([tmp_path], "training")
    claim([tmp_path], "evaluating")


def test_a_killed_run_blocks_nothing_and_its_half_files_go(tmp_path: Path, holder: Holder) -> None:
    half = tmp_path / f".{'0f' * 16}.part"
    half.write_text("half")
    mine = tmp_path / ".mine.part"
    mine.write_text("not the bundle's")
    holder.kill()
    claim([tmp_path], "training")
    assert not half.exists()
    assert mine.exists()


def test_half_files_of_a_run_of_another_kind_that_is_alive_stay(tmp_path: Path, holder: Holder) -> None:
    half = tmp_path / f".{'0f' * 16}.part"
    half.write_text("half")
    claim([tmp_path], "inferring")
    assert half.exists()
    holder.kill()
    claim([tmp_path], "evaluating")
    assert not half.exists()


def test_one_process_may_run_again(tmp_path: Path) -> None:
    claim([tmp_path], "training")
    claim([tmp_path, tmp_path], "training")


def test_a_run_that_ends_leaves_no_lock(tmp_path: Path, holder: Holder) -> None:
    assert (tmp_path / ".training.lock").is_file()
    holder.end()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_is_removed_while_it_is_taken_is_taken_anew(tmp_path: Path, monkeypatch, quick_python: str):
    """The run before ends between the opening of its file and the lock on it."""
    locked = []

    def lock(file, how: int) -> None:
        if not locked:
            (tmp_path / ".training.lock").unlink()
        locked.append(file)
        flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lock)
    claim([tmp_path], "training")
    assert len(locked) == 2
    monkeypatch.undo()
    program = "from scripts.runtime.files import claim\nclaim(['.'], 'training')"
    command = [quick_python, "-c", f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\n{program}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Another training" in done.stderr
