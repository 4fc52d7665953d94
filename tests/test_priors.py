# SPDX-License-Identifier: BSD-3-Clause
"""Default boxes against the published formulas of each implementation, written out naively."""

from dataclasses import asdict, replace
from itertools import product
from math import sqrt

import pytest
import torch

from ssd_fast.priors import SSD300, SSD512, PriorBoxes, ssd300, ssd512

MAPS = (38, 19, 10, 5, 3, 1)
STEPS = (8, 16, 32, 64, 100, 300)
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
VOC = (30, 60, 111, 162, 213, 264, 315)
COCO = (21, 45, 99, 153, 207, 261, 315)

ONE_ROUNDING = {"rtol": 0, "atol": 1.2e-7}
"""Theirs round at each step, ours once: one unit in the last place of a number near 1."""


def corners(boxes):
    boxes = torch.as_tensor(boxes, dtype=torch.float64)
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def amdegroot(sides, clamp=True):
    boxes = []
    for k, cells in enumerate(MAPS):
        for y, x in product(range(cells), repeat=2):
            cx, cy = (x + 0.5) / (300 / STEPS[k]), (y + 0.5) / (300 / STEPS[k])
            s, extra = sides[k] / 300, sqrt(sides[k] / 300 * sides[k + 1] / 300)
            boxes += [(cx, cy, s, s), (cx, cy, extra, extra)]
            for r in RATIOS[k]:
                boxes += [(cx, cy, s * sqrt(r), s / sqrt(r)), (cx, cy, s / sqrt(r), s * sqrt(r))]
    boxes = torch.tensor(boxes, dtype=torch.float64)
    return corners(boxes.clamp(0, 1) if clamp else boxes)


def sgrvinod():
    scales = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.0)
    small, large = (1.0, 2.0, 0.5), (1.0, 2.0, 3.0, 0.5, 0.333)
    boxes = []
    for k, ratios in enumerate((small, large, large, large, small, small)):
        for y, x in product(range(MAPS[k]), repeat=2):
            cx, cy = (x + 0.5) / MAPS[k], (y + 0.5) / MAPS[k]
            for ratio in ratios:
                boxes.append((cx, cy, scales[k] * sqrt(ratio), scales[k] / sqrt(ratio)))
                if ratio == 1.0:
                    boxes.append((cx, cy, *[sqrt(scales[k] * scales[k + 1])] * 2))
    return corners(torch.tensor(boxes, dtype=torch.float64).clamp(0, 1))


def nvidia_as_stored():
    """DeepLearningExamples' order within a level: box, row, column."""
    boxes = []
    for k, cells in enumerate(MAPS):
        s, extra = COCO[k] / 300, sqrt(COCO[k] * COCO[k + 1]) / 300
        sizes = [(s, s), (extra, extra)]
        for r in RATIOS[k]:
            wide = (s * sqrt(r), s / sqrt(r))
            sizes += [wide, wide[::-1]]
        for (w, h), y, x in product(sizes, range(cells), range(cells)):
            boxes.append(((x + 0.5) * STEPS[k] / 300, (y + 0.5) * STEPS[k] / 300, w, h))
    return corners(torch.tensor(boxes, dtype=torch.float64).clamp(0, 1))


def rows_that_differ(a, b):
    return int((a != b).any(dim=1).sum())


@pytest.mark.parametrize("preset", SSD300)
def test_ssd300_has_8732_boxes(preset):
    boxes = ssd300(preset)
    assert boxes.shape == (8732, 4)
    assert boxes.dtype == torch.float32
    assert len(SSD300[preset]) == 8732
    assert SSD300[preset].boxes_per_cell == (4, 6, 6, 6, 4, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("preset", SSD512)
def test_ssd512_has_24564_boxes(preset):
    boxes = ssd512(preset)
    assert boxes.shape == (24564, 4)
    assert len(SSD512[preset]) == 24564
    assert SSD512[preset].boxes_per_cell == (4, 6, 6, 6, 6, 4, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_levels_of_the_paper():
    grid = SSD300["voc"]
    counts = [n * n * a for n, a in zip(MAPS, grid.boxes_per_cell, strict=True)]
    assert counts == [5776, 2166, 600, 150, 36, 4]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("voc", lambda: amdegroot(VOC)),
        ("coco", lambda: amdegroot(COCO)),
        ("caffe-voc", lambda: amdegroot(VOC, clamp=False)),
        ("sgrvinod", sgrvinod),
    ],
)
def test_equals_the_published_formula(preset, expected):
    torch.testing.assert_close(ssd300(preset).double(), expected(), **ONE_ROUNDING)


def test_nvidia_is_coco_in_another_order():
    stored, rows, start = nvidia_as_stored(), [], 0
    for cells, boxes in zip(MAPS, SSD300["nvidia"].boxes_per_cell, strict=True):
        level = torch.arange(start, start + cells * cells * boxes)
        rows.append(level.view(boxes, cells, cells).permute(1, 2, 0).flatten())
        start += level.numel()
    torch.testing.assert_close(ssd300("nvidia").double(), stored[torch.cat(rows)], **ONE_ROUNDING)
    assert torch.equal(ssd300("nvidia"), ssd300("coco"))


def test_the_clamp_moves_134_and_116_boxes():
    assert rows_that_differ(ssd300("voc"), ssd300("caffe-voc")) == 134
    unclipped = replace(SSD300["coco"], clip=None)()
    assert rows_that_differ(ssd300("coco"), unclipped) == 116


def test_torchvision_differs_from_coco_in_114_boxes():
    difference = (ssd300("torchvision") - ssd300("coco")).abs()
    assert int((difference > 0).any(dim=1).sum()) == 114
    assert 300 * difference.max() == pytest.approx(4, abs=1e-4)


def test_torchvision_equals_its_generator(torchvision):
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    scales = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
    generator = DefaultBoxGenerator([list(r) for r in RATIOS], scales=scales, steps=list(STEPS))
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    (expected,) = generator(images, [torch.zeros(1, 1, cells, cells) for cells in MAPS])
    torch.testing.assert_close(ssd300("torchvision"), expected / 300, **ONE_ROUNDING)


def test_sgrvinod_has_cells_of_its_own():
    ours, theirs = ssd300("voc"), ssd300("sgrvinod")
    centres = (ours[:, :2] + ours[:, 2:] - theirs[:, :2] - theirs[:, 2:]).abs() / 2
    assert 300 * centres.max() == pytest.approx(18, abs=0.5)
    cell = 300 * theirs[38 * 38 * 4 + (9 * 19 + 9) * 6 :][:6]  # the middle cell of the 19 x 19 map
    width, height = (cell[:, 2:] - cell[:, :2]).T
    expected = [1, 1, 2, 3, 0.5, 0.333]
    torch.testing.assert_close(width / height, torch.tensor(expected), rtol=1e-5, atol=0)
    assert width[0].item() == pytest.approx(60, rel=1e-5)
    assert width[1].item() == pytest.approx(sqrt(60 * 112.5), rel=1e-5)


@pytest.mark.parametrize(("preset", "count"), [("caffe-voc", 2869), ("voc", 2865)])
def test_boxes_cross_the_border_and_are_kept(preset, count):
    boxes = ssd300(preset)
    assert int(((boxes < 0) | (boxes > 1)).any(dim=1).sum()) == count


def test_ssd512_sides():
    for preset, first, last in (("voc", 35.84, 460.8), ("coco", 20.48, 460.8)):
        boxes = 512 * replace(SSD512[preset], clip=None)()
        assert (boxes[0, 2] - boxes[0, 0]).item() == pytest.approx(first, rel=1e-5)
        assert (boxes[-4, 2] - boxes[-4, 0]).item() == pytest.approx(last, rel=1e-5)
    boxes = 512 * ssd512("caffe-voc")
    assert (boxes[0, 2:] - boxes[0, :2]).tolist() == pytest.approx([35, 35], rel=1e-5)
    assert torch.allclose(boxes[0].mean(), torch.tensor(4.0))


def test_a_rectangular_grid():
    grid = PriorBoxes((100, 200), ((1, 2),), (20,), None, ((4,),), flip=False)
    expected = [[0.2, 0.4, 0.3, 0.6], [0.15, 0.45, 0.35, 0.55]]
    expected += [[x1 + 0.5, y1, x2 + 0.5, y2] for x1, y1, x2, y2 in expected]
    torch.testing.assert_close(grid(), torch.tensor(expected))
    assert len(grid) == 4


def test_clip_corners():
    boxes = replace(SSD300["voc"], clip="xyxy")()
    assert torch.equal(boxes, ssd300("caffe-voc").clamp(0, 1))


def test_a_grid_is_its_fields():
    assert PriorBoxes(**asdict(SSD300["sgrvinod"])) == SSD300["sgrvinod"]


def test_every_call_makes_a_tensor_of_its_own():
    ssd300().zero_()
    assert ssd300().any()


@pytest.mark.parametrize("make", [ssd300, ssd512])
def test_unknown_preset(make):
    with pytest.raises(ValueError, match=r"preset: ssd... has 'voc', 'coco', .*, got 'pascal'"):
        make("pascal")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_maps": ()}, "feature_maps: expected at least one"),
        ({"steps": (8, 16)}, "steps: expected 6 entries, one for each of feature_maps, got 2"),
        ({"min_sizes": (1, 2, 3, 4, 5, 0)}, "min_sizes: expected positive numbers, got 0"),
        ({"max_sizes": (1, 2, 3, 4, 5, float("nan"))}, "max_sizes: expected positive numbers"),
        ({"aspect_ratios": ((2,), (-2,), (), (), (), ())}, "aspect_ratios: .* got -2"),
        ({"image_size": "300"}, "image_size: expected positive numbers, got '300'"),
        ({"clip": "yes"}, "clip: expected 'cxcywh', 'wh', 'xyxy' or None, got 'yes'"),
    ],
)
def test_bad_grids(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SSD300["voc"], **change)
