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

"""The outlines of what is marked in pictures, as files for QuPath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events

from scripts.data.listing import OUTLINES
from scripts.images.resolution import picture_mpp
from scripts.images.slide_parts import source_of
from scripts.runtime.files import result_name
from scripts.runtime.values import number, positive_number, rgb, truth_value
from scripts.slides.polygons import trace, write_geojson

__all__ = ["PictureOutlines"]


class PictureOutlines:
    """
    Writes ``NAME_outlines.geojson`` of each picture during inference, in pixels of its file; of a region of a slide in
    the slide's; see `write_geojson`.

    Expects ``probability`` and ``pred``, (1, W, H), in each output. Areas are in square micrometres where it is known
    how large a pixel is, else in pixels.

    Args:
        output_dir: folder of the files.
        enabled: whether there are any.
        name, colour: of QuPath's class.
        min_region, min_hole: smaller regions have no polygon, smaller holes are filled in it.
        mpp: micrometres per pixel of all pictures; what each says of itself where it is None, see `picture_mpp`.

    Raises:
        InputError: for a setting that can't be used.
    """

    def __init__(
        self,
        output_dir: str | PathLike,
        enabled: bool = True,
        name: str = "Cancer",
        colour: Sequence[int] = (200, 0, 0),
        min_region: float = 0,
        min_hole: float = 0,
        mpp: float | None = None,
    ) -> None:
        truth_value("geojson", enabled)
        rgb("class_colour", colour)
        number("min_region_um2", min_region)
        number("min_hole_um2", min_hole)
        if mpp is not None:
            positive_number("image_mpp", mpp)
        self.output_dir = Path(output_dir)
        self.enabled = enabled
        self.name, self.colour = name, colour
        self.limits = {"min_region": min_region, "min_hole": min_hole}
        self.mpp = mpp

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for item in engine.state.output or ():
            meta = item["image"].meta
            path = meta["filename_or_obj"]
            file = self.output_dir / f"{result_name(path, meta.get('results'))}{OUTLINES}"
            part = source_of(json.loads(meta["part"])) if "part" in meta else None
            if not self.enabled or (part is not None and part.region is None):  # fields lie in many places
                file.unlink(missing_ok=True)  # of an earlier run
                continue
            marked, probability = (np.asarray(item[key].cpu())[0].T for key in ("pred", "probability"))
            values = np.where(marked > 0, probability, -1)
            scale, origin, own = (1.0, 1.0), (0, 0), self.mpp
            if part is not None:
                left, top, width, height = part.region
                scale, origin, own = (width / values.shape[1], height / values.shape[0]), (left, top), part.mpp
            mpp = picture_mpp(path) if own is None else (own, own)
            area = None if mpp is None else mpp[0] * mpp[1]
            outlines = trace([values], values.shape[1], least=0, pixel=area or scale[0] * scale[1], **self.limits)
            options = self.limits | {"pixel_um2": area, "origin": origin}
            write_geojson(file, outlines, scale, self.name, self.colour, **options)
