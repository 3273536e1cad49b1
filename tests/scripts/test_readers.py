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

"""Pictures of every mode and depth, as files: known pixels must arrive with their values and at their places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import LoadImage
from PIL import Image
from scripts.readers import AnnotationReader, PictureReader

SIZE = (5, 7)  # height, width
ROW, COLUMN = 1, 4


def marked(mark: object, ground: object, dtype: type) -> np.ndarray:
    """(H, W) or (H, W, C) of `ground`, with one pixel of `mark`."""
    array = np.broadcast_to(np.array(ground, dtype), (*SIZE, *np.shape(ground))).copy()
    array[ROW, COLUMN] = mark
    return array


def pillow(array: np.ndarray, mode: str | None = None) -> Callable[[Path], None]:
    return lambda path: (Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)).save(path)


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


def tiff(array: np.ndarray, **options: object) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, array, **options)


BLUE, WHITE = (51, 102, 204), (255, 255, 255)
BLUE_VALUE, WHITE_VALUE = [0.2, 0.4, 0.8], [1.0, 1.0, 1.0]
BLUE16, WHITE16 = (13107, 26214, 52428), (65535, 65535, 65535)
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
    "palette.png": (palette, [*BLUE_VALUE, 1.0], [*WHITE_VALUE, 1.0]),
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
    "five_channels.tif": (
        tiff(marked((*BLUE, 51, 102), (*WHITE, 255, 255), np.uint8), photometric="rgb", planarconfig="contig"),
        [*BLUE_VALUE, 0.2, 0.4],
        [1.0] * 5,
    ),
}


def load(path: Path) -> torch.Tensor:
    """As the configs load."""
    return LoadImage(reader=PictureReader, dtype=None, ensure_channel_first=True)(path)


@pytest.mark.parametrize("name", CASES)
def test_values_and_place_of_a_pixel(name: str, tmp_path: Path) -> None:
    write, mark, ground = CASES[name]
    write(tmp_path / name)
    image = load(tmp_path / name)
    expected = torch.tensor(ground).view(-1, 1, 1).repeat(1, SIZE[1], SIZE[0])  # (C, W, H)
    expected[:, COLUMN, ROW] = torch.tensor(mark)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image.as_tensor(), expected, rtol=0, atol=1e-6)
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


def test_the_pages_of_a_tiff_are_not_dropped(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, *SIZE, 3), np.uint8), photometric="rgb")
    assert load(tmp_path / "a.tif").ndim == 4  # which ToRGB refuses


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


def annotations(region: str, points: list[tuple[int, int]]) -> str:
    """A file as QuPath submits it."""
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations X="300" Y="500" {region}>'
        f'<Annotation Name="cancer" Type="Polygon"><Coordinates>{coordinates}</Coordinates></Annotation>'
        "</Annotations><AnnotationGroups/></ASAP_Annotations>"
    )


def test_polygons_become_a_mask(tmp_path: Path) -> None:
    """A rectangle from (4, 1) to (6, 2), both of it, in a region of 9 x 5 pixels."""
    (tmp_path / "label.xml").write_text(annotations('W="9" H="5"', [(4, 1), (6, 1), (6, 2), (4, 2)]))
    mask = LoadImage(reader=AnnotationReader, ensure_channel_first=True)(tmp_path / "label.xml")
    truth = torch.zeros(1, 9, 5)
    truth[:, 4:7, 1:3] = 1
    assert torch.equal(mask.as_tensor(), truth)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not XML", "ASAP"),
        ("<ASAP_Annotations/>", "ASAP"),
        (annotations("", [(1, 1)]), "width and height"),
        (annotations('W="0" H="0"', [(1, 1), (2, 2), (2, 3)]), "submit those of a region"),
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "label.xml").write_text(content)
    with pytest.raises(OSError, match=reason):
        AnnotationReader().read(tmp_path / "label.xml")
