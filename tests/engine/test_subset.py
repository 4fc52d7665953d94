# SPDX-License-Identifier: BSD-3-Clause
"""Subsets: in order, with their files, and found again in the whole."""

from pathlib import Path

import pytest
import torch

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.subset import Subset, leave_out, place_in_whole

SCENES = ShapesDataset(5, size=32)


def test_images_are_those_of_the_indices():
    some = Subset(SCENES, [4, 0])
    assert (len(some), some.class_names, some.paths) == (2, SCENES.class_names, None)
    assert torch.equal(some[0][0], SCENES[4][0])


def test_files_are_those_of_the_indices(monkeypatch: pytest.MonkeyPatch):
    paths = tuple(Path(f"{i}.jpg") for i in range(5))
    monkeypatch.setattr(SCENES, "paths", paths, raising=False)
    assert Subset(Subset(SCENES, [4, 0]), [1]).paths == (paths[0],)


def test_a_place_in_the_whole_is_found():
    assert place_in_whole(SCENES, 3) == (SCENES, 3)
    assert place_in_whole(Subset(Subset(SCENES, [4, 2, 0]), [1, 2]), 0) == (SCENES, 2)


def test_broken_images_are_left_out():
    assert leave_out(SCENES, {}) is SCENES
    kept = leave_out(SCENES, {3: "torn", 0: "torn"})
    assert isinstance(kept, Subset)
    assert list(kept.indices) == [1, 2, 4]
    with pytest.raises(ValueError, match=r"^none of the 5 images decodes; 0.jpg: torn$"):
        leave_out(SCENES, {i: f"{i}.jpg: torn" for i in range(5)})
