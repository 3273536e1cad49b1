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
"""What is labelled: pictures, or fields of slides, which are proposed, drawn and moved, or whole slides."""

from __future__ import annotations

import io
import logging
import math
import random
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from openslide import AbstractSlide, OpenSlide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image
from skimage.transform import integral_image, integrate

from scripts.images.quality import KINDS, Focus, leave_out
from scripts.images.slide import Slide
from scripts.images.tissue import OVERVIEW, find_tissue
from scripts.labelling.journal import Field, Journal, Subject, written
from scripts.labelling.tiles import OVERLAP, THUMBNAIL, TILE, PictureTiles, Tiles, thumbnail
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError

logger = logging.getLogger(__name__)
__all__ = ["Pictures", "SlideFields", "SlideTiles", "propose_fields"]

LEAST_TISSUE = 0.5  # of a proposed field
SMALLEST = 16  # pixels of level 0, of a field's sides
COMPARED = 8  # places on a slide, by which is known how sharp it is
MOST_BLURRED = 50  # fields of a slide that are looked at and found out of focus; then there are fewer
SAME = 0.5  # of a proposed field, beyond which another that overlaps it takes its place


class SlideTiles:
    """
    Tiles of a slide as OpenSlide's own Deep Zoom generator makes them.

    Raises:
        InputError: when it can't be opened.
    """

    nbytes = 2**25  # of what OpenSlide keeps in memory

    def __init__(self, path: Path) -> None:
        self.slide = Slide(path, mpp=1.0).file  # its resolution is of no matter here
        self.width, self.height = self.slide.dimensions
        self._generator = DeepZoomGenerator(self.slide, TILE, OVERLAP)

    def layout(self) -> dict[str, int]:
        least = min(math.floor(math.log2(TILE)), self._generator.level_count - 1)
        size = {"width": self.width, "height": self.height, "minLevel": least}
        return size | {"tileSize": TILE, "tileOverlap": OVERLAP}

    def tile(self, level: int, column: int, row: int) -> tuple[bytes, str]:
        try:
            picture = self._generator.get_tile(level, (column, row))
        except ValueError as error:
            raise IndexError("there is no such tile") from error
        return _jpeg(picture), "image/jpeg"


class Pictures:
    """
    The pictures of a folder.

    Args:
        folder: of them.
        images: their paths relative to it, in the order in which they are shown.
    """

    kind = "pictures"

    def __init__(self, folder: Path, images: Sequence[str]) -> None:
        self.folder = folder
        self.subjects: list[Subject] = list(images)
        self.sources = list(images)

    def order(self) -> list[int]:
        """Positions in `subjects` of those that are shown."""
        return list(range(len(self.subjects)))

    def is_shown(self, position: int) -> bool:
        return True

    def source(self, position: int) -> int:
        """Of which of the `sources` a subject is a part."""
        return position

    def name(self, position: int) -> str:
        return self.sources[position]

    def hidden_name(self, position: int) -> str:
        """What is shown where names are hidden."""
        return f"Image {position + 1}"

    def region(self, position: int) -> list[int] | None:
        return None

    def open(self, source: int) -> Tiles:
        return PictureTiles(_inside(self.folder, self.sources[source]))

    def thumbnail(self, position: int) -> bytes:
        return thumbnail(_inside(self.folder, self.sources[position]))


class SlideFields:
    """
    Fields of slides: proposed ones, and those that a journal has; or the slides as a whole.

    Args:
        folder: of the slides.
        slides: their paths relative to it.
        journal: of the answers, and of the fields that were drawn and moved.
        number: of the fields to propose for each slide; None for whole slides.
        size: of their sides in pixels, as they are read.
        mpp: micrometres per pixel at which fields are read; level 0 as it is where None.
        seed: of the proposals.
        only: the fields to show, beside those that the journal has been given; proposed ones where None.
        order: a generator, by which the order is drawn; by slides where None.
        without: what proposed fields are kept clear of, see `propose_fields`.

    Raises:
        InputError: when a slide can't be opened, or doesn't say its resolution.
    """

    kind = "slides"

    def __init__(
        self,
        folder: Path,
        slides: Sequence[str],
        journal: Journal,
        number: int | None = 10,
        size: int = 256,
        mpp: float | None = 1.0,
        seed: int = 0,
        only: Collection[Field] | None = None,
        order: random.Random | None = None,
        without: Collection[str] = KINDS,
    ) -> None:
        self.folder, self.sources, self.journal, self.mpp = folder, list(slides), journal, mpp
        self.sizes: list[tuple[int, int]] = []
        self.subjects: list[Subject] = []
        self._source_of = {slide: k for k, slide in enumerate(slides)}
        missing = [field for field in only or () if getattr(field, "image", None) not in self._source_of]
        if missing:
            raise InputError(f"There is no slide of {written(missing[0])} in '{folder}' ({len(missing)} in all).")
        known = dict.fromkeys((*journal.answers, *journal.placed))
        for slide in Bar(slides, desc="looking at slides", unit="slide", leave=False):
            opened = open_slide(folder / slide, mpp)
            self.sizes.append((opened.width, opened.height))
            mine = [subject for subject in known if isinstance(subject, Field) and subject.image == slide]
            earlier = [field for field in mine if field.region is not None and number is not None]
            if only is not None:
                asked = [field for field in only if field.image == slide]
                fields = [*asked, *(field for field in earlier if field in journal.placed and field not in asked)]
            elif number is None:
                fields = [Field(slide, None, mpp)]
            else:
                proposed = propose_fields(opened, slide, number, size, mpp, seed, without)
                others = [field for field in earlier if field not in proposed]
                new = [field for field in proposed if field in earlier or not any(_overlap(field, o) for o in others)]
                fields = [*new, *others]
            opened.close()
            self.subjects += fields
        if order is not None:
            order.shuffle(self.subjects)
        self._is_shuffled = order is not None
        self._numbers: list[int] = []  # of the fields on their slides
        self._last: dict[str, int] = {}
        for field in self.subjects:
            self._count(field)

    def order(self) -> list[int]:
        shown = list(filter(self.is_shown, range(len(self.subjects))))
        return shown if self._is_shuffled else sorted(shown, key=lambda k: (self.source(k), k))

    def is_shown(self, position: int) -> bool:
        return self.journal.placed.get(self.subjects[position], True)

    def source(self, position: int) -> int:
        return self._source_of[self.subjects[position].image]

    def name(self, position: int) -> str:
        return self._number(position) + self.subjects[position].image

    def hidden_name(self, position: int) -> str:
        return f"{self._number(position)}slide {self.source(position) + 1}"

    def _number(self, position: int) -> str:
        return "" if self.subjects[position].region is None else f"field {self._numbers[position]} of "

    def _count(self, field: Field) -> None:
        self._last[field.image] = self._last.get(field.image, 0) + 1
        self._numbers.append(self._last[field.image])

    def region(self, position: int) -> list[int] | None:
        region = self.subjects[position].region
        return None if region is None else list(region)

    def open(self, source: int) -> Tiles:
        return SlideTiles(self.folder / self.sources[source])

    def thumbnail(self, position: int) -> bytes:
        field = self.subjects[position]
        return _region_thumbnail(self.folder / field.image, field.region)

    def place(self, source: int, region: tuple[int, int, int, int] | None, replaced: int | None) -> int:
        """
        Draw a field on a slide, move one, or take one away, where there is no region.

        Returns:
            Its position; that of the field that was taken away.

        Raises:
            InputError: for a region out of the slide, or too small, or one that is there already.
            OSError: when it can't be written.
        """
        old = None if replaced is None else self.subjects[replaced]
        if old is not None and (old.region is None or not self.is_shown(replaced)):
            raise InputError("That is no field that can be moved.")
        if region is None:
            self.journal.place(None, old)
            return replaced
        left, top, width, height = region
        whole_width, whole_height = self.sizes[source]
        if min(left, top) < 0 or left + width > whole_width or top + height > whole_height:
            raise InputError(f"A field must lie on the slide, of {whole_width}x{whole_height} pixels.")
        if min(width, height) < SMALLEST:
            raise InputError(f"A field has sides of {SMALLEST} pixels at least.")
        field = Field(self.sources[source], region, self.mpp if old is None else old.mpp)
        if field in self.subjects and self.journal.placed.get(field, True):
            raise InputError("There is a field just there.")
        self.journal.place(field, old)
        if field not in self.subjects:
            self.subjects.append(field)
            self._count(field)
        return self.subjects.index(field)


def open_slide(path: Path, mpp: float | None) -> Slide:
    """A slide that is to be read at a resolution, or, where that is None, at level 0, whatever its own is."""
    return Slide(path, None if mpp else 1.0, "in its file, or give --mpp 0, so that level 0 is read as it is")


def propose_fields(
    slide: Slide,
    name: str,
    number: int,
    size: int,
    mpp: float | None,
    seed: int = 0,
    without: Collection[str] = KINDS,
) -> list[Field]:
    """
    Fields of tissue, as far from each other as they can be; the first of them are those of a smaller number.

    They are cells of a grid whose place is drawn; at least half of each is tissue, or there is none that has more.

    Args:
        slide: open.
        name: of it, in the fields, and for the seed.
        number: of the fields; fewer where there is not so much tissue.
        size: of the sides in pixels, as they are read.
        mpp: micrometres per pixel, as they are read; level 0 where None.
        seed: of what is drawn.
        without: kinds of tissue, see `leave_out`, that don't count as such, unless there is no other.
    """
    scale = (1.0, 1.0) if mpp is None else (mpp / slide.mpp_x, mpp / slide.mpp_y)
    wide, high = (max(1, min(round(size * s), n)) for s, n in zip(scale, (slide.width, slide.height), strict=True))
    drawn = random.Random(f"{seed} {name}")
    columns, rows = slide.width // wide, slide.height // high
    x0, y0 = drawn.randint(0, slide.width - columns * wide), drawn.randint(0, slide.height - rows * high)
    overview = slide.at(1.0 if mpp is None else mpp).fitting(OVERVIEW)
    picture = overview.read(0, overview.height, 0, overview.width)
    found = find_tissue(picture)
    usable, parts = leave_out(found, picture, overview, [kind for kind in without if kind == "pen"])
    tissue = integral_image((usable if usable.any() else found).astype(float))
    to_x, to_y = overview.width / slide.width, overview.height / slide.height
    cells, tissues = [], []
    for left, top in ((x0 + c * wide, y0 + r * high) for r in range(rows) for c in range(columns)):
        start = min(int(top * to_y), overview.height - 1), min(int(left * to_x), overview.width - 1)
        end = max(start[0], int((top + high) * to_y) - 1), max(start[1], int((left + wide) * to_x) - 1)
        pixels = (end[0] - start[0] + 1) * (end[1] - start[1] + 1)
        cells.append((left, top))
        tissues.append(integrate(tissue, start, end)[0] / pixels)
    cells = [cell for cell, part in zip(cells, tissues, strict=True) if part >= min(LEAST_TISSUE, max(tissues))]
    drawn.shuffle(cells)  # of cells that are as far, the first
    places = np.array(cells, float).reshape(-1, 2)
    distance = np.full(len(cells), np.inf)
    is_blurred = _blurred(slide, places + np.array([wide, high]) / 2, "blur" in without and mpp is not None)
    chosen: list[int] = []
    blurred: list[int] = []
    while len(chosen) < min(number, len(cells) - len(blurred)) and len(blurred) < MOST_BLURRED:
        farthest = int(np.argmax(distance))
        if is_blurred(farthest):
            blurred.append(farthest)
        else:
            chosen.append(farthest)
            distance = np.minimum(distance, np.hypot(*(places - places[farthest]).T))
        distance[chosen + blurred] = -1
    if parts.get("pen") or blurred:
        logger.warning(
            f"{name}: {parts.get('pen', 0):.1%} of the tissue is left out as pen, {len(blurred)} of "
            f"{len(blurred) + len(chosen)} fields as blur"
            + (", but there are no others." if not chosen or not usable.any() else "; --leave_out keeps them.")
        )
    chosen = chosen or blurred[:number]
    return [Field(name, (cells[k][0], cells[k][1], wide, high), mpp) for k in chosen]


def _blurred(slide: Slide, centres: np.ndarray, is_asked: bool) -> Callable[[int], bool]:
    """Whether the slide is out of focus around one of these places (N, 2), in pixels of level 0."""
    if not is_asked or not len(centres):
        return lambda k: False
    focus = Focus(slide)
    measured = lru_cache(None)(lambda k: focus.at(*(centres[k] / (slide.width, slide.height))))
    least = focus.least([measured(k) for k in range(min(COMPARED, len(centres)))])
    return lambda k: measured(k) < least


def _overlap(field: Field, other: Field) -> bool:
    """Whether a field is for its most part in another."""
    sides = [
        max(0, min(a + n, b + m) - max(a, b))
        for a, n, b, m in zip(field.region[:2], field.region[2:], other.region[:2], other.region[2:], strict=True)
    ]
    return math.prod(sides) > SAME * math.prod(field.region[2:])


@lru_cache(1024)
def _region_thumbnail(path: Path, region: tuple[int, int, int, int] | None) -> bytes:
    with OpenSlide(path) as slide:
        picture = slide.get_thumbnail((THUMBNAIL, THUMBNAIL)) if region is None else _read(slide, region)
    return _jpeg(picture)


def _read(slide: AbstractSlide, region: tuple[int, int, int, int]) -> Image.Image:
    left, top, width, height = region
    level = slide.get_best_level_for_downsample(max(1.0, max(width, height) / THUMBNAIL))
    size = tuple(max(1, round(n / slide.level_downsamples[level])) for n in (width, height))
    picture = slide.read_region((left, top), level, size)
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    white.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return white


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _inside(folder: Path, image: str) -> Path:
    """The image's path. Raises InputError for a link out of the folder, put there after the images were listed."""
    path = folder / image
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError("lies outside the folder of the images")
    return path
