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
"""Slices put together again: mask and probability with the geometry of their volume, and a picture."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine
from PIL import Image
from skimage.transform import resize
from skimage.util import montage

from scripts.data.listing import ImageList
from scripts.evaluation.page import Column, View, draw_view
from scripts.evaluation.predictions import PredictionTable, image_probability
from scripts.images.dicom_seg import dicom_segmentation
from scripts.images.outline import OutlineOverlay
from scripts.losses.pooling import Pooling
from scripts.runtime.errors import first_line, input_error_of, lack_of
from scripts.runtime.files import replacing
from scripts.volumes.reading import Geometry, is_dicom_source, volume_name
from scripts.volumes.slices import cut_axis, from_slices, try_read

__all__ = ["VolumeWriter"]

SHOWN = 9  # slices in the picture of a volume
SIDE = 320  # pixels of the longer side of each
logger = logging.getLogger(__name__)


class VolumeWriter(PredictionTable):
    """
    Writes a volume as soon as an evaluator has seen all of its slices. One that can't be read any more is left out.

    ``NAME_mask.nii.gz`` (0 and 1), ``NAME_probability.nii.gz`` (float32), both on the voxels and with the affine of the
    input; of DICOM images also ``NAME_mask.dcm``, a DICOM segmentation; ``NAME_overlay.png``, slices with the outline;
    and a row of ``predictions.csv``: the highest probability of a slice, whether that is positive, and the marked
    fraction and millilitres, which are empty where nobody knows how large a voxel is. The page has the same slices as
    the overlay, and shows the one with the largest marked area first, or the most probable one.

    Expects of each slice, in order, ``probability`` and ``pred``, (1, W, H) at the size of the slice, in the output,
    and ``picture``, (3, W, H) in 0..1, ``slice`` and ``count`` in the batch; the volume's path in the metadata of
    ``image``.

    Args:
        output_dir: folder of the files.
        axis: along which the slices were taken, see `LoadSlice`.
        label: name of the segment in DICOM.
        pool: gives the probability of a slice; the paper's generalized mean by default.
        images: the list of what is inferred on, to whose ``left_out`` is added what can't be read any more.
        settings: see `PredictionTable`.
    """

    columns = (*PredictionTable.columns, "millilitres")
    shown = (*PredictionTable.shown, Column("millilitres", "ml", "number"))

    def __init__(
        self,
        output_dir: str,
        axis: int = 2,
        label: str = "lesion",
        pool: Pooling | None = None,
        images: ImageList | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(output_dir, pool, **settings)
        self.output_dir = Path(output_dir)
        self.axis = axis
        self.label = label
        self.images = ImageList() if images is None else images
        self.slices: list[dict[str, np.ndarray]] = []
        self.probabilities: list[float] = []

    def __call__(self, engine: Engine) -> None:
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            if int(source["slice"]) == 0:  # the last volume may have been left out before its end
                self.slices.clear()
                self.probabilities.clear()
            meta = item["image"].meta
            maps = {key: np.asarray(item[key].cpu()) for key in ("probability", "pred")}
            self.slices.append(maps | {"picture": np.asarray(source["picture"].cpu())})
            self.probabilities.append(image_probability(item, self.pool))
            if int(source["slice"]) + 1 == int(source["count"]) == len(self.slices):  # none was left out
                problem = meta.get("problem") or self._try_write(meta["volume"])
                if problem:
                    logger.error(f"Left out: {problem}")
                    self.images.left_out.append(problem)

    def _try_write(self, path: str) -> str:
        """Write the volume whose slices are there. Returns why that is not possible."""
        try:
            return self.write(path)
        except Exception as error:  # of a format's library, which may raise anything
            if lack_of(error) is not None:
                raise
            if input_error_of(error) is None and not isinstance(error, OSError):
                logger.exception(f"The volume '{path}' can't be finished.")
            return f"the volume '{path}' can't be finished ({first_line(error)})"

    def write(self, path: str) -> str:
        """Write the volume whose slices are there. Returns what is wrong when it can't be read any more."""
        volume, problem = try_read("the volume", path)
        if volume is None:
            return problem
        geometry = volume.geometry
        axis = cut_axis(volume.array.shape, self.axis)
        probability, mask = (geometry.from_ras(self._volume(key, axis)) for key in ("probability", "pred"))
        mask = mask > 0
        name = volume_name(path)
        for kind, array in (("mask", mask.astype(np.uint8)), ("probability", probability.astype(np.float32))):
            image = _like(path, geometry, array)
            image.set_data_dtype(array.dtype)
            with replacing(self.output_dir / f"{name}_{kind}.nii.gz", binary=True) as file:
                file.write(gzip.compress(image.to_bytes()))
        if is_dicom_source(path):
            self._write_dicom(path, name, mask)
        chosen, size = self._chosen(), self._size(geometry, axis)
        with replacing(self.output_dir / f"{name}_overlay.png", binary=True) as file:
            Image.fromarray(self._picture(chosen, size)).save(file, format="PNG")
        if geometry.note:
            logger.warning(f"'{path}' {geometry.note}{'' if geometry.measured else ': no millilitres of it'}.")
        millilitres = "" if geometry.millilitres is None else f"{mask.sum() * geometry.millilitres:.6g}"
        first = max(chosen, key=lambda k: (self.slices[k]["pred"].sum(), self.probabilities[k]))
        views = [self._view(k, size) for k in chosen]
        self.add(path, max(self.probabilities), mask.mean(), views, millilitres, shown=chosen.index(first))
        return ""

    def _name_of(self, path: str) -> str:
        return volume_name(path)

    def _volume(self, key: str, axis: int) -> np.ndarray:
        return from_slices(np.stack([one[key][0] for one in self.slices]), axis)

    def _write_dicom(self, path: str, name: str, mask: np.ndarray) -> None:
        try:
            segmentation = dicom_segmentation(mask, path, self.label)
        except ImportError as error:
            logger.warning(f"No DICOM segmentation of '{path}': install highdicom ({error}).")
        except Exception as error:  # of highdicom, for images that DICOM does not let segmentations refer to
            logger.warning(f"No DICOM segmentation of '{path}': {first_line(error)}.")
        else:
            with replacing(self.output_dir / f"{name}_mask.dcm", binary=True) as file:
                segmentation.save_as(file)

    def _chosen(self) -> list[int]:
        """Slices to look at, evenly spread over those with a mask, or over all where there is none."""
        marked = [k for k, one in enumerate(self.slices) if one["pred"].any()]
        candidates = np.asarray(marked or range(len(self.slices)))
        return candidates[np.unique(np.linspace(0, len(candidates) - 1, SHOWN).round().astype(int))].tolist()

    def _size(self, geometry: Geometry, axis: int) -> np.ndarray:
        """Columns and rows of a slice's picture, in which a millimetre is as long as high."""
        spacing = np.delete(np.linalg.norm(geometry.ras_affine[:3, :3], axis=0), axis)
        extent = np.array(self.slices[0]["pred"].shape[1:]) * spacing  # mm
        return np.maximum(extent * SIDE / extent.max(), 1).round().astype(int)

    def _picture(self, chosen: Sequence[int], size: np.ndarray) -> np.ndarray:
        """(rows, columns, 3) uint8."""
        pictures = [self._outlined(self.slices[k], size).transpose(2, 1, 0) for k in chosen]  # (rows, columns, 3)
        return (montage(np.stack(pictures), channel_axis=3, fill=(0, 0, 0)).clip(0, 1) * 255).round().astype(np.uint8)

    def _view(self, k: int, size: np.ndarray) -> View:
        one = self.slices[k]
        picture = (resize(one["picture"], (3, *size), order=1).clip(0, 1) * 255).round().astype(np.uint8)
        title = f"slice {k + 1} of {len(self.slices)}"
        return draw_view(picture.transpose(2, 1, 0), one["probability"][0].T, self.threshold, title)

    def _outlined(self, one: dict[str, np.ndarray], size: np.ndarray) -> np.ndarray:
        picture = resize(one["picture"], (3, *size), order=1)
        mask = resize(one["pred"] > 0, (1, *size), order=0)
        return OutlineOverlay()(picture, mask)


def _like(path: str, geometry: Geometry, array: np.ndarray) -> nib.Nifti1Image:
    """An array on the voxels of a volume; of a NIfTI file with its own affine, unit and codes."""
    if not path.lower().endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(array, geometry.affine)
        image.header.set_xyzt_units("mm" if geometry.measured else "unknown")
        return image
    template = nib.load(path)
    header = nib.Nifti1Header.from_header(template.header)  # little-endian, of NIfTI-2 too
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    return nib.Nifti1Image(array, template.affine, header=header)
