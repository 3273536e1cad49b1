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
from pathlib import Path

import nibabel as nib
import numpy as np
from ignite.engine import Engine
from PIL import Image
from skimage.transform import resize
from skimage.util import montage

from scripts.dicom_seg import dicom_segmentation
from scripts.errors import first_line
from scripts.files import replacing
from scripts.handlers import PredictionTable, image_probability
from scripts.pooling import Pooling
from scripts.slices import from_slices
from scripts.transforms import OutlineOverlay
from scripts.volumes import Geometry, is_dicom_source, read_volume, volume_name

__all__ = ["VolumeWriter"]

SHOWN = 9  # slices in the picture of a volume
SIDE = 320  # pixels of the longer side of each
logger = logging.getLogger(__name__)


class VolumeWriter(PredictionTable):
    """
    Writes a volume as soon as an evaluator has seen all of its slices.

    ``NAME_mask.nii.gz`` (0 and 1), ``NAME_probability.nii.gz`` (float32), both on the voxels and with the affine of the
    input; of DICOM images also ``NAME_mask.dcm``, a DICOM segmentation; ``NAME_overlay.png``, slices with the outline;
    and a row of ``predictions.csv``: the highest probability of a slice, and the marked fraction and millilitres.

    Expects of each slice, in order, ``probability`` and ``pred``, (1, W, H) at the size of the slice, in the output,
    and ``picture``, (3, W, H) in 0..1, ``slice`` and ``count`` in the batch; the volume's path in the metadata of
    ``image``.

    Args:
        output_dir: folder of the files.
        axis: along which the slices were taken, see `LoadSlice`.
        label: name of the segment in DICOM.
        pool: gives the probability of a slice; the paper's generalized mean by default.
    """

    columns = (*PredictionTable.columns, "millilitres")

    def __init__(self, output_dir: str, axis: int = 2, label: str = "lesion", pool: Pooling | None = None) -> None:
        super().__init__(output_dir, pool)
        self.output_dir = Path(output_dir)
        self.axis = axis
        self.label = label
        self.slices: list[dict[str, np.ndarray]] = []
        self.probabilities: list[float] = []

    def __call__(self, engine: Engine) -> None:
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            maps = {key: np.asarray(item[key].cpu()) for key in ("probability", "pred")}
            self.slices.append(maps | {"picture": np.asarray(source["picture"].cpu())})
            self.probabilities.append(image_probability(item, self.pool))
            if int(source["slice"]) + 1 == int(source["count"]):
                self.write(item["image"].meta["volume"])
                self.slices.clear()
                self.probabilities.clear()

    def write(self, path: str) -> None:
        """Write the volume whose slices are there."""
        geometry = read_volume(path).geometry
        probability, mask = (geometry.from_ras(self._volume(key)) for key in ("probability", "pred"))
        mask = mask > 0
        name = volume_name(path)
        for kind, array in (("mask", mask.astype(np.uint8)), ("probability", probability.astype(np.float32))):
            image = nib.Nifti1Image(array, geometry.affine, header=_header(path))
            image.set_data_dtype(array.dtype)
            with replacing(self.output_dir / f"{name}_{kind}.nii.gz", binary=True) as file:
                file.write(gzip.compress(image.to_bytes()))
        if is_dicom_source(path):
            self._write_dicom(path, name, mask)
        with replacing(self.output_dir / f"{name}_overlay.png", binary=True) as file:
            Image.fromarray(self._picture(geometry)).save(file, format="PNG")
        millilitres = mask.sum() * abs(np.linalg.det(geometry.affine[:3, :3])) / 1000
        numbers = (max(self.probabilities), mask.mean(), millilitres)
        self._write("a", [(path, *(f"{number:.6g}" for number in numbers))])

    def _volume(self, key: str) -> np.ndarray:
        return from_slices(np.stack([one[key][0] for one in self.slices]), self.axis)

    def _write_dicom(self, path: str, name: str, mask: np.ndarray) -> None:
        try:
            segmentation = dicom_segmentation(mask, path, self.label)
        except ImportError as error:
            logger.warning(f"No DICOM segmentation of '{path}': install highdicom ({error}).")
        except (AttributeError, ValueError) as error:  # an image that DICOM does not let segmentations refer to
            logger.warning(f"No DICOM segmentation of '{path}': {first_line(error)}.")
        else:
            with replacing(self.output_dir / f"{name}_mask.dcm", binary=True) as file:
                segmentation.save_as(file)

    def _picture(self, geometry: Geometry) -> np.ndarray:
        """(rows, columns, 3) uint8: slices evenly spread over those with a mask, or over all where there is none."""
        marked = [k for k, one in enumerate(self.slices) if one["pred"].any()]
        candidates = np.asarray(marked or range(len(self.slices)))
        chosen = candidates[np.unique(np.linspace(0, len(candidates) - 1, SHOWN).round().astype(int))]
        spacing = np.delete(np.linalg.norm(geometry.ras_affine[:3, :3], axis=0), self.axis)
        extent = np.array(self.slices[0]["pred"].shape[1:]) * spacing  # mm
        size = np.maximum(extent * SIDE / extent.max(), 1).round().astype(int)
        pictures = [self._outlined(self.slices[k], size).transpose(2, 1, 0) for k in chosen]  # (rows, columns, 3)
        return (montage(np.stack(pictures), channel_axis=3, fill=(0, 0, 0)).clip(0, 1) * 255).round().astype(np.uint8)

    def _outlined(self, one: dict[str, np.ndarray], size: np.ndarray) -> np.ndarray:
        picture = resize(one["picture"], (3, *size), order=1)
        mask = resize(one["pred"] > 0, (1, *size), order=0)
        return OutlineOverlay()(picture, mask)


def _header(path: str) -> nib.Nifti1Header | None:
    """Of a NIfTI file its own, which has units and the codes of the affine; else a new one."""
    if not path.lower().endswith((".nii", ".nii.gz")):
        return None
    header = nib.load(path).header.copy()
    header = nib.Nifti1Header.from_header(header)  # little-endian, of NIfTI-2 too
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    return header
