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

import subprocess
import sys
from pathlib import Path

import pytest
from scripts.runtime.errors import InputError
from scripts.runtime.files import claim

HOLDER = """
import sys
from scripts.runtime.files import claim
claim(sys.argv[1:], "training")
print("held", flush=True)
input()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that has claimed the folder."""
    bundle = Path(__file__).resolve().parents[3] / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=bundle,
        text=True,
    )
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_one_of_another_kind_is_not(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(InputError, match=f"Another training .process {holder.pid} on .* is writing into '{tmp_path}'"):
        claim([tmp_path], "training")
    claim([tmp_path], "evaluating")


def test_a_killed_run_blocks_nothing_and_its_half_files_go(tmp_path: Path, holder: subprocess.Popen) -> None:
    half = tmp_path / f".{'0f' * 16}.part"
    half.write_text("half")
    mine = tmp_path / ".mine.part"
    mine.write_text("not the bundle's")
    holder.kill()
    holder.wait()
    claim([tmp_path], "training")
    assert not half.exists()
    assert mine.exists()


def test_half_files_of_a_run_of_another_kind_that_is_alive_stay(tmp_path: Path, holder: subprocess.Popen) -> None:
    half = tmp_path / f".{'0f' * 16}.part"
    half.write_text("half")
    claim([tmp_path], "inferring")
    assert half.exists()
    holder.kill()
    holder.wait()
    claim([tmp_path], "evaluating")
    assert not half.exists()


def test_one_process_may_run_again(tmp_path: Path) -> None:
    claim([tmp_path], "training")
    claim([tmp_path, tmp_path], "training")
