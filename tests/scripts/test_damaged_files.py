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

"""Every file that a user may have, damaged or odd, ends in the right picture or in an error with its name."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scripts.data import list_images, load_datalist
from scripts.errors import InputError, input_error_of
from scripts.transforms import ToRGB, load_image, load_mask

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)  # (H, W, C)
FRAMES = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    FRAMES[0].save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def tiff_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


DAMAGED = {
    "zero_bytes.png": b"",
    "text.png": b"not a picture",
    "truncated.png": encoded("PNG")[:-150],
    "truncated.jpg": encoded("JPEG")[:300],
    "truncated.tif": encoded("TIFF")[:200],
    "truncated.bmp": encoded("BMP")[:100],
    "header_alone.png": encoded("PNG")[:8],
    "bomb.png": png_header(60_000, 60_000),
    "no_pixels.png": png_header(0, 7),
    "nan.tif": tiff_of(np.full((8, 8), np.nan, np.float32)),
    "infinite.tif": tiff_of(np.full((8, 8), np.inf, np.float32)),
    "animated.png": encoded("PNG", save_all=True, append_images=FRAMES[1:]),
    "gif_inside.png": encoded("GIF", save_all=True, append_images=FRAMES[1:]),
    "pages.tif": encoded("TIFF", save_all=True, append_images=FRAMES[1:]),
    "small.png": tiff_of(np.zeros((3, 9), np.uint8)),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named(tmp_path: Path, name: str, caplog) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    Image.fromarray(PICTURE).save(tmp_path / "whole.png")
    found = list_images(tmp_path)
    assert found == [{"image": str(tmp_path / "whole.png")}]
    (problem,) = found.left_out
    assert problem.startswith(f"'{tmp_path / name}': ")
    with pytest.raises(InputError, match=name):
        found.report_left_out()


def shown(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, as the network gets it."""
    return (np.asarray(ToRGB()(load_image(path))).transpose(2, 1, 0) * 255).round().astype(np.uint8)


def test_a_wrong_suffix_and_a_palette_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "png.jpg").write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(shown(tmp_path / "png.jpg"), PICTURE)
    FRAMES[0].quantize(200).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(shown(tmp_path / "palette.png"), np.asarray(FRAMES[0].quantize(200).convert("RGB")))
    FRAMES[0].convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(shown(tmp_path / "cmyk.tif"), PICTURE)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, PICTURE), (2, PICTURE[:, ::-1]), (3, PICTURE[::-1, ::-1]), (6, np.rot90(PICTURE, -1)), (8, np.rot90(PICTURE))],
)
def test_a_picture_lies_as_a_viewer_shows_it(tmp_path: Path, orientation: int, turned: np.ndarray) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    FRAMES[0].save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), turned)


def test_a_jpeg_mask_has_noise_above_zero_only_where_it_is_saved_so(tmp_path: Path) -> None:
    """A mask counts what is above 0, so JPEG's ringing around an edge is in it: the manual asks for PNG."""
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255  # an edge between the blocks of JPEG, which leaves no ringing
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=95)
    np.testing.assert_array_equal(np.asarray(load_mask(tmp_path / "mask.jpg"))[0].T, mask > 0)


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    Image.fromarray(PICTURE).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"a\.png"):
        list_images([str(tmp_path / "a.png")])
    assert len(list_images(tmp_path)) == 1
    items = [{"image": "a.png", "label": 1}, {"image": "c.png", "label": 0}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    with pytest.raises(InputError, match=r"training\[0\] .*a\.png"):
        load_datalist(tmp_path, ["training"])


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(path, "wb") as file:
            file.write(encoded("PNG"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (item,) = list_images(tmp_path)
    np.testing.assert_array_equal(shown(Path(item["image"])), PICTURE)


def test_a_hundred_thousand_items_without_files_are_refused_at_once(tmp_path: Path) -> None:
    items = [{"image": f"{number}.png", "label": number % 2} for number in range(100_000)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    with pytest.raises(InputError, match="100000 problems"):
        load_datalist(tmp_path, ["training"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
item = st.fixed_dictionaries(
    {}, optional={key: json_values for key in ("image", "label", "area", "mask", "group", "other")}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=json_values | st.fixed_dictionaries({"training": st.lists(item, max_size=3) | json_values}))
def test_any_json_is_an_error_with_a_name(tmp_path: Path, content: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError):
        load_datalist(tmp_path, ["training"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["png", "jpg", "tif", "bmp"]),
    at=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=12),
    keep=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_any_damage_gives_a_picture_or_an_error_with_a_name(tmp_path, suffix, at, noise, keep) -> None:
    data = encoded({"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    start = int(at * len(data))
    data = (data[:start] + noise + data[start + len(noise) :])[: int((0.5 + keep) * len(data))]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    error = None
    try:
        (found,) = list_images([str(path)])
    except InputError as refusal:
        error = str(refusal)
    if error is not None:
        assert str(path) in error
    else:
        picture = ToRGB()(load_image(found["image"]))
        assert picture.shape[0] == 3
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_a_volume_of_nan_is_named(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((6, 6, 1), np.nan, np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError) as caught:
        list_images([str(tmp_path / "a.nii.gz")])
    assert "a.nii.gz" in str(input_error_of(caught.value))
