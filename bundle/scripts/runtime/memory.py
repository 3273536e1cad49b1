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

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["free_memory"]

OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_memory() -> int:
    """
    Bytes that programs can still take without swapping.

    At most what is left of the limit of each control group of Linux that this process is in: those of a container, a
    batch system's job or a service. What is kept of files there can be given up.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Of the layout of versions 1 and 2: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory."""
    for line in _content(OWN_GROUP).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            root, limits, taken = GROUPS, ("memory.max", "memory.high"), ("anon", "shmem")
        elif "memory" in controllers.split(","):
            root, limits, taken = GROUPS / "memory", ("memory.limit_in_bytes",), ("total_rss", "total_shmem")
        else:
            continue
        group = root / path.lstrip("/")  # of which a container sees the root alone
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            most = [int(text) for text in (_content(folder / name) for name in limits) if text.isdecimal()]  # or "max"
            if most:
                counts = dict(re.findall(r"^(\w+) (\d+)$", _content(folder / "memory.stat"), re.MULTILINE))
                yield min(most) - sum(int(counts.get(name, 0)) for name in taken)


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):  # this system has no such groups or limits, or a path is none
        return ""
