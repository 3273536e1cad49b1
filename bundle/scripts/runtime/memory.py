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

from pathlib import Path

import psutil

__all__ = ["free_memory"]

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, by its kernel


def free_memory() -> int:
    """Bytes that programs can still take without swapping; at most the limit of the container that this runs in."""
    limits = [text for text in map(_content, LIMITS) if text.isdecimal()]
    return min([psutil.virtual_memory().available, *map(int, limits)])


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # there is no such limit on this system
        return ""
