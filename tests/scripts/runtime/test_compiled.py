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

"""Compilation falls back to no cache where none can be written."""

from __future__ import annotations

from scripts.runtime import compiled


def test_without_a_writable_folder_it_compiles_all_the_same(monkeypatch):
    def njit(function=None, cache=False):
        def refuse(function):
            raise RuntimeError("cannot cache function: no locator available")  # as Numba does

        return refuse if cache else (lambda: f"compiled {function.__name__}")

    monkeypatch.setattr(compiled, "njit", njit)

    @compiled.compiled
    def loop():
        return "interpreted"

    assert loop() == "compiled loop"
