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

"""How large training images are, and how much another is unlike them."""

from __future__ import annotations

import pytest
from scripts.images.originals import Originals, deviation, originals_of


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(200, 300, 1), (400, 600, 2), (300, 300, 1.5), (200, 600, 2), (100, 150, 1), (100, 300, 2), (50, 300, 4)],
)
def test_deviation_is_of_size_or_of_shape(height: int, width: int, factor: float) -> None:
    assert deviation(height, width, Originals(200, 300)) == pytest.approx(factor)


def test_the_usual_image_is_the_median_and_one_outlier_in_many_no_spread() -> None:
    assert originals_of([(200, 300)] * 99 + [(4000, 300)]) == (200, 300, 1.0, None)
    assert originals_of([(100, 100)] * 50 + [(200, 200)] * 51) == (200, 200, 1.0, None)  # smaller ones are no deviation
    assert originals_of([(100, 100)] * 51 + [(200, 200)] * 50) == (100, 100, 2.0, None)
    assert originals_of([]) is None


def test_the_usual_resolution_is_known_where_all_images_say_theirs() -> None:
    sizes = [(256, 256)] * 3
    assert originals_of(sizes, [0.5, 1.0, 1.0]).mpp == 1.0
    assert originals_of(sizes, [0.5, None, 1.0]).mpp is None
