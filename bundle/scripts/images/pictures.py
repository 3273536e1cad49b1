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

"""Reading pictures (PNG, JPEG, TIFF, BMP ...) of any mode and bit depth, as a viewer shows them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "is_picture",
    "is_plain",
    "is_tiff",
    "lacks_end",
    "only_page",
    "open_picture",
    "picture_size",
    "read_picture",
]

logger = logging.getLogger(__name__)
SUFFIXES = ("png", "jpg", "jpeg", "bmp", "tif", "tiff")
SLIDE_SUFFIXES = ("svs", "ndpi", "mrxs", "scn", "vms", "vmu", "bif", "svslide", "czi")  # of slides alone
MAX_PIXELS = 178_956_970  # beyond which Pillow refuses as well
MAX_BYTES = 2**30  # of a decoded picture: MAX_PIXELS in 16 bit colours
# What Pillow may open, whatever a file's name is: EPS would start a program, and other formats read other files.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274  # TIFF tag, also in EXIF
PHOTOMETRIC, INK_SET, NUMBER_OF_INKS = 262, 332, 334  # TIFF tags
# Colours of a TIFF's pixel, before what is extra: alpha, or something that only its maker knows
COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "PALETTE": 1, "SEPARATED": 4}
BY_PILLOW = ("YCBCR", "CIELAB")  # which it turns into RGB
UNSPECIFIED, PREMULTIPLIED = 0, 1  # kinds of what is extra
EXIF_MARKS = (b"eXIf", b"exif", b"xmp")  # chunks of a PNG in which its orientation may be
# Modes whose numbers are not grey levels or colours as they stand.
CONVERTED_MODES = {"1": "L", "P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
ENDS, TAIL = {b"\x89PN": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}, 2**16  # of PNG and JPEG by their beginnings
STRIP = 2**20  # pixels that are converted at a time


def is_tiff(path: str | PathLike) -> bool:
    """Whether a file begins as a TIFF does, whatever its name is."""
    with open(path, "rb") as file:
        return file.read(4) in TIFF_SIGNATURES


def is_picture(path: str | PathLike) -> bool:
    """Whether a file is a picture by its name, and no DICOM by its beginning: what `read_picture` says of it holds."""
    if Path(path).suffix[1:].lower() not in SUFFIXES or not os.path.isfile(path):
        return False  # nobody may ever write into a pipe
    with open(path, "rb") as file:
        return file.read(132)[128:] != b"DICM"


def is_plain(path: str | PathLike) -> bool:
    """Whether a picture is PNG, JPEG or BMP by its name, and no TIFF by its beginning: 1 to 4 channels in 0..1."""
    return is_picture(path) and Path(path).suffix.lower() not in (".tif", ".tiff") and not is_tiff(path)


def read_picture(path: str | PathLike, shrink: int = 1) -> np.ndarray:
    """(H, W) or (H, W, C) float32; arguments, and errors, of `PictureReader`."""
    return _read_tiff(path, shrink) if is_tiff(path) else _read_by_pillow(path, FORMATS, shrink)


def picture_size(path: str | PathLike) -> tuple[int, int]:
    """Width and height as stored, from the header alone; raises OSError as `PictureReader`, as far as that tells."""
    if is_tiff(path):
        with tifffile.TiffFile(path) as tiff:
            page = only_page(tiff)
            _refuse_cut_short(page)
            return page.imagewidth, page.imagelength
    with open_picture(path, FORMATS) as picture:
        return picture.size


def lacks_end(path: str | PathLike) -> bool:
    """Whether a PNG or JPEG has no mark of its end in its last 64 KiB, behind which some programs put more."""
    with open(path, "rb") as file:
        begin = file.read(3)
        file.seek(max(0, os.path.getsize(path) - TAIL))
        mark = ENDS.get(begin, b"")
        return mark not in file.read()


@contextmanager
def open_picture(path: str | PathLike, formats: Sequence[str]) -> Iterator[Image.Image]:
    """A picture of one frame, not decoded yet."""
    try:
        picture = Image.open(path, formats=formats)
    except UnidentifiedImageError:
        known = ", ".join(dict.fromkeys((*formats, "TIFF")))
        raise OSError(f"not a picture: none of {known}, or damaged at its beginning") from None
    with picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":  # a telephone's JPEG with a preview
            raise OSError(f"has {frames} frames; save the one that is meant")
        yield picture


def _read_by_pillow(path: str | PathLike, formats: Sequence[str], shrink: int = 1) -> np.ndarray:
    with open_picture(path, formats) as picture:
        if picture.format == "PNG":
            return _read_png(Path(path).read_bytes(), picture, shrink)
        picture.load()
        orientation = 1 if picture.format == "TIFF" else _orientation(picture)  # that of a TIFF Pillow has followed
        mode = CONVERTED_MODES.get(picture.mode, picture.mode)
        if "transparency" in picture.info and mode in ("L", "RGB"):
            mode = {"L": "LA", "RGB": "RGBA"}[mode]

        def rows(top: int, bottom: int) -> np.ndarray:
            strip = picture.crop((0, top, picture.width, bottom))
            return np.asarray(strip if mode == strip.mode else strip.convert(mode)) / np.float32(255)

        return _assembled(rows, picture.height, picture.width, orientation, shrink)


def _read_png(content: bytes, picture: Image.Image, shrink: int) -> np.ndarray:
    """By libpng: Pillow cuts colours of 16 bit to 8, and leaves black what is missing."""
    try:
        decoded = imagecodecs.png_decode(content)
    except Exception as error:
        reason = str(error) or "damaged, or a palette is missing"  # libpng says nothing of that
        raise OSError(f"not a picture that can be decoded: {reason}") from None
    # Pillow would decode the whole picture again in search of it
    orientation = _orientation(picture) if any(mark in content for mark in EXIF_MARKS) else 1
    largest = np.float32(np.iinfo(decoded.dtype).max)
    height, width = decoded.shape[:2]
    return _assembled(lambda top, bottom: decoded[top:bottom] / largest, height, width, orientation, shrink)


def _orientation(picture: Image.Image) -> int:
    """1 to 8, as EXIF counts; 1 where it says nothing sensible, or is damaged as a whole."""
    try:
        value = picture.getexif().get(ORIENTATION)
    except Exception as error:  # whatever the damage leads to; damage elsewhere in it does no harm
        logger.debug(f"EXIF: {error}")
        return 1
    return _valid_orientation(value)


def _valid_orientation(value: object) -> int:
    return int(value) if value in range(1, 9) else 1


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """A view of (H, W, ...) as stored, as it is to be seen."""
    return {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90,
    }.get(orientation, lambda a: a)(array)


def _assembled(
    rows: Callable[[int, int], np.ndarray], height: int, width: int, orientation: int = 1, shrink: int = 1
) -> np.ndarray:
    """
    A picture from strips of it, of which there is but one in memory at a time.

    Args:
        rows: gives (rows, W) or (rows, W, C) in 0..1, from a row to another.
        height, width: of the picture as stored.
        orientation: see `_orientation`.
        shrink: see `PictureReader`.
    """
    shrink = min(shrink, height, width)
    height, width = height // shrink, width // shrink
    step = max(1, STRIP // (width * shrink**2))
    stored = None
    for top in range(0, height, step):
        bottom = min(top + step, height)
        strip = rows(top * shrink, bottom * shrink)
        if shrink > 1:
            strip = strip[:, : width * shrink]
            strip = strip.reshape(bottom - top, shrink, width, shrink, *strip.shape[2:]).mean((1, 3))
        if stored is None:
            # so that MONAI's order of axes, (W, H), is that in memory: nothing has to be copied for it
            shape = (height, width) if orientation >= 5 else (width, height)
            shown = np.empty((*shape, *strip.shape[2:]), np.float32).swapaxes(0, 1)
            stored = _turned(shown, {6: 8, 8: 6}.get(orientation, orientation))
        stored[top:bottom] = strip
    return shown


def _read_tiff(path: str | PathLike, shrink: int = 1) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as tiff:
            page = only_page(tiff)
            kind = _photometric(page)
            if kind not in (*COLOURS, *BY_PILLOW):
                raise OSError(f"is a TIFF whose numbers are {kind}; save it as RGB")
            if kind in COLOURS:
                decoded = _decoded(page)  # (H, W, samples)
                orientation = _valid_orientation(page.tags.valueof(ORIENTATION))
                look = _Look(page, kind)
    except OSError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise OSError(f"not a picture: {error}") from error
    if kind in BY_PILLOW:
        return _read_by_pillow(path, ("TIFF",), shrink)
    height, width = decoded.shape[:2]
    return _assembled(lambda top, bottom: look(decoded[top:bottom]), height, width, orientation, shrink)


def only_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The page of a TIFF beside which there are only smaller versions of it. Raises OSError when there are more."""
    found: dict[int, tifffile.TiffPage] = {}  # by their place in the file
    for page in tiff.pages:
        if page.offset in found:
            raise OSError("is a TIFF whose pages lead back to an earlier one")
        found[page.offset] = page
    inside = [page for outer in found.values() for page in outer.pages or ()]
    if len(found) + len(inside) > 1 and any(page.is_mask for page in (*found.values(), *inside)):
        raise OSError("has a transparency mask on a page of its own; save it with an alpha channel")
    pages = [page for page in found.values() if not page.is_reduced] or list(found.values())
    if not pages:
        raise OSError("not a picture: a TIFF without a page")
    pixels = pages[0].imagewidth * pages[0].imagelength
    pages += [page for page in inside if page.imagewidth * page.imagelength >= pixels]  # no smaller versions
    count = len(pages)
    if count == 1 and (
        tiff.is_imagej or tiff.is_shaped or tiff.is_stk
    ):  # which may have many in what is one to all others
        count = tiff.series[0].size // pages[0].size
    page = pages[0]
    if count > 1 or page.imagedepth > 1:
        raise OSError(f"has {max(count, page.imagedepth)} pages; save the one that is meant")
    tile = math.prod(page.chunks) * page.dtype.itemsize if page.dtype else 0  # may be larger than its image
    size = max(page.nbytes, tile)
    if pixels > MAX_PIXELS or size > MAX_BYTES:
        raise OSError(
            f"has {page.imagewidth}x{page.imagelength} pixels, {size / 2**20:.0f} MiB; at most "
            f"{MAX_PIXELS} pixels and {MAX_BYTES >> 20} MiB are read: cut it into parts, or treat it as a slide"
        )
    if 0 in page.shape:
        raise OSError("has no pixels")
    return page


def _photometric(page: tifffile.TiffPage) -> str:
    if PHOTOMETRIC not in page.tags:
        raise OSError("is a TIFF that does not say what its numbers mean (PhotometricInterpretation)")
    if not isinstance(page.bitspersample, int):
        raise OSError(f"has channels of different depths, {page.bitspersample} bit; save all with 8 or 16 bit")
    if page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression == tifffile.COMPRESSION.JPEG:
        return "RGB"  # as decoded
    return getattr(page.photometric, "name", str(page.photometric))


def _decoded(page: tifffile.TiffPage) -> np.ndarray:
    """(H, W, samples) in the type of the file."""
    _refuse_cut_short(page)  # tifffile would leave what is missing black
    array = page.asarray()
    if page.axes[:1] == "S":  # the planes one by one
        array = np.moveaxis(array, 0, -1)
    return array.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)


def _refuse_cut_short(page: tifffile.TiffPage) -> None:
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if len(ends) < np.prod(page.chunked) or 0 in page.databytecounts or max(ends) > page.parent.filehandle.size:
        raise OSError("is cut short")


class _Look:
    """What a TIFF's numbers look like: (rows, W, samples) to (rows, W) or (rows, W, C) float32."""

    def __init__(self, page: tifffile.TiffPage, kind: str) -> None:
        self.kind = kind
        self.colours = COLOURS[kind]
        self.bits = page.bitspersample
        self.extra = page.extrasamples[:1] or (2,)
        extra = page.samplesperpixel - self.colours
        if extra < 0 or page.dtype.kind not in "buif":
            raise OSError(f"has {page.samplesperpixel} channels of type {page.dtype}, which do not make a picture")
        if extra > 1 or (extra == 1 and self.extra[0] == UNSPECIFIED and self.colours == 1):
            raise OSError(f"has {page.samplesperpixel} channels; save grey or RGB, with or without alpha")
        inks = page.tags.valueof(INK_SET, 1), page.tags.valueof(NUMBER_OF_INKS, 4)
        if kind == "SEPARATED" and (inks != (1, 4) or (extra == 1 and not page.extrasamples)):
            raise OSError("has other inks than cyan, magenta, yellow and black; save it as RGB")
        if kind in ("MINISWHITE", "SEPARATED") and extra == 1 and self.extra[0] == PREMULTIPLIED:
            raise OSError(f"has {kind} multiplied by alpha, which programs read in two ways; save it as RGB")
        if kind == "MINISWHITE" and not self._has_range(page.dtype):
            raise OSError(f"has {page.dtype} in which 0 is white, so that the value of black is unknown")
        self.has_alpha = extra == 1 and self.extra[0] != UNSPECIFIED
        self.palette = None if kind != "PALETTE" else _palette(page)

    def _has_range(self, dtype: np.dtype) -> bool:
        return dtype.kind in "bf" or (dtype.kind == "u" and self.bits <= 16)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        is_limited = samples.dtype.kind == "u" and self.bits <= 16
        values = samples.astype(np.float32) / np.float32(2**self.bits - 1 if is_limited else 1)
        colours, alpha = values[..., : self.colours], values[..., self.colours : self.colours + self.has_alpha]
        if self.kind == "PALETTE":
            colours = self.palette[samples[..., 0]]
        elif self.kind == "MINISWHITE":
            colours = 1 - colours
        elif self.kind == "SEPARATED":
            colours = (1 - colours[..., :3]) * (1 - colours[..., 3:])
        if self.has_alpha:
            if self.extra[0] == PREMULTIPLIED:
                colours = np.divide(colours, alpha, out=np.zeros_like(colours), where=alpha > 0).clip(0, 1)
            return np.concatenate([colours, alpha], axis=-1)
        return colours[..., 0] if colours.shape[-1] == 1 else colours


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """(indices, 3) in 0..1."""
    colours = np.asarray(page.colormap, np.float32).T
    # some programs write 8 bit for 16, and viewers know that
    return colours / np.float32(255 if colours.max() < 256 else 65535)
