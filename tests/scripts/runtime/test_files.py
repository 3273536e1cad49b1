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

"""Files that are complete or not there, and messages for those that are missing."""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import subprocess
from pathlib import Path

import pytest
from scripts import bundle_root
from scripts.runtime.errors import InputError
from scripts.runtime.files import new_folder, replacing, report_written, result_name, write_rows


def write_half(path: Path) -> None:
    with replacing(path) as file:
        file.write("half")
        raise KeyboardInterrupt


def test_text_is_written_as_it_is_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "scores.csv"
    with replacing(path) as file:
        file.write("größe\r\n1\n")
    assert path.read_bytes() == "größe\r\n1\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_the_name_is_taken_only_when_the_file_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_interrupted_run_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"


def test_an_interrupted_run_leaves_no_half_file_under_the_name_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert not path.exists()
    with replacing(path) as file:
        file.write("n")
    assert path.read_text() == "n"


def test_report_names_what_was_written_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "last.pt").touch()
    with caplog.at_level(logging.INFO, logger="scripts.runtime.files"):
        report_written({"best": tmp_path / "best.pt", "last": tmp_path / "last.pt", "folder": str(tmp_path)})
    assert caplog.messages == [f"last: {tmp_path / 'last.pt'}", f"folder: {tmp_path}"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.svs", "a"),
        ("in/case 7.1/b.c.tif", "b.c"),
        ("in/case 7.1", "case 7.1"),
        ("in/..", None),
        ("in/case 7.1/.", "case 7.1"),
    ],
)
def test_results_are_called_as_the_file_or_folder(tmp_path: Path, path: str, name: str | None) -> None:
    (tmp_path / "in" / "case 7.1").mkdir(parents=True)
    assert result_name(f"{tmp_path}/{path}") == (name or tmp_path.name)


@pytest.mark.parametrize("path", ["..", "."])
def test_a_folder_that_is_given_by_dots_has_its_own_name(tmp_path: Path, monkeypatch, path: str) -> None:
    (tmp_path / "out" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "in")
    assert result_name(path) == {"..": "out", ".": "in"}[path]


@pytest.mark.parametrize(
    "name", ["...svs", "....svs", "..svs", ".a.png", "a" * 235 + ".svs", "\u00e4" * 118 + ".svs", "/"]
)
def test_a_name_that_results_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"rename it|shorten it"):
        result_name(tmp_path / name)


@pytest.mark.parametrize("name", ["a" * 234 + ".svs", "\u00e4" * 117 + ".svs"])
def test_the_longest_name_has_room_for_the_endings_of_results(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{result_name(name)}_probability.ome.zarr").mkdir()
    assert len(os.fsencode(result_name(name))) == 234


def test_a_table_holds_no_formula() -> None:
    """What Excel and LibreOffice take for one: =, +, -, @, a tab or a line's end first, in full width too."""
    names = ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1", "\n=1", "\uff1d1"]
    file = io.StringIO(newline="")
    write_rows(file, [names, [-0.5, "-0.5", "+1e-3", "a=1", "", None, "'", "1,2"]])
    first, second = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert first == [f"'{name}" for name in names]
    assert second == ["-0.5", "-0.5", "+1e-3", "a=1", "", "", "'", "1,2"]


HALF = """
import os, signal, sys
from scripts.runtime.files import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_copy_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path, quick_python: str) -> None:
    (tmp_path / ".mine.part").mkdir()
    killed = subprocess.run([quick_python, "-c", HALF, str(tmp_path / "a")], cwd=bundle_root(), check=False)
    assert killed.returncode == 128 + signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path.name != ".mine.part")
    with new_folder(tmp_path / "b") as first, new_folder(tmp_path / "c"):
        assert not left.exists()
        (first / "whole").touch()  # of a process that is alive
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "b", "c"]
    assert (tmp_path / "b" / "whole").exists()
