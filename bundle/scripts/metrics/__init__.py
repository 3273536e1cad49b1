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

"""Metrics of the paper, each usable alone, as a MONAI metric, and in a config through `IgniteMetricHandler`."""

from __future__ import annotations

from scripts.metrics.boundary import BoundaryFMeasure, BoundaryScores, compute_boundary_scores
from scripts.metrics.boundary_counts import boundary_thresholds, compute_boundary_counts
from scripts.metrics.pixel import (
    PixelAveragePrecision,
    PixelCurve,
    compute_pixel_average_precision,
    compute_pixel_counts,
)
from scripts.metrics.region import RegionFMeasure, compute_region_f_measure, f_measure, intersection_over_union

__all__ = [
    "BoundaryFMeasure",
    "BoundaryScores",
    "PixelAveragePrecision",
    "PixelCurve",
    "RegionFMeasure",
    "boundary_thresholds",
    "compute_boundary_counts",
    "compute_boundary_scores",
    "compute_pixel_average_precision",
    "compute_pixel_counts",
    "compute_region_f_measure",
    "f_measure",
    "intersection_over_union",
]
