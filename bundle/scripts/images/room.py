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

"""How much is decoded at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.images.pictures import MAX_PIXELS

__all__ = ["DECODING", "Room"]


class Room:
    """Lets threads decode at once what is together no larger than the largest picture that is read."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.taken = 0
        self.changed = threading.Condition()

    @contextmanager
    def taking(self, pixels: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.taken == 0 or self.taken + pixels <= self.pixels)
            self.taken += pixels
        try:
            yield
        finally:
            with self.changed:
                self.taken -= pixels
                self.changed.notify_all()


DECODING = Room(MAX_PIXELS)
