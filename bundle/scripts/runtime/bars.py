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
"""Progress bars, as a terminal and a log take them."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["Bar", "on_terminal"]

LOGGED = 60  # seconds


class Bar(tqdm):
    """A bar of tqdm. Where it goes into a file it is written once a minute; one that is not left, after a minute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not on_terminal():
            kwargs |= {"mininterval": LOGGED, "maxinterval": LOGGED}
            kwargs |= {} if kwargs.get("leave", True) else {"delay": LOGGED}
        super().__init__(*args, **kwargs)


def on_terminal() -> bool:
    """Whether somebody sees what is written to standard error as it is written."""
    return sys.stderr.isatty()
