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

import logging
from pathlib import Path

import pytest
from scripts.files import replacing, report_written


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
    with caplog.at_level(logging.INFO, logger="scripts.files"):
        report_written({"best": tmp_path / "best.pt", "last": tmp_path / "last.pt", "folder": str(tmp_path)})
    assert caplog.messages == [f"last: {tmp_path / 'last.pt'}", f"folder: {tmp_path}"]
