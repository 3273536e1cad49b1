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

from __future__ import annotations

import numpy as np
import pytest
from scripts.volumes.slices import from_slices, to_slices


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_put_together_are_the_volume(axis):
    volume = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(from_slices(to_slices(volume, axis), axis), volume)
