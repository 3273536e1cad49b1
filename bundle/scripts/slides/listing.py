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
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import pydicom

from scripts.errors import InputError
from scripts.readers import SLIDE_SUFFIXES

__all__ = ["list_slides"]

TAKEN = (*SLIDE_SUFFIXES, "tif", "tiff")
logger = logging.getLogger(__name__)


def list_slides(slides: str | PathLike | Sequence[str]) -> dict[str, Path]:
    """
    The slides to infer on.

    Args:
        slides: a folder, of which the slides are taken: files by their suffixes, and those of its folders that hold
            DICOM files (``.dcm``), each such folder a slide; a folder of DICOM files; a file; or a list of these.

    Returns:
        By the name of their results (the file's or folder's without suffix) the files for OpenSlide to open.

    Raises:
        InputError: naming what is missing, or would overwrite another's results.
    """
    paths = [Path(slides)] if isinstance(slides, (str, PathLike)) else [Path(slide) for slide in slides]
    problems = [f"there is no '{path}'" for path in paths if not path.exists()]
    found: dict[str, Path] = {}
    for source in [source for path in paths if path.exists() for source in _sources(path)]:
        name = source.name if source.is_dir() else source.stem
        if name in found:
            problems.append(f"the results of '{source}' would have the same name as those of '{found[name]}'")
        found[name] = source
    if problems:
        raise InputError("The slides can't be used: " + "; ".join(problems) + ".")
    if not found:
        known = ", ".join(TAKEN)
        raise InputError(
            f"There is no slide ({known}, or a folder of .dcm) in '{slides}'; name one with --dataset_dir."
        )
    return {name: _volume(source) if source.is_dir() else source for name, source in found.items()}


def _sources(path: Path) -> list[Path]:
    """Files, and folders of DICOM files, each one slide."""
    if path.is_file() or _dicom_files(path):
        return [path]
    inside = sorted(path.iterdir())
    taken = [p for p in inside if p.suffix[1:].lower() in TAKEN or (p.is_dir() and _dicom_files(p))]
    left_out = [p.name for p in inside if p.is_file() and p not in taken]
    if left_out:
        logger.warning(f"Not slides, left out: {', '.join(left_out)}")
    return taken


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".dcm")


def _volume(folder: Path) -> Path:
    """One of the files of a DICOM slide that hold the slide itself, and not its label; OpenSlide finds the others."""
    files = _dicom_files(folder)
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
