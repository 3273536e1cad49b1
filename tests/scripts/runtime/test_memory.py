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
import pytest
from scripts.runtime import memory

FREE = 1000


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A machine with so much free memory, whose control groups are written by the returned function."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "fs")

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(own)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_without_control_groups_it_is_what_the_machine_has(system):
    assert memory.free_memory() == FREE


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/\n", {"memory.max": "400\n", "memory.stat": "anon 90\nfile 200\nshmem 10\n"}, 300),  # a container
        ("0::/job/step\n", {"job/memory.max": "max\n", "job/step/memory.max": "700"}, 700),
        ("0::/job/step\n", {"job/memory.max": "500", "job/memory.stat": "anon 1", "job/step/memory.max": "700"}, 499),
        ("0::/\n", {"memory.max": "max"}, FREE),
        ("0::/\n", {"memory.max": "max", "memory.high": "500"}, 500),
        ("no groups\n0:/\n0::/\x00\n0::/\n", {"memory.max": "500", "memory.stat": "\nanon\nanon 100\n"}, 400),
        ("0::/\n", {"memory.max": "400", "memory.stat": "anon 401"}, 0),
        (
            "5:cpuset:/\n4:cpu,memory:/docker/1f\n0::/\n",  # whose own folder is the root in the container
            {"memory/memory.limit_in_bytes": "600", "memory/memory.stat": "rss 7\ntotal_rss 100\ntotal_shmem 50"},
            450,
        ),
    ],
)
def test_what_is_left_of_the_least_limit(system, own, files, left):
    system(own, files)
    assert memory.free_memory() == left
