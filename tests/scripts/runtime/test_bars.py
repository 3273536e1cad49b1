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
"""How often progress bars are written, to a terminal and into a log."""

from __future__ import annotations

import io
import re

import pytest
from scripts.runtime.bars import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "leave", "states"),
    [
        (Terminal, True, ["0/3", "1/3", "2/3", "3/3"]),
        (io.StringIO, True, ["0/3", "3/3"]),  # where it begins and ends: that takes no minute
        (io.StringIO, False, []),
    ],
)
def test_a_log_gets_no_bar_for_each_step(monkeypatch, stream: type, leave: bool, states: list[str]) -> None:
    written = stream()
    monkeypatch.setattr("sys.stderr", written)
    assert list(Bar(range(3), leave=leave, mininterval=0)) == [0, 1, 2]
    shown = re.findall(r"\d/3", written.getvalue())
    assert list(dict.fromkeys(shown)) == states
