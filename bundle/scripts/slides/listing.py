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


"""Which slides there are: files that OpenSlide opens, and folders of DICOM files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import pydicom

from scripts.data.datalist import first_names
from scripts.images.pictures import SLIDE_SUFFIXES, SUFFIXES
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import result_name

__all__ = ["MAPS", "SEGMENTATION", "SlideList", "dicom_files", "list_slides", "slide_files"]

TAKEN = (*SLIDE_SUFFIXES, "tif", "tiff")
MAPS = {kind: f"_{kind}.ome.tif" for kind in ("probability", "mask")}  # what the results of a slide end with
SEGMENTATION = "_seg"  # a folder
RESULTS = (*MAPS.values(), SEGMENTATION)
KEYS, MOST_KEYS = (".vms", ".vmu"), 2**16  # Hamamatsu's files that name others, and characters that OpenSlide reads
BESIDE = (".geojson", ".json", ".jsonl", ".lock")  # annotations, dataset.json, and answers
logger = logging.getLogger(__name__)


class SlideList(dict):
    """Files for OpenSlide to open, by the name of their results; in ``left_out`` what is wrong with other slides."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[str] = []


def list_slides(slides: str | PathLike | Sequence[str]) -> SlideList:
    """
    The slides to infer on.

    Args:
        slides: a folder, of which the slides are taken: files by their suffixes, and those of its folders that hold
            DICOM files (``.dcm``), each such folder a slide; a folder of DICOM files; a file; or a list of these.

    Returns:
        The slides, named by `result_name`. What is missing, can't be read, or would overwrite another's results is
        logged as an error, and left out.

    Raises:
        InputError: when there is no slide left, naming everything that was left out.
    """
    paths = [Path(slides)] if isinstance(slides, (str, PathLike)) else [Path(slide) for slide in slides]
    found = SlideList()
    sources: dict[str, Path] = {}
    for path in paths:
        try:
            inside = _sources(path)
        except (OSError, ValueError) as error:  # ValueError: no name of a file
            reason = error.strerror if isinstance(error, OSError) else first_line(error)
            found.left_out.append(f"'{path}' can't be read ({reason})")
            continue
        for source in inside:
            try:
                name = result_name(source)
                if name in sources:
                    raise InputError(
                        f"The results of '{source}' would have the same name as those of '{sources[name]}'; rename one."
                    )
                found[name] = _volume(source) if source.is_dir() else source
                sources[name] = source
            except (InputError, OSError) as error:
                found.left_out.append(str(error))
    if not found and found.left_out:
        raise InputError("\n  - ".join(["No slide can be used:", *found.left_out]))
    if not found:
        known = ", ".join(TAKEN)
        remedy = "; name one (cdws infer FOLDER, or --dataset_dir)"
        pictures = set(SUFFIXES).difference(TAKEN)
        if any(inside.suffix[1:].lower() in pictures for path in paths for inside in path.iterdir()):
            remedy = ", but pictures: leave --overlay slides out (of cdws infer), or --slides (of cdws label)"
        raise InputError(f"There is no slide ({known}, or a folder of .dcm) in '{slides}'{remedy}.")
    for problem in found.left_out:
        logger.error(f"Left out: {problem}")
    return found


def _sources(path: Path) -> list[Path]:
    """Files, and folders of DICOM files, each one slide. Raises OSError when there is none, or it can't be read."""
    if path.is_file() or dicom_files(path):
        return [path]
    inside = sorted(path.iterdir())
    named = [p for p in inside if p.suffix[1:].lower() in TAKEN and not _is_result(p)]
    taken = [p for p in inside if (_holds_dicom(p) and not _is_result(p) if p.is_dir() else p in named)]
    parts = {part for slide in taken if slide in named for part in slide_files(slide)}
    left_out = [
        p.name for p in inside if (p.is_file() or p in named) and p not in {*taken, *parts} and p.suffix not in BESIDE
    ]
    if left_out:
        logger.warning(f"Not slides, left out: {first_names(left_out)}")
    return taken


def _is_result(path: Path) -> bool:
    """Whether it is a map, or DICOM segmentations, of an inference that has written into the folder of its slides."""
    ending = next((ending for ending in RESULTS if path.name.endswith(ending)), None)
    return ending is not None and path.with_name(f"{path.name.removesuffix(ending)}.json").exists()


def dicom_files(folder: Path) -> list[Path]:
    """Those in a folder, by their suffix."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")


def slide_files(path: Path) -> list[Path]:
    """
    The files that a slide is made of: those of a DICOM slide's folder, and what MIRAX and Hamamatsu have beside theirs.
    """
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return dicom_files(path.parent)
    if suffix == ".mrxs":
        return [path, *sorted(path.with_suffix("").glob("*"))]
    if suffix not in KEYS or not path.is_file():
        return [path]
    with path.open(encoding="latin-1") as file:
        values = [line.partition("=")[2].strip() for line in file.read(MOST_KEYS).splitlines()]
    named = [path.parent / value for value in values if value == os.path.basename(value)]
    return [path, *filter(os.path.isfile, named)]


def _holds_dicom(folder: Path) -> bool:
    try:
        return bool(dicom_files(folder))
    except OSError as error:
        logger.warning(f"'{folder}' can't be read ({error.strerror}), and is left out.")
        return False


def _volume(folder: Path) -> Path:
    """One of the files of a DICOM slide that hold the slide itself, and not its label; OpenSlide finds the others."""
    files = dicom_files(folder)
    series = set()
    volumes = []
    for path in files:
        try:
            header = pydicom.dcmread(path, specific_tags=["ImageType", "SeriesInstanceUID"], stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError):
            continue  # OpenSlide will say what is wrong, if nothing else is there
        series.add(header.get("SeriesInstanceUID"))
        if "VOLUME" in header.get("ImageType", []):
            volumes.append(path)
    if len(series) > 1:
        raise InputError(f"'{folder}' holds {len(series)} DICOM series; put each into a folder of its own.")
    return (volumes or files)[0]
