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

import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from scripts.images.pictures import MAX_PIXELS, is_plain, picture_size
from scripts.images.slide_parts import SlidePart

__all__ = ["DECODING", "Room", "room_for"]

logger = logging.getLogger(__name__)


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


@contextmanager
def room_for(*paths: str | PathLike) -> Iterator[None]:
    """
    Wait until there is room for images beside those that other threads of this process decode: `MAX_PIXELS` together.

    Keep it for as long as the images are in memory, and don't ask for more inside. A file that can't be read takes no
    room: reading it says why.
    """
    pixels = 0
    for path in paths:
        try:
            pixels += math.prod(_size(path))
        except Exception as error:  # a decoder may raise anything on a damaged file
            logger.debug(f"{path}: {error}")
    with DECODING.taking(pixels):
        yield


def _size(path: str | PathLike) -> tuple[int, ...]:
    """As `image_size`, but nothing for what is no file."""
    if isinstance(path, SlidePart):
        return path.size()
    if not os.path.isfile(path):
        return (0,)
    if is_plain(path):
        return picture_size(path)
    from scripts.images.reading import image_size  # with MONAI, which takes seconds

    return image_size(path)
