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

"""How much memory there is."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
from scripts.runtime import memory


def test_a_containers_limit_is_the_memory_that_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    (tmp_path / "memory.max").write_text("400\n")
    (tmp_path / "limit_in_bytes").write_text("max\n")  # none
    monkeypatch.setattr(memory, "LIMITS", [str(tmp_path / name) for name in ("memory.max", "limit_in_bytes", "none")])
    assert memory.free_memory() == 400
    (tmp_path / "memory.max").write_text("max")
    assert memory.free_memory() == 1000
