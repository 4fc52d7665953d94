# SPDX-License-Identifier: BSD-3-Clause
from random import Random
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ssd_fast.data import ShapesDataset, collate
from ssd_fast.data.shapes import _draw_outline, _place_objects, _textures


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    forward = [ShapesDataset(6, seed=3)[i] for i in range(6)]
    again = ShapesDataset(100, seed=3)
    for i in (5, 2, 0):
        image, target = again[i]
        assert torch.equal(image, forward[i][0])
        assert torch.equal(target["boxes"], forward[i][1]["boxes"])
        assert torch.equal(target["labels"], forward[i][1]["labels"])
    assert not torch.equal(forward[0][0], forward[1][0])
    assert not torch.equal(ShapesDataset(6, seed=4)[0][0], forward[0][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_draws_the_same_scenes(dtype: torch.dtype) -> None:
    image, target = ShapesDataset(2, size=83)[1]
    _textures.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        again, same = ShapesDataset(2, size=83)[1]
    finally:
        torch.set_default_dtype(torch.float32)
        _textures.cache_clear()
    assert again.equal(image)
    assert same["boxes"].equal(target["boxes"])


def test_a_worker_draws_the_same_scenes() -> None:
    scenes = ShapesDataset(4, size=64)
    loader = DataLoader(scenes, batch_size=2, num_workers=1, collate_fn=collate)
    images = [image for batch, _ in loader for image in batch]
    for i, image in enumerate(images):
        assert torch.equal(image, scenes[i][0])


def test_scenes_hold_what_they_promise() -> None:
    scenes = ShapesDataset(100)
    counts, labels = set(), set()
    for image, target in [scenes[i] for i in range(len(scenes))]:
        boxes = target["boxes"]
        n = boxes.size(0)
        assert image.shape == (3, 300, 300)
        assert image.dtype == torch.uint8
        assert boxes.shape == (n, 4)
        assert boxes.dtype == torch.float32
        assert target["labels"].shape == target["difficult"].shape == (n,)
        assert not target["difficult"].any()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 29.99
        assert sides.max() <= 150.01
        assert boxes.min() >= 0
        assert boxes.max() <= 300
        counts.add(n)
        labels |= set(target["labels"].tolist())
    assert counts == {1, 2, 3, 4, 5}
    assert labels == {1, 2, 3} == set(range(1, len(ShapesDataset.class_names) + 1))


def test_boxes_are_tight() -> None:
    random = Random(0)
    for _ in range(60):
        item = _draw_outline(random, 300)
        inside = item.alpha >= 0.5
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        drawn = torch.tensor(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32
        )
        drawn += torch.tensor([item.columns.start, item.rows.start] * 2)
        # The tip of a sharp triangle covers no half pixel until a few pixels behind its corner.
        slack = 0.51 if item.label == 1 else 2.5
        assert (drawn - torch.tensor(item.box)).abs().max() <= slack


def test_no_object_is_hidden_by_more_than_seven_tenths() -> None:
    random = Random(0)
    overlaps = 0
    for _ in range(40):
        objects = _place_objects(random, 300, 5)
        owner = torch.full((300, 300), -1)
        for i, item in enumerate(objects):
            owner[item.rows, item.columns][item.alpha >= 0.5] = i
        for i, item in enumerate(objects):
            visible, area = int((owner == i).sum()), int((item.alpha >= 0.5).sum())
            assert visible >= 0.3 * area
            overlaps += visible < area
    assert overlaps > 20


def test_objects_stand_out_from_the_ground() -> None:
    # Where a scene with an object differs from its surroundings must be the object: its inside and
    # the ground around it cannot have the same mean colour.
    scenes = ShapesDataset(50, min_objects=1, max_objects=1)
    for i in range(len(scenes)):
        image, target = scenes[i]
        x1, y1, x2, y2 = target["boxes"][0].round().int().tolist()
        x, y, w, h = (x1 + x2) // 2, (y1 + y2) // 2, (x2 - x1) // 8, (y2 - y1) // 8
        middle = image[:, y - h : y + h, x - w : x + w].float().mean((1, 2))
        outside = image.float()
        outside[:, y1:y2, x1:x2] = torch.nan
        assert (middle - outside.nanmean((1, 2))).norm() > 15


def test_many_objects_and_small_scenes_find_their_places() -> None:
    scenes = ShapesDataset(10, size=32, min_objects=20, max_objects=20)
    for i in range(10):
        assert scenes[i][1]["labels"].numel() == 20


def test_no_objects_is_an_empty_target() -> None:
    image, target = ShapesDataset(9, size=40, min_objects=0, max_objects=1, seed=1)[0]
    empty = [ShapesDataset(9, size=40, min_objects=0, max_objects=1)[i][1] for i in range(9)]
    assert {len(t["labels"]) for t in empty} == {0, 1}
    assert all(t["boxes"].shape == (len(t["labels"]), 4) for t in empty)
    assert image.shape == (3, 40, 40)
    assert target["boxes"].dtype == torch.float32


def test_indices_are_those_of_a_sequence() -> None:
    scenes = ShapesDataset(3, size=32)
    assert torch.equal(scenes[-1][0], scenes[2][0])
    assert len(list(iter(scenes))) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"3 scenes, got {index}"):
            scenes[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length: expected 1 or more, got 0"),
        ({"size": 20}, "size: expected 32 or more, got 20"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"min_objects": -1}, "min_objects: expected 0 or more, got -1"),
        ({"min_objects": 3, "max_objects": 2}, "max_objects: expected 3 to 20, got 2"),
        ({"max_objects": 50}, "max_objects: expected 1 to 20, got 50"),
    ],
)
def test_rejects_a_number_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**({"length": 5} | options))


@pytest.mark.parametrize("value", [1.5, "300", True, None])
def test_rejects_what_is_no_integer(value: Any) -> None:
    with pytest.raises(TypeError, match="size: expected an integer"):
        ShapesDataset(1, size=value)
