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


"""Whole slides: what is read, where there is tissue, tiles, and what is written."""

from scripts.slides.inference import SlideInference
from scripts.slides.listing import list_slides
from scripts.slides.resolution import model_mpp
from scripts.slides.results import SlideResult

__all__ = ["SlideInference", "SlideResult", "list_slides", "model_mpp"]
