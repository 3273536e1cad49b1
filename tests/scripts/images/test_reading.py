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

import gzip
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from marked_pictures import SIZE, contiguous, marked, tiff
from PIL import Image
from scripts.images import room
from scripts.images.annotations import AnnotationReader
from scripts.images.loading import load_image, load_mask
from scripts.images.readers import PictureReader
from scripts.images.room import Room, room_for


def exif_of(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """A directory with values as they are given, right or wrong: (tag, type, count, bytes)."""
    offset, body, data = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, count, value in sorted(entries):
        inline = len(value) <= 4
        body += struct.pack("<HHL", tag, kind, count)
        body += value.ljust(4, b"\0") if inline else struct.pack("<L", offset + len(data))
        data += b"" if inline else value
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + body + bytes(4) + data


ORIENTATION_6 = (274, 3, 1, struct.pack("<H", 6))
DAMAGED_EXIF = {
    "none": [],
    "negative resolution": [(282, 10, 1, struct.pack("<ll", -1, 3))],
    "resolution without a denominator": [(282, 5, 1, struct.pack("<LL", 72, 0))],
    "a unit that is text": [(296, 2, 4, b"cm.\0")],
    "a resolution that is text": [(282, 2, 5, b"72/1\0")],
    "text that is no text": [(271, 2, 6, b"\xff\xfe\0\x80ab")],
    "a value beyond the end": [(315, 2, 90_000, b"\xff\xff\xff\x7f")],
    "a kind that is not there": [(306, 99, 3, b"abc")],
    "a directory that is not there": [(34665, 4, 1, struct.pack("<L", 2**31))],
}


@pytest.mark.parametrize("damage", DAMAGED_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_orientation_is_followed_in_exif_that_is_damaged_elsewhere(suffix: str, damage: str, tmp_path: Path) -> None:
    stored = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    stored.paste((255, 255, 255), (0, 0, 8, 8))  # at the top on the left
    stored.save(tmp_path / f"a.{suffix}", exif=exif_of([ORIENTATION_6, *DAMAGED_EXIF[damage]]), quality=95)
    picture = load_image(tmp_path / f"a.{suffix}")
    assert picture.shape == (3, 20, 30)
    assert picture[0, 19, 0] > 0.9  # at the top on the right
    assert picture[0, 0, 0] < 0.1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(value: int, tmp_path: Path) -> None:
    exif = exif_of([(274, 3, 1, struct.pack("<H", value))])
    Image.fromarray(marked(51, 255, np.uint8)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(PictureReader().read(tmp_path / "a.png"), marked(0.2, 1, float), atol=1e-6)
    tag = [(274, "H", 1, value, True)]
    tifffile.imwrite(tmp_path / "a.tif", marked(51, 255, np.uint8), extratags=tag)
    np.testing.assert_allclose(PictureReader().read(tmp_path / "a.tif"), marked(0.2, 1, float), atol=1e-6)


PAGE = np.zeros((*SIZE, 3), np.uint8)


def pages(*arrays: np.ndarray, **options: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            for array in arrays:
                writer.write(array, photometric="rgb", **options)

    return write


@pytest.mark.parametrize(
    ("write", "count"),
    [
        (tiff(np.stack([PAGE, PAGE]), photometric="rgb"), 2),
        (pages(PAGE, PAGE, PAGE, metadata=None), 3),
        (pages(PAGE, PAGE[:3], metadata=None), 2),
        (pages(PAGE, PAGE[::-1]), 2),
        (tiff(np.stack([PAGE[..., 0]] * 4), imagej=True), 4),
        (tiff(np.stack([PAGE[..., 0]] * 4), photometric="minisblack", metadata={"axes": "TYX"}, ome=True), 4),
        (tiff(np.stack([PAGE[..., 0]] * 4), photometric="minisblack", contiguous=True, truncate=True), 4),
        (tiff(np.stack([PAGE[..., 0]] * 5), photometric="minisblack", volumetric=True, tile=(16, 16, 16)), 5),
    ],
)
def test_more_pages_than_one_are_counted_and_refused(write: Callable, count: int, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    with pytest.raises(OSError, match=f"has {count} pages; save the one that is meant"):
        load_image(tmp_path / "a.tif")


def inks(count: int, *tags: tuple, extra: str = "unspecified") -> Callable[[Path], None]:
    """Of so many inks; what more than four are `extra` says, or nobody where it is empty."""

    def write(path: Path) -> None:
        options = contiguous(extra or "unspecified") if count > 4 else {}
        tifffile.imwrite(path, np.zeros((*SIZE, count), np.uint8), photometric="separated", extratags=tags, **options)
        if not extra:
            with tifffile.TiffFile(path) as tiff:
                at = tiff.pages[0].tags["ExtraSamples"].offset
            content = bytearray(path.read_bytes())
            struct.pack_into("<H", content, at, 65000)  # to a tag of no meaning
            path.write_bytes(content)

    return write


def depths(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((*SIZE, 3), np.uint8), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["BitsPerSample"].overwrite((5, 6, 5))


def with_mask(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(PAGE, photometric="rgb", metadata=None)
        writer.write(PAGE[..., 0] > 0, photometric="mask", subfiletype=4, metadata=None)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (tiff(np.zeros((*SIZE, 5), np.uint8), photometric="rgb", planarconfig="contig"), "has 5 channels"),
        (tiff(np.zeros((*SIZE, 2), np.uint8), photometric="minisblack", **contiguous("unspecified")), "has 2 channels"),
        (tiff(np.zeros((3, *SIZE), np.uint8), photometric="minisblack", planarconfig="separate"), "has 3 channels"),
        (tiff(np.zeros(SIZE, np.complex64)), "complex64"),
        (tiff(np.zeros(SIZE, np.int16), photometric="miniswhite"), "the value of black is unknown"),
        (tiff(np.zeros(SIZE, np.uint32), photometric="miniswhite"), "the value of black is unknown"),
        (tiff(np.zeros(SIZE, np.uint16), photometric="cfa"), "whose numbers are CFA"),
        (inks(5, (334, "H", 1, 5, True)), "other inks than cyan"),
        (inks(4, (332, "H", 1, 2, True)), "other inks than cyan"),
        (inks(5, extra=""), "other inks than cyan"),
        (inks(5, extra="assocalpha"), "SEPARATED multiplied by alpha"),
        (
            tiff(np.zeros((*SIZE, 2), np.uint8), photometric="miniswhite", **contiguous("assocalpha")),
            "MINISWHITE multiplied by alpha",
        ),
        (depths, r"channels of different depths, \(5, 6, 5\) bit"),
        (with_mask, "has a transparency mask on a page of its own"),
    ],
)
def test_tiffs_that_no_viewer_shows_are_refused(write: Callable, reason: str, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    with pytest.raises(OSError, match=reason):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "raw.nrrd", "gzip.nrrd"])
def test_nifti_and_nrrd_are_pictures_of_no_more_pixels_than_others(name: str, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((20000, 20000, 1))
    header["magic"], header["vox_offset"] = b"n+1", 352
    nifti = header.binaryblock + bytes(4)
    encoding = name.split(".")[0]
    nrrd = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 20000 20000\nencoding: {encoding}\n\n".encode()
    contents = {"a.nii": nifti, "a.nii.gz": gzip.compress(nifti)}
    (tmp_path / name).write_bytes(contents.get(name, nrrd + gzip.compress(bytes(9))))
    for read in (load_image, load_mask):
        with pytest.raises(ValueError, match=r"has 20000x20000.* more than the 178956970 that are read"):
            read(tmp_path / name)


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
    mask = load_mask(tmp_path / "label.xml")
    truth = torch.zeros(1, 9, 5)
    truth[:, 4:7, 1:3] = 1
    assert torch.equal(mask.as_tensor(), truth)


def test_a_point_beside_polygons_is_left_out_with_a_word(tmp_path: Path, caplog) -> None:
    point = '<Annotation Type="Dot"><Coordinates><Coordinate X="1" Y="1"/></Coordinates></Annotation>'
    both = annotations('W="9" H="5"', [(4, 1), (6, 1), (6, 2), (4, 2)]).replace(
        "</Annotations>", f"{point}</Annotations>"
    )
    (tmp_path / "label.xml").write_text(both)
    assert load_mask(tmp_path / "label.xml").sum() == 6
    assert "1 of 2 annotations are points or lines" in caplog.text


SQUARE = [(4, 1), (6, 1), (6, 3), (4, 3)]  # 3 x 3 pixels


def mask_of(tmp_path: Path, content: str) -> np.ndarray:
    """(H, W) bool."""
    (tmp_path / "label.xml").write_text(content)
    return load_mask(tmp_path / "label.xml").numpy()[0].T > 0


def test_corners_are_taken_by_their_order(tmp_path: Path) -> None:
    """As they stand in the file they would be a bow-tie, without the middle of its upper side."""
    content = annotations('W="9" H="5"', [SQUARE[i] for i in (0, 2, 1, 3)])
    for place, order in enumerate((0, 2, 1, 3)):
        content = content.replace(f'Order="{place}"', f'Order="#{order}"')
    truth = np.zeros((5, 9), bool)
    truth[1:4, 4:7] = True
    np.testing.assert_array_equal(mask_of(tmp_path, content.replace("#", "")), truth)
    with pytest.raises(OSError, match="ASAP"):
        mask_of(tmp_path, content)


@pytest.mark.parametrize("kind", ["PointSet", "Polyline", "Dot", "Measurement"])
def test_what_has_no_area_by_its_type_is_no_polygon(tmp_path: Path, caplog, kind: str) -> None:
    square, points = (annotations('W="9" H="5"', corners) for corners in (SQUARE, [(0, 0), (3, 0), (3, 4), (0, 4)]))
    with pytest.raises(OSError, match="points and lines"):
        mask_of(tmp_path, points.replace('"Polygon"', f'"{kind}"'))
    other = points[points.index("<Annotation ") : points.index("</Annotations>")].replace('"Polygon"', f'"{kind}"')
    assert mask_of(tmp_path, square.replace("</Annotations>", f"{other}</Annotations>")).sum() == 9
    assert (
        f"label.xml': 1 of 2 annotations are points or lines, which have no area: left out (1 x {kind})" in caplog.text
    )


@pytest.mark.parametrize("far", [20, 1e5, 1e8])
def test_a_polygon_is_cut_off_at_the_region(tmp_path: Path, far: float) -> None:
    """Left of the line x = 4, and right above the diagonal through (0, 0), which goes on beyond the region."""
    everything_left = [(-far, -far), (4, -far), (4, far), (-far, far)]
    truth = np.zeros((5, 9), bool)
    truth[:, :5] = True
    np.testing.assert_array_equal(mask_of(tmp_path, annotations('W="9" H="5"', everything_left)), truth)
    found = mask_of(tmp_path, annotations('W="9" H="5"', [(-far, -far), (far, -far), (far, far)]))
    np.testing.assert_array_equal(found, ~np.tri(5, 9, -1, bool))


@pytest.mark.parametrize("corners", [None, [(20, 1), (30, 1), (30, 4)], [(-9, -9), (-3, -9), (-3, -3)]])
def test_an_empty_mask_is_warned_of_by_name(tmp_path: Path, caplog, corners) -> None:
    content = annotations('W="9" H="5"', corners or [])
    if corners is None:
        content = content[: content.index("<Annotation ")] + content[content.index("</Annotations>") :]
    assert not mask_of(tmp_path, content).any()
    assert f"'{tmp_path / 'label.xml'}' has no polygon in its region of 9x5 pixels" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (annotations('W="9" H="5"', [(-1e12, -1e12), (1e12, -1e12), (1e12, 1e12)]), "more than 1e"),
        (annotations('W="9" H="5"', [(-1e300, 0), (1e300, 0), (1e300, 4)]), "more than 1e"),
        ("not XML", "ASAP"),
        ("<ASAP_Annotations/>", "ASAP"),
        (annotations("", [(1, 1)]), "width and height"),
        (annotations('W="0" H="0"', [(1, 1), (2, 2), (2, 3)]), "submit those of a region"),
        (annotations('W="60000" H="60000"', [(1, 1), (2, 2), (2, 3)]), "at most 178956970 pixels"),
        (annotations('W="9" H="5"', [(1, 1)]), "points and lines, which have no area; draw polygons"),
        (annotations('W="9" H="5"', [("nan", 1), (2, 2), (2, 3)]), "not finite"),
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "label.xml").write_text(content)
    with pytest.raises(OSError, match=reason):
        AnnotationReader().read(tmp_path / "label.xml")


def test_threads_decode_no_more_at_once_than_the_largest_picture_has(tmp_path: Path, monkeypatch) -> None:
    """Of pictures of 35 pixels, two fit into 80; one of 300 is decoded alone."""
    monkeypatch.setattr(room, "DECODING", Room(80))
    for number in range(6):
        Image.fromarray(marked(0, 255, np.uint8)).save(tmp_path / f"{number}.png")
    Image.fromarray(np.zeros((15, 20), np.uint8)).save(tmp_path / "6.png")
    lock, inside, seen = threading.Lock(), [], []

    def decode(number: int) -> None:
        with room_for(tmp_path / f"{number}.png"):
            with lock:
                inside.append(number)
                seen.append(sorted(inside))
            time.sleep(0.02)
            with lock:
                inside.remove(number)

    with ThreadPoolExecutor(7) as pool:
        list(pool.map(decode, range(7)))
    assert max(len(together) for together in seen) == 2
    assert [together for together in seen if 6 in together] == [[6]]
