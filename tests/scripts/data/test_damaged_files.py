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

import csv
import gzip
import io
import json
import os
import re
import struct
import subprocess
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scripts.data.datalist import load_datalist
from scripts.data.listing import list_images
from scripts.images.colours import ToRGB
from scripts.images.loading import LoadPictured, load_image, load_mask
from scripts.monai_label.regions import LoadImageOrRegiond
from scripts.runtime.errors import InputError, input_error_of
from scripts.slides import SlideInference, list_slides
from scripts.volumes.datalist import list_slices
from scripts.volumes.reading import read_volume
from scripts.volumes.slices import LoadSlice

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)  # (H, W, C)
FRAMES = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    FRAMES[0].save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int, bits: int, kind: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these bytes, right or wrong; kind 0 is grey, 2 RGB, 3 a palette."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


def tiff_header(width: int, height: int, dtype: type, channels: int = 1) -> bytes:
    """A TIFF that says it is so large, and has one strip of its pixels."""
    buffer = io.BytesIO()
    shape = (4, 4, channels) if channels > 1 else (4, 4)
    tifffile.imwrite(buffer, np.zeros(shape, dtype), photometric="rgb" if channels > 2 else None, metadata=None)
    buffer.seek(0)
    with tifffile.TiffFile(buffer, mode="r+b") as tiff:
        for tag, value in ((256, width), (257, height)):
            tiff.pages[0].tags[tag].overwrite(value, dtype="I")
    return buffer.getvalue()


def png_with(**options) -> bytes:
    return encoded("PNG", **options)


def long_text() -> PngInfo:
    info = PngInfo()
    info.add_text("Comment", "x" * 3_000_000, zip=True)
    return info


def next_to_one() -> np.ndarray:
    array = np.full((8, 8), 0.5, np.float32)
    array[0, 0] = np.nextafter(np.float32(1), np.float32(2))  # 1 + 2 ** -23
    return array


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
DETACHED = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 8 8\nencoding: raw\ndata file: other.raw\n\n"


# Of each name the content, and what the message must say of it
DAMAGED = {
    "zero_bytes.png": (b"", "it is empty"),
    "text.png": (b"not a picture", "not a picture"),
    "truncated.png": (encoded("PNG")[:-150], "truncated"),
    "truncated.jpg": (encoded("JPEG")[:300], "truncated|not a picture"),
    "truncated.tif": (encoded("TIFF")[:200], "cut short|not a picture"),
    "truncated.bmp": (encoded("BMP")[:100], "truncated"),
    "header_alone.png": (encoded("PNG")[:8], "not a picture"),
    "bomb.png": (png_of(60_000, 60_000, 8, 2, b""), "3600000000 pixels"),
    "bomb.tif": (tiff_header(60_000, 60_000, np.uint8), "60000x60000 pixels"),
    "bytes.tif": (tiff_header(13_000, 13_000, np.float64), "13000x13000 pixels, 1289 MiB"),
    "no_pixels.png": (png_of(0, 7, 8, 2, b""), "."),
    "nan.tif": (tiff_of(np.full((8, 8), np.nan, np.float32)), "not finite"),
    "infinite.tif": (tiff_of(np.full((8, 8), np.inf, np.float32)), "not finite"),
    "next_to_one.tif": (tiff_of(next_to_one()), r"from 0\.5 to 1\.0000001;"),
    "animated.png": (encoded("PNG", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    "gif_inside.png": (encoded("GIF", save_all=True, append_images=FRAMES[1:]), "has 2 frames"),
    "pages.tif": (encoded("TIFF", save_all=True, append_images=FRAMES[1:]), "has 2 pages"),
    "small.png": (tiff_of(np.zeros((3, 9), np.uint8)), "is 9x3, smaller than 4x4"),
    "long_text.png": (png_with(pnginfo=long_text()), "MAX_TEXT_CHUNK"),
    "profile.png": (png_with(icc_profile=bytes(2_000_000)), "MAX_TEXT_CHUNK"),
    "few_rows.png": (png_of(8, 8, 8, 0, bytes(9) * 5), "Not enough image data"),
    "no_palette.png": (png_of(8, 8, 8, 3, bytes(9) * 8), "a palette is missing"),
    "eps.png": (EPS, "not a picture"),
    "detached.png": (DETACHED, "not a picture"),
    "attached.png": (DETACHED.replace(b"data file: other.raw\n", b"") + bytes(64), "not a picture"),
    "array.png": (b"\x93NUMPY\x01\x00", "not a picture"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named_with_the_reason(tmp_path: Path, name: str, caplog) -> None:
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "other.raw").write_bytes(bytes(64))
    Image.fromarray(PICTURE).save(tmp_path / "whole.png")
    found = list_images(tmp_path)
    assert found == [{"image": str(tmp_path / "whole.png")}]
    (problem,) = found.left_out
    assert problem.startswith(f"'{tmp_path / name}': ")
    assert re.search(reason, problem)
    with pytest.raises(InputError, match=name):
        found.report_left_out()


@pytest.mark.parametrize("name", [name for name in DAMAGED if "next_to_one" not in name and "small" not in name])
@pytest.mark.filterwarnings("ignore")
def test_masks_are_refused_for_the_same_reasons(tmp_path: Path, name: str) -> None:
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    for whole in ("whole.png", "negative.png"):
        Image.fromarray(PICTURE).save(tmp_path / whole)
    items = [{"image": "whole.png", "label": 1, "mask": name}, {"image": "negative.png", "label": 0}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    with pytest.raises(InputError) as caught:
        load_datalist(tmp_path, ["training"])
    _, problem = str(caught.value).split("\n  - ")
    assert problem.startswith(f"training[0] '{tmp_path / 'whole.png'}': the mask '{tmp_path / name}' can't be read (")
    if content:
        assert re.search(reason, problem)


WAITS = """
import sys
from pathlib import Path
from scripts.data.datalist import load_datalist
from scripts.images.loading import load_image
from scripts.images.slide import Slide
from scripts.training.checkpoints import trained_size
from scripts.volumes.reading import read_volume

folder = Path(sys.argv[1])
for pipe in sorted(folder.glob("a.*")):
    assert trained_size(pipe, [2, 3]) == [2, 3]
    for read in (load_image, Slide, read_volume):
        try:
            read(pipe)
        except Exception as error:
            print(pipe.name, error)
load_datalist(folder, ["training"])
"""


def test_nobody_waits_for_what_is_written_into_a_pipe(tmp_path: Path, quick_python: str) -> None:
    """In a process of its own: a test that waits could not fail."""
    names = ["a.dcm", "a.nii.gz", "a.nrrd", "a.png", "a.tif", "a.xml"]
    for name in names:
        os.mkfifo(tmp_path / name)
    items = [{"image": name, "label": 1, "mask": name} for name in names]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    command = [quick_python, "-c", WAITS, str(tmp_path)]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=100, check=False)
    for name in names:
        assert len(re.findall(rf"^{name} .*is not a regular file", done.stdout, re.M)) == 3
        assert len(re.findall(rf"^  - .*{name}'.* is not a regular file", done.stderr, re.M)) == 2  # image and mask


def test_an_eps_starts_no_program(tmp_path: Path, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **options: started.append(command))
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(OSError, match="not a picture"):
        load_image(tmp_path / "a.png")
    assert started == []


def test_a_detached_nrrd_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other.raw").write_bytes(bytes(64))
    (tmp_path / "in" / "a.nrrd").write_bytes(DETACHED.replace(b"other.raw", b"../other.raw"))
    for read in (load_image, load_mask, read_volume):
        with pytest.raises(ValueError, match="values in another file"):
            read(tmp_path / "in" / "a.nrrd")


def test_a_tilde_is_no_home(tmp_path: Path, monkeypatch) -> None:
    """The name is that of a file in a folder called '~', which is what was checked."""
    (tmp_path / "home").mkdir()
    (tmp_path / "~").mkdir()
    Image.fromarray(255 - PICTURE).save(tmp_path / "home" / "x.png")
    Image.fromarray(PICTURE).save(tmp_path / "~" / "x.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for load in (LoadPictured, LoadImageOrRegiond):
        loaded = load("image")({"image": "~/x.png"})["image"]
        np.testing.assert_allclose(np.asarray(loaded).transpose(2, 1, 0) * 255, PICTURE, atol=1e-4)


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


@pytest.mark.parametrize("name", ["...png", "..png", ".a.png", f"{'a' * 240}.png", "b.bmp"])
def test_a_name_that_results_cannot_have_is_left_out(tmp_path: Path, name: str) -> None:
    """Without a name, hidden, too long with its ending, or another image's."""
    for each in (name, "b.BMP", "c.png"):
        (tmp_path / each).write_bytes(encoded("PNG"))
    found = list_images(tmp_path)
    assert found == [{"image": str(tmp_path / each)} for each in ("b.BMP", "c.png")]
    (problem,) = found.left_out
    assert str(tmp_path / name) in problem


@pytest.mark.parametrize("name", [".nii.gz", "..nii", ".a.nii", f"{'a' * 240}.nii.gz"])
def test_a_name_that_results_of_a_volume_cannot_have_is_left_out(tmp_path: Path, name: str) -> None:
    for each in (name, "b.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.ones((6, 6, 1), np.uint8), np.eye(4)), tmp_path / "saved.nii")
        content = (tmp_path / "saved.nii").read_bytes()
        (tmp_path / each).write_bytes(gzip.compress(content) if each.endswith("gz") else content)
    found = list_slices([str(tmp_path / name), str(tmp_path / "b.nii.gz")])
    assert {item["image"] for item in found} == {str(tmp_path / "b.nii.gz")}
    (problem,) = found.left_out
    assert str(tmp_path / name) in problem
    assert re.search("rename it|shorten it", problem)


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(path, "wb") as file:
            file.write(encoded("PNG"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (item,) = list_images(tmp_path)
    np.testing.assert_array_equal(shown(Path(item["image"])), PICTURE)


def test_ten_thousand_items_without_files_are_refused_at_once(tmp_path: Path) -> None:
    items = [{"image": f"{number}.png", "label": number % 2} for number in range(10_000)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    with pytest.raises(InputError, match="10000 problems"):
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


def slide_of(**options) -> bytes:
    """A tiled TIFF as OpenSlide takes it, of pixels of 1 micrometre."""
    picture = np.random.default_rng(0).integers(0, 200, (300, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    usual = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "resolution": (1e4, 1e4), "resolutionunit": 3}
    tifffile.imwrite(buffer, picture, **(usual | options))
    return buffer.getvalue()


SLIDE = slide_of()
VOXELS = np.arange(6 * 5 * 4, dtype="<i2").reshape(6, 5, 4)


def nifti() -> bytes:
    image = nibabel.Nifti1Image(VOXELS, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def nrrd(encoding: str) -> bytes:
    head = ["NRRD0005", "type: int16", "dimension: 3", "sizes: 6 5 4", f"encoding: {encoding}", "endian: little"]
    head += ["space: LPS", "space directions: (1,0,0) (0,2,0) (0,0,3)", "", ""]
    voxels = VOXELS.tobytes(order="F")
    return "\n".join(head).encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels)


def dicom() -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 5, 6, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing, dataset.SliceThickness, dataset.RescaleSlope = [2, 1], 3, 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelData = VOXELS[..., 0].tobytes(order="F")
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


WHOLE_VOLUMES = {
    "a.nii": nifti(),
    "a.nii.gz": gzip.compress(nifti()),
    "raw.nrrd": nrrd("raw"),
    "gz.nrrd": nrrd("gzip"),
    "a.dcm": dicom(),
}


@pytest.mark.parametrize("name", WHOLE_VOLUMES)
def test_the_whole_volumes_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WHOLE_VOLUMES[name])
    geometry = read_volume(tmp_path / name).geometry
    assert geometry.shape == ((6, 5, 1) if name == "a.dcm" else (6, 5, 4))
    assert geometry.millilitres == pytest.approx(0.006)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(WHOLE_VOLUMES)),
    at=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=12),
    keep=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_any_damage_gives_a_volume_or_an_error_with_a_name(tmp_path, name, at, noise, keep) -> None:
    data = WHOLE_VOLUMES[name]
    start = int(at * len(data))
    path = tmp_path / name
    path.write_bytes((data[:start] + noise + data[start + len(noise) :])[: int((0.5 + keep) * len(data))])
    items, error = [], ""
    try:
        items = list_slices(str(path))
    except InputError as refusal:
        error = str(refusal)
    assert bool(items) != (str(path) in error)
    if items:
        picture = LoadSlice()(items[0]["image"], items[0]["slice"])
        assert bool(np.isfinite(np.asarray(picture)).all())


@pytest.mark.parametrize("name", WHOLE_VOLUMES)
def test_a_volume_cut_short_is_named(tmp_path: Path, name: str) -> None:
    """At every length, but for the checksum after a NRRD's voxels, which pynrrd does not miss."""
    data = WHOLE_VOLUMES[name]
    for length in range(0, len(data) - 9, 7):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(InputError, match=name):
            list_slices(str(tmp_path / name))


DAMAGED_SLIDES = {
    "zero_bytes.svs": b"",
    "text.tif": b"not a slide",
    "truncated.tif": SLIDE[: len(SLIDE) // 2],
    "header_alone.tif": SLIDE[:8],
    "printer.tif": slide_of(resolution=(300, 300), resolutionunit=2),
    "ten_times_off.tif": slide_of(resolution=(365_000, 365_000)),
    "no_resolution.tif": slide_of(resolution=(1, 1), resolutionunit=1),
    "oblong.tif": slide_of(resolution=(1e4, 1e5)),
    "picture.tif": encoded("TIFF"),
    "...svs": SLIDE,
    ".hidden.tif": SLIDE,
    f"{'long' * 60}.tif": SLIDE,
    "whole.svs": SLIDE,  # of the same name as another
}


def test_damaged_slides_are_named_and_the_others_are_done(tmp_path: Path, lively_network, caplog) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out" / "predictions"
    (folder / "folder.svs").mkdir(parents=True)
    (folder / "nowhere.tif").symlink_to(folder / "nothing.tif")
    for name, content in {**DAMAGED_SLIDES, "whole.tif": SLIDE, "=1+1.tif": SLIDE}.items():
        (folder / name).write_bytes(content)
    (folder / "whole.svs").rename(tmp_path / "whole.svs")
    (out / "mine").mkdir(parents=True)
    (out / "mine" / "notes.txt").write_text("keep")
    slides = list_slides([str(folder), str(tmp_path / "whole.svs")])
    inference = SlideInference(
        slides=slides,
        left_out=slides.left_out,
        output_dir=str(out),
        network=lively_network,
        loader=lambda _: None,
        mpp=2.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_size=64,
    )
    with pytest.raises(InputError) as caught:
        inference.run()
    said, *problems = str(caught.value).split("\n  - ")
    wrong = [str(folder / name) for name in ({*DAMAGED_SLIDES} - {"whole.svs"}) | {"nowhere.tif"}]
    assert said.startswith(f"{len(wrong) + 1} slides can't be used")
    for path in [*wrong, str(tmp_path / "whole.svs")]:
        assert len([problem for problem in problems if path in problem]) == 1, path
    with (out / "slides.csv").open(newline="") as file:
        rows = {row["slide"]: float(row["probability"]) for row in csv.DictReader(file)}
    assert [*rows] == ["'=1+1", "whole"]
    assert 0 < rows["whole"] == rows["'=1+1"] < 1
    assert (out / "mine" / "notes.txt").read_text() == "keep"
    assert "Not slides, left out: folder.svs" in caplog.text
