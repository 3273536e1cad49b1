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

"""How small and how large an image may be."""

from __future__ import annotations

MIN_SIZE = 4  # pixels; less vanishes in the network's pooling
MAX_VOXELS = 2**29  # 512 x 512 x 2048: about 8 GB of memory, since a volume is copied as it is turned and scaled
FARTHEST = 1e9  # pixels from an image, of a corner that anybody can mean; arithmetic with it is exact enough
