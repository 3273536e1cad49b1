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

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from marked_pictures import COLUMN, ROW, SIZE, contiguous, marked, tiff
from monai.transforms import LoadImage
from PIL import Image
from scripts.images.loading import load_image, load_mask
from scripts.images.readers import PictureReader

COLOUR_MAP = np.zeros((3, 256), np.uint16)
COLOUR_MAP[:, 0], COLOUR_MAP[:, 1] = (65535, 65535, 65535), (13107, 26214, 52428)
NOT_SUBSAMPLED = [(530, "H", 2, (1, 1), True)]
BLUE, WHITE = (51, 102, 204), (255, 255, 255)
BLUE_VALUE, WHITE_VALUE = [0.2, 0.4, 0.8], [1.0, 1.0, 1.0]
BLUE16, WHITE16 = (13107, 26214, 52428), (65535, 65535, 65535)
# What a viewer shows of 1 2 3 over 4 5 6, by TIFF's and EXIF's definition: which sides row 0 and column 0 are
SHOWN = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def pillow(array: np.ndarray, mode: str | None = None) -> Callable[[Path], None]:
    return lambda path: (Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)).save(path)


def png(array: np.ndarray, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> Callable[[Path], None]:
    """A PNG by its specification, of rows (H, bytes) that may be packed: Pillow writes no colours of 16 bit."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    width = array.shape[1] * 8 // bits if array.ndim == 2 and bits < 8 else array.shape[1]
    header = struct.pack(">IIBBBBB", width, len(array), bits, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in array)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    return lambda path: path.write_bytes(content)


def grey_alpha(path: Path) -> None:
    picture = Image.fromarray(marked(51, 255, np.uint8)).convert("LA")
    picture.putpixel((COLUMN, ROW), (51, 153))  # Pillow counts x, y
    picture.save(path)


def palette(path: Path) -> None:
    """The indices 0 and 1, of which only the palette says what they mean."""
    picture = Image.fromarray(marked(1, 0, np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 51, 102, 204])
    picture.save(path)


def transparent_palette(path: Path) -> None:
    picture = Image.fromarray(marked(1, 0, np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 51, 102, 204])
    picture.save(path, transparency=1)


def cmyk(path: Path) -> None:
    Image.fromarray(marked((204, 153, 51, 0), (0, 0, 0, 0), np.uint8), "CMYK").save(path)


CASES = {
    "grey.png": (pillow(marked(51, 255, np.uint8)), [0.2], [1.0]),
    "grey.tif": (pillow(marked(51, 255, np.uint8)), [0.2], [1.0]),
    "grey.bmp": (pillow(marked(51, 255, np.uint8)), [0.2], [1.0]),
    "grey16.png": (pillow(marked(13107, 65535, np.uint16)), [0.2], [1.0]),
    "grey16.tif": (tiff(marked(13107, 65535, np.uint16)), [0.2], [1.0]),
    "grey16_big_endian.tif": (tiff(marked(13107, 65535, np.uint16), byteorder=">"), [0.2], [1.0]),
    "grey_alpha.png": (grey_alpha, [0.2, 0.6], [1.0, 1.0]),
    "rgb.png": (pillow(marked(BLUE, WHITE, np.uint8)), BLUE_VALUE, WHITE_VALUE),
    "rgb.tiff": (pillow(marked(BLUE, WHITE, np.uint8)), BLUE_VALUE, WHITE_VALUE),
    "rgb.bmp": (pillow(marked(BLUE, WHITE, np.uint8)), BLUE_VALUE, WHITE_VALUE),
    "RGB.PNG": (pillow(marked(BLUE, WHITE, np.uint8)), BLUE_VALUE, WHITE_VALUE),
    "rgb16.tif": (tiff(marked(BLUE16, WHITE16, np.uint16), photometric="rgb"), BLUE_VALUE, WHITE_VALUE),
    "rgba.png": (
        pillow(marked((*BLUE, 153), (*WHITE, 255), np.uint8)),
        [*BLUE_VALUE, 0.6],
        [*WHITE_VALUE, 1.0],
    ),
    "rgb16.png": (png(marked((1, 2, 52428), WHITE16, np.uint16), 16, 2), [1 / 65535, 2 / 65535, 0.8], WHITE_VALUE),
    "grey_alpha16.png": (png(marked((13107, 1), (65535, 65535), np.uint16), 16, 4), [0.2, 1 / 65535], [1.0, 1.0]),
    "rgba16.png": (
        png(marked((*BLUE16, 257), (*WHITE16, 65535), np.uint16), 16, 6),
        [*BLUE_VALUE, 257 / 65535],
        [*WHITE_VALUE, 1.0],
    ),
    "transparent_colour16.png": (
        png(marked(BLUE16, (13107, 26214, 52429), np.uint16), 16, 2, (b"tRNS", struct.pack(">3H", *BLUE16))),
        [*BLUE_VALUE, 0.0],
        [0.2, 0.4, 52429 / 65535, 1.0],
    ),
    "palette.png": (palette, BLUE_VALUE, WHITE_VALUE),
    "palette.bmp": (palette, [*BLUE_VALUE, 1.0], [*WHITE_VALUE, 1.0]),
    "palette_transparent.png": (transparent_palette, [*BLUE_VALUE, 0.0], [*WHITE_VALUE, 1.0]),
    "cmyk.tif": (cmyk, BLUE_VALUE, WHITE_VALUE),  # R = 255 - C without black
    "one_bit.png": (pillow(marked(True, False, bool)), [1.0], [0.0]),
    "one_bit.bmp": (pillow(marked(True, False, bool)), [1.0], [0.0]),
    "one_bit.tif": (pillow(marked(True, False, bool)), [1.0], [0.0]),
    "float_grey.tif": (tiff(marked(0.2, 1, np.float32)), [0.2], [1.0]),
    "double_grey.tif": (tiff(marked(0.2, 1, np.float64)), [0.2], [1.0]),
    "float_rgb.tif": (tiff(marked(BLUE_VALUE, WHITE_VALUE, np.float32), photometric="rgb"), BLUE_VALUE, WHITE_VALUE),
    # of unknown range: as they stand, for ToRGB to refuse
    "over_16_bit.tif": (tiff(marked(70000, 0, np.int32)), [70000.0], [0.0]),
    "negative.tif": (tiff(marked(-7, 0, np.int16)), [-7.0], [0.0]),
    "float_grey_over_1.tif": (tiff(marked(255, 3, np.float32)), [255.0], [3.0]),
    "planes16.tif": (
        tiff(marked(BLUE16, WHITE16, np.uint16).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        BLUE_VALUE,
        WHITE_VALUE,
    ),
    "white_is_zero.tif": (tiff(marked(204, 0, np.uint8), photometric="miniswhite"), [0.2], [1.0]),
    "white_is_zero16.tif": (tiff(marked(52428, 0, np.uint16), photometric="miniswhite"), [0.2], [1.0]),
    "white_is_zero_float.tif": (tiff(marked(0.8, 0, np.float32), photometric="miniswhite"), [0.2], [1.0]),
    "white_is_zero_one_bit.tif": (tiff(marked(True, False, bool), photometric="miniswhite"), [0.0], [1.0]),
    "twelve_bit.tif": (tiff(marked(819, 4095, np.uint16), bitspersample=12), [0.2], [1.0]),
    "palette.tif": (tiff(marked(1, 0, np.uint8), photometric="palette", colormap=COLOUR_MAP), BLUE_VALUE, WHITE_VALUE),
    "cmyk16.tif": (
        tiff(marked((13107, 26214, 65535, 32768), (0, 0, 0, 0), np.uint16), photometric="separated"),
        [0.8 * 32767 / 65535, 0.6 * 32767 / 65535, 0.0],  # of each ink what is left, and of that what black leaves
        WHITE_VALUE,
    ),
    "fax.tif": (lambda path: Image.fromarray(marked(True, False, bool)).save(path, compression="group4"), [1.0], [0.0]),
    "ycbcr.tif": (  # of ITU-R BT.601: grey, where Cb and Cr are in the middle
        tiff(marked((51, 128, 128), (255, 128, 128), np.uint8), photometric="ycbcr", extratags=NOT_SUBSAMPLED),
        [0.2] * 3,
        WHITE_VALUE,
    ),
    "alpha_of_grey.tif": (
        tiff(marked((51, 153), (255, 255), np.uint8), photometric="minisblack", **contiguous("unassalpha")),
        [0.2, 0.6],
        [1.0, 1.0],
    ),
    "alpha16_premultiplied.tif": (
        tiff(
            marked((6553.5 * 1.2, 13107 * 1.2, 26214 * 1.2, 39321), (*WHITE16, 65535), np.uint16),
            photometric="rgb",
            **contiguous("assocalpha"),
        ),
        [*BLUE_VALUE, 0.6],
        [*WHITE_VALUE, 1.0],
    ),
    "fourth_of_no_meaning.tif": (
        tiff(marked((*BLUE, 153), (*WHITE, 9), np.uint8), photometric="rgb", **contiguous("unspecified")),
        BLUE_VALUE,
        WHITE_VALUE,
    ),
    "transparent_colour.png": (
        lambda path: Image.fromarray(marked(BLUE, WHITE, np.uint8)).save(path, transparency=BLUE),
        [*BLUE_VALUE, 0.0],
        [*WHITE_VALUE, 1.0],
    ),
    "transparent_grey.png": (
        lambda path: Image.fromarray(marked(51, 255, np.uint8)).save(path, transparency=51),
        [0.2, 0.0],
        [1.0, 1.0],
    ),
    "transparent_grey16.png": (
        lambda path: Image.fromarray(marked(13107, 65535, np.uint16)).save(path, transparency=13107),
        [0.2, 0.0],
        [1.0, 1.0],
    ),
}


def load(path: Path | list[Path]) -> torch.Tensor:
    return LoadImage(dtype=None, ensure_channel_first=True)(path, PictureReader())


@pytest.mark.parametrize("name", CASES)
def test_values_and_place_of_a_pixel(name: str, tmp_path: Path) -> None:
    write, mark, ground = CASES[name]
    write(tmp_path / name)
    image = load(tmp_path / name)
    expected = torch.tensor(ground).view(-1, 1, 1).repeat(1, SIZE[1], SIZE[0])  # (C, W, H)
    expected[:, COLUMN, ROW] = torch.tensor(mark)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image.as_tensor(), expected, rtol=0, atol=3e-5 if "premultiplied" in name else 1e-6)
    assert list(image.meta["spatial_shape"]) == [7, 5]


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("CMYK", 3)])
def test_jpeg_within_its_losses(mode: str, channels: int, tmp_path: Path) -> None:
    array = np.full((32, 64, 3), 51, np.uint8)
    array[:, 16:] = 204  # a flat block on the left: the axes can't be swapped unnoticed
    Image.fromarray(array).convert(mode).save(tmp_path / "a.jpg", quality=95)
    image = load(tmp_path / "a.jpg").as_tensor()
    expected = torch.full((channels, 64, 32), 0.8)
    expected[:, :16] = 0.2
    torch.testing.assert_close(image, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [0, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_lies_as_a_viewer_shows_it(dtype, channels, compression, orientation, tmp_path: Path) -> None:
    stored = np.array(SHOWN[1], dtype)
    stored = np.stack([stored] * channels, axis=-1) if channels else stored
    options = {"photometric": "rgb" if channels else "minisblack", "compression": compression}
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=tag, **options)
    largest = 1 if dtype is np.float32 else np.iinfo(dtype).max
    picture = PictureReader().read(tmp_path / "a.tif")
    assert picture.ndim == (3 if channels else 2)
    for channel in np.moveaxis(picture, -1, 0) if channels else [picture]:
        np.testing.assert_allclose(channel * largest, SHOWN[orientation], rtol=1e-6)


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_fax_and_ycbcr_lie_as_a_viewer_shows_them(orientation: int, tmp_path: Path) -> None:
    """By Pillow's decoder and by tifffile's, compressed and not."""
    bits = np.array(SHOWN[1]) == 2
    Image.fromarray(bits).save(tmp_path / "fax.tif", compression="group4", tiffinfo={274: orientation})
    greys = np.stack([np.array(SHOWN[1], np.uint8)] + [np.full((2, 3), 128, np.uint8)] * 2, axis=-1)
    tags = [*NOT_SUBSAMPLED, (274, "H", 1, orientation, True)]
    for name, compression in (("stored", None), ("zlib", "zlib")):
        tifffile.imwrite(tmp_path / f"{name}.tif", greys, photometric="ycbcr", extratags=tags, compression=compression)
        picture = PictureReader().read(tmp_path / f"{name}.tif")
        np.testing.assert_allclose(picture[..., 1] * 255, SHOWN[orientation], atol=1e-4)
    shown = PictureReader().read(tmp_path / "fax.tif")
    np.testing.assert_array_equal(shown, np.array(SHOWN[orientation]) == 2)


def test_smaller_versions_beside_a_page_are_none(tmp_path: Path) -> None:
    """A pyramid: its first page is what a viewer shows, in full."""
    picture = marked(BLUE, WHITE, np.uint8)
    with tifffile.TiffWriter(tmp_path / "marked.tif") as writer:
        writer.write(picture, photometric="rgb", metadata=None)
        writer.write(picture[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "inside.tif") as writer:
        writer.write(picture, photometric="rgb", metadata=None, subifds=1)
        writer.write(picture[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    for name in ("marked.tif", "inside.tif"):
        np.testing.assert_allclose(PictureReader().read(tmp_path / name) * 255, picture, atol=1e-4)


@pytest.mark.parametrize(
    ("outer", "inner", "kind", "problem"),
    [(1, 1, 4, "transparency mask"), (2, 1, 0, "2 pages"), (1, 1, 0, "2 pages"), (1, 2, 4, "transparency mask")],
)
def test_what_lies_inside_a_page_is_a_smaller_version_or_refused(outer, inner, kind, problem, tmp_path: Path) -> None:
    """A SubIFD: a raw picture of a camera has the picture there, and a preview of it as its page."""
    picture = marked(BLUE, WHITE, np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(picture[::outer, ::outer], photometric="rgb", metadata=None, subifds=1)
        writer.write(picture[::inner, ::inner], photometric="rgb", metadata=None, subfiletype=1)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].pages[0].tags["NewSubfileType"].overwrite(kind)
    with pytest.raises(OSError, match=problem):
        PictureReader().read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "jpeg"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_tiff_that_is_cut_short_is_refused_and_not_black_from_there(compression, tile, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture, photometric="rgb", compression=compression, tile=tile, rowsperstrip=tile or 16)
    content = path.read_bytes()
    PictureReader().read(path)
    for part in (0.95, 0.6, 0.3):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(OSError, match=r"cut short|not a picture"):
            PictureReader().read(path)


@pytest.mark.parametrize("shape", [(12, 8), (13, 11), (12, 9, 3)])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_picture_shrinks_to_the_means_of_its_squares(shape: tuple, orientation: int, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", picture, extratags=tag, photometric="rgb" if len(shape) > 2 else "minisblack")
    rows, columns = shape[0] // 3, shape[1] // 3
    means = [[picture[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].mean((0, 1)) for x in range(columns)] for y in range(rows)]
    turn = {1: lambda a: a, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1)}[orientation]
    shrunk = PictureReader(shrink=3).read(tmp_path / "a.tif")
    np.testing.assert_allclose(shrunk * 255, turn(np.array(means)), rtol=1e-5)


def test_several_files_become_channels(tmp_path: Path) -> None:
    for name, value in (("a.png", 51), ("b.png", 204)):
        Image.fromarray(marked(value, 0, np.uint8)).save(tmp_path / name)
    image = load([tmp_path / "a.png", tmp_path / "b.png"])
    assert image.shape == (2, 7, 5)
    assert image[:, COLUMN, ROW].tolist() == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89PNG\r\n\x1a\n", b"II*\x00"])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_damaged_files_are_refused_by_the_reader(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=r"not a picture: ."):
        PictureReader().read(tmp_path / name)


def test_missing_file_is_refused_by_the_reader(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        PictureReader().read(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("name", "known"), [("a.png", True), ("a.JPG", True), ("a.tiff", True), ("a.nii.gz", False), ("a.svs", False)]
)
def test_suffixes(name: str, known: bool) -> None:
    assert PictureReader().verify_suffix(name) is known


@pytest.mark.parametrize(("bits", "transparent"), [(2, 2), (4, 5)])
def test_a_transparent_grey_of_few_bits_is_transparent(tmp_path, bits: int, transparent: int) -> None:
    """Of four pixels, the third is the transparent one: Pillow writes no such file."""
    largest = 2**bits - 1
    samples = (0, 1, transparent, largest)
    packed = sum(sample << bits * (3 - i) for i, sample in enumerate(samples)).to_bytes(4 * bits // 8, "big")

    transparency = (b"tRNS", struct.pack(">H", transparent))
    png(np.frombuffer(packed, np.uint8)[None], bits, 0, transparency)(tmp_path / "a.png")
    grey, alpha = load_image(tmp_path / "a.png")[:, :, 0]
    np.testing.assert_allclose(grey, [sample / largest for sample in samples], atol=1e-6)
    assert alpha.tolist() == [1, 1, 0, 1]
    assert np.asarray(load_mask(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 0, 1]


def test_a_mask_of_16_bit_colours_has_the_smallest_of_its_numbers(tmp_path) -> None:
    """1 to 255 of 65535 are 0 in 8 bit."""
    numbers = np.array([[0, 1, 255, 256, 65535]])
    png(np.stack([numbers, 0 * numbers, 0 * numbers], axis=-1), 16, 2)(tmp_path / "rgb.png")
    png(np.stack([numbers, 65535 + 0 * numbers], axis=-1), 16, 4)(tmp_path / "grey_alpha.png")
    for name in ("rgb.png", "grey_alpha.png"):
        assert np.asarray(load_mask(tmp_path / name))[0, :, 0].tolist() == [0, 1, 1, 1, 1]


def test_a_tiff_whose_pages_are_a_circle_is_refused(tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 6), 7, np.uint8))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<I", content, first + 2 + 12 * entries, first)  # the next page is this one
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(OSError, match="lead back to an earlier one"):
        load_image(tmp_path / "a.tif")


def test_a_tile_larger_than_its_image_counts_as_it_is_decoded(tmp_path) -> None:
    """One tile of 20,480 x 20,480 floats, 1.6 GB, announced for an image of 16 x 16."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((16, 16), np.float32), tile=(16, 16), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["TileWidth"].overwrite(20_480)
        tiff.pages[0].tags["TileLength"].overwrite(20_480)
    with pytest.raises(OSError, match="has 16x16 pixels, 1600 MiB; at most"):
        load_image(tmp_path / "a.tif")
