# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast.boxes import box_iou
from ssd_fast.data import crops
from ssd_fast.data.augmentation import Augmentation
from ssd_fast.data.colours import _turn
from ssd_fast.data.crops import Recipe, draw_crop, draw_windows


def scene(width: int = 120, height: int = 90) -> tuple[Tensor, dict[str, Tensor]]:
    """Three white rectangles on black, so that pixels tell where the boxes must be."""
    boxes = torch.tensor([[10.0, 10, 40, 30], [60, 50, 110, 85], [70, 5, 95, 25]])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        image[i, y1:y2, x1:x2] = 255
    labels = torch.tensor([1, 2, 3])
    return image, {
        "boxes": boxes,
        "labels": labels,
        "difficult": torch.tensor([False, True, False]),
    }


RECIPES: list[Recipe] = ["caffe", "torchvision"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_follow_the_pixels(recipe: Recipe) -> None:
    image, target = scene()
    augmentation = Augmentation(100, recipe=recipe, colour=0.0, max_zoom=2.0)
    shown = 0
    for seed in range(80):
        pixels, result = augmentation(image, target, seeded(seed))
        for box, label in zip(result["boxes"], result["labels"].tolist(), strict=True):
            # Channel i is bright where object i + 1 is; the fill colour stays below the threshold.
            bright = pixels[label - 1] >= 128
            rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
            if not rows.numel():
                continue
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (torch.tensor(edges) - box).abs().max() <= 1.5
            shown += 1
    assert shown > 100


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_crop_inside_the_image_shows_nothing_else(recipe: Recipe) -> None:
    image = torch.full((3, 30, 40), 255, dtype=torch.uint8)
    target = {"boxes": torch.tensor([[5.0, 5, 30, 25]])}
    augmentation = Augmentation(300, recipe=recipe, zoom_out=0.0, colour=0.0)
    for seed in range(30):
        assert (augmentation(image, target, seeded(seed))[0] == 255).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_columns_of_kept_objects_stay_together(recipe: Recipe) -> None:
    image, target = scene()
    kept = set()
    for seed in range(60):
        _, result = Augmentation(64, recipe=recipe)(image, target, seeded(seed))
        n = len(result["labels"])
        assert n >= 1
        assert result["boxes"].shape == (n, 4)
        assert torch.equal(result["difficult"], result["labels"] == 2)
        assert result["boxes"].min() >= 0
        assert result["boxes"].max() <= 64
        assert (result["boxes"][:, 2:] > result["boxes"][:, :2]).all()
        kept.add(n)
    assert kept == {1, 2, 3}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_generator_decides_and_arguments_stay_as_they_were(recipe: Recipe) -> None:
    image, target = scene()
    before = image.clone(), {name: value.clone() for name, value in target.items()}
    first, second = (Augmentation(80, recipe=recipe)(image, target, seeded(7)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["boxes"], second[1]["boxes"])
    assert not torch.equal(first[0], Augmentation(80, recipe=recipe)(image, target, seeded(8))[0])
    assert torch.equal(image, before[0])
    assert all(torch.equal(target[name], value) for name, value in before[1].items())


def test_without_chances_it_only_resizes() -> None:
    image, target = scene()
    augmentation = Augmentation(60, zoom_out=0, crop=0, flip=0, colour=0)
    pixels, result = augmentation(image, target, seeded(0))
    expected = torch.nn.functional.interpolate(
        image[None].float(), (60, 60), mode="bilinear", align_corners=False
    )[0]
    assert (pixels.float() - expected).abs().max() <= 1
    torch.testing.assert_close(
        result["boxes"], target["boxes"] * torch.tensor([60 / 120, 60 / 90] * 2)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_regions_to_ignore_are_no_objects_and_stay_in_part(recipe: Recipe) -> None:
    image, _ = scene()
    region, box = [0.0, 0, 60, 90], [70.0, 40, 90, 60]
    marked = {"boxes": torch.tensor([region, box]), "ignore": torch.tensor([True, False])}
    cut = 0
    for seed in range(60):
        _, result = Augmentation(64, recipe=recipe, flip=0)(image, marked, seeded(seed))
        ignore = result["ignore"].tolist()
        assert ignore in ([True, False], [False])  # no crop without the object
        x1, _, x2, _ = result["boxes"][-1].tolist()
        if len(ignore) == 2 and 0 < x1 < x2 < 64:
            left, _, right, _ = result["boxes"][0].tolist()
            scale = (x2 - x1) / (box[2] - box[0])
            cut += (right - left) / scale < 30 - 1  # its centre is out of the crop
    assert cut >= 3
    only_region = {"boxes": torch.tensor([region]), "ignore": torch.tensor([True])}
    assert Augmentation(64, recipe=recipe)(image, only_region, seeded(0))[0].shape == (3, 64, 64)


def test_mirroring_twice_changes_nothing() -> None:
    image, target = scene(120, 120)
    mirror = Augmentation(120, zoom_out=0, crop=0, flip=1, colour=0)
    once = mirror(image, target, seeded(0))
    twice = mirror(*once, seeded(0))
    assert torch.equal(once[0], image.flip(2))
    assert torch.equal(twice[0], image)
    assert torch.equal(twice[1]["boxes"], target["boxes"])


def test_zoom_out_fills_with_the_mean_colour() -> None:
    image, target = scene()
    augmentation = Augmentation(100, zoom_out=1, crop=0, flip=0, colour=0)
    covered = []
    for seed in range(20):
        pixels, result = augmentation(image, target, seeded(seed))
        assert result["labels"].tolist() == [1, 2, 3]
        fill = (pixels == torch.tensor([123, 117, 104]).view(3, 1, 1)).all(0)
        covered.append(1 - fill.float().mean().item())
    assert min(covered) < 0.15  # a canvas of up to 16 times the area
    assert max(covered) > 0.4


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("least", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_crop_keeps_its_least_overlap(
    least: float, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rule that amdegroot's code states and does not enforce.
    monkeypatch.setattr(crops, "_MIN_OVERLAPS", (least,))
    canvas = (0.0, 0.0, 120.0, 90.0)
    boxes = torch.tensor([[5.0, 5, 115, 85], [60, 50, 70, 60]])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    patches = 0
    for seed in range(40):
        window, keep = draw_crop(canvas, boxes, recipe, seeded(seed))
        if window == canvas:
            assert keep.all()
            continue
        corners = torch.tensor([window])
        assert box_iou(corners, boxes).max() >= least - 1e-6
        inside = (centres > corners[:, :2]) & (centres < corners[:, 2:])
        assert torch.equal(keep, inside.all(1))
        assert keep.any()
        patches += 1
    assert patches > 5


def test_windows_have_scale_and_aspect_of_the_paper() -> None:
    windows = torch.cat([draw_windows((0.0, 0.0, 1.0, 1.0), "caffe", seeded(i)) for i in range(40)])
    size = windows[:, 2:] - windows[:, :2]
    assert windows.min() >= 0
    assert windows.max() <= 1 + 1e-6
    scale = size.prod(1).sqrt()
    aspect = size[:, 0] / size[:, 1]
    assert 0.3 - 1e-4 <= scale.min() < 0.32
    assert 0.95 < scale.max() <= 1 + 1e-4
    assert 0.5 - 1e-3 <= aspect.min() < 0.55
    assert 1.9 < aspect.max() <= 2 + 1e-3


def test_colour_leaves_grey_grey_and_turns_hue() -> None:
    grey = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    augmentation = Augmentation(20, zoom_out=0, crop=0, flip=0)
    seen = set()
    for seed in range(40):
        pixels, _ = augmentation(grey, {"boxes": torch.zeros(0, 4)}, seeded(seed))
        assert (pixels == pixels[0, 0, 0]).all()
        seen.add(int(pixels[0, 0, 0]))
    assert 30 <= min(seen) < 70
    assert 130 < max(seen) <= 199
    third = 2 * torch.pi / 3
    torch.testing.assert_close(
        _turn(third) @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("objects", [slice(None), slice(0)], ids=["objects", "none"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_another_default_dtype_is_none_of_its_business(
    recipe: Recipe, objects: slice, dtype: torch.dtype
) -> None:
    image, target = scene()
    target = {name: rows[objects] for name, rows in target.items()}
    augmentation = Augmentation(64, recipe=recipe, zoom_out=1.0, crop=1.0, colour=1.0)
    pixels, result = augmentation(image, target, seeded(1))
    torch.set_default_dtype(dtype)
    try:
        again, same = augmentation(image, target, seeded(1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.equal(pixels)
    for name, rows in result.items():
        assert same[name].dtype == rows.dtype
        assert same[name].equal(rows), name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (300, 2), (37, 53)])
def test_images_of_any_shape_without_objects(shape: tuple[int, int], recipe: Recipe) -> None:
    image = torch.full((3, *shape), 200, dtype=torch.uint8)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for seed in range(15):
        pixels, result = Augmentation(32, recipe=recipe)(image, empty, seeded(seed))
        assert pixels.shape == (3, 32, 32)
        assert result["boxes"].shape == (0, 4)
        assert result["labels"].shape == (0,)


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(1, 3, 4, 4)]
)
def test_rejects_what_is_no_image(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"image: expected \(3, H, W\) uint8, got"):
        Augmentation()(image, {"boxes": torch.zeros(0, 4)}, seeded(0))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"max_zoom": 0.5},
        {"flip": 1.5},
        {"crop": -0.1},
        {"colour": float("nan")},
        {"recipe": "yolo"},
    ],
)
def test_rejects_an_option_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        Augmentation(**options)
