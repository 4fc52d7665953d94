# SPDX-License-Identifier: BSD-3-Clause
"""The recipe "torchvision" draws what torchvision's own transforms draw."""

from collections import defaultdict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast.data import Augmentation, ShapesDataset, crops
from ssd_fast.data.colours import Steps, distort_in_steps, draw_steps
from ssd_fast.data.crops import Recipe, draw_crop, draw_windows

WIDTH, HEIGHT = 96, 72
BOXES = torch.tensor([[5.0, 5, 60, 65], [40, 30, 58, 44], [70, 8, 92, 30], [2, 50, 9, 70]])


@pytest.fixture(scope="module")
def v2(torchvision: ModuleType) -> ModuleType:
    from torchvision.transforms import v2

    return v2


def wrap(image: Tensor, boxes: Tensor) -> tuple[Any, Any]:
    from torchvision import tv_tensors

    size = (image.shape[1], image.shape[2])
    return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


def distance(a: list[float], b: list[float]) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two empirical distributions."""
    x, y = (torch.tensor(values, dtype=torch.float64).sort().values for values in (a, b))
    both = torch.cat([x, y])
    below = [torch.searchsorted(v, both, right=True) / len(v) for v in (x, y)]
    return float((below[0] - below[1]).abs().max())


def limit(a: list[float], b: list[float]) -> float:
    """What samples of one distribution exceed once in 10,000 times."""
    return 2.22 * (1 / len(a) + 1 / len(b)) ** 0.5


def describe(window: tuple[float, ...], inside: int, into: dict[str, list[float]]) -> None:
    x1, y1, x2, y2 = window
    shares = {"x1": x1 / WIDTH, "y1": y1 / HEIGHT, "inside": float(inside)}
    sides = {"width": (x2 - x1) / WIDTH, "height": (y2 - y1) / HEIGHT}
    shape = {"scale": (sides["width"] * sides["height"]) ** 0.5, "aspect": (x2 - x1) / (y2 - y1)}
    for name, value in (shares | sides | shape).items():
        into[name].append(value)


def our_crops(count: int, recipe: Recipe) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(1)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        canvas = (0.0, 0.0, float(WIDTH), float(HEIGHT))
        window, inside = draw_crop(canvas, BOXES, recipe, generator)
        describe(window, int(inside.sum()), found)
    return found


def test_crops(v2: ModuleType, full_count: Callable[[int, int], int]) -> None:
    count = full_count(300, 20_000)
    peer = v2.RandomIoUCrop()
    inputs = [*wrap(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), BOXES)]
    theirs: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        params = peer.make_params(inputs)
        if params:
            x1, y1 = params["left"], params["top"]
            window = (x1, y1, x1 + params["width"], y1 + params["height"])
            describe(window, int(params["is_within_crop_area"].sum()), theirs)
        else:
            describe((0, 0, WIDTH, HEIGHT), len(BOXES), theirs)
    ours = our_crops(4 * count, "torchvision")
    for name, values in theirs.items():
        assert distance(values, ours[name]) < limit(values, ours[name]), name
    # What the test can tell: Caffe's patches are of another kind.
    caffe = our_crops(4 * count, "caffe")
    assert distance(theirs["aspect"], caffe["aspect"]) > limit(theirs["aspect"], caffe["aspect"])


def test_the_numbers_of_crops_are_theirs(v2: ModuleType) -> None:
    """A choice more or less moves the distributions by less than few samples tell."""
    peer = v2.RandomIoUCrop()
    assert [*sorted(crops._MIN_OVERLAPS), 1.0] == peer.options  # 1.0: all of the canvas
    assert (crops._MIN_SCALE, peer.max_scale) == (peer.min_scale, 1.0)
    assert (
        peer.min_aspect_ratio,
        peer.max_aspect_ratio,
    ) == (1 / crops._MAX_ASPECT, crops._MAX_ASPECT)
    assert crops._TRIALS["torchvision"] == peer.trials


def test_windows_reach_the_limits_of_scale_and_aspect(v2: ModuleType) -> None:
    peer = v2.RandomIoUCrop()
    generator = torch.Generator().manual_seed(5)
    side = 100_000.0  # rounding to whole pixels is then nothing
    canvas = (0.0, 0.0, side, side)
    windows = torch.cat([draw_windows(canvas, "torchvision", generator) for _ in range(500)])
    sizes = (windows[:, 2:] - windows[:, :2]) / side
    aspects = sizes[:, 0] / sizes[:, 1]
    for values, low, high in (
        (sizes, peer.min_scale, peer.max_scale),
        (aspects, peer.min_aspect_ratio, peer.max_aspect_ratio),
    ):
        assert low - 1e-4 <= float(values.min()) < low + 5e-3
        assert high - 5e-3 < float(values.max()) <= high + 1e-4


def summary(image: Tensor, boxes: Tensor, into: dict[str, list[float]]) -> None:
    """Colours, the share of the fill colour, and the sizes of the boxes of a sample of 60 x 60."""
    pixels = image.float()
    fill = (image == torch.tensor([123, 117, 104]).view(3, 1, 1)).all(0).float().mean()
    values = {f"mean {i}": float(pixels[i].mean()) for i in range(3)}
    values |= {"contrast": float(pixels.std()), "saturation": float(pixels.std(0).mean())}
    values |= {"fill": float(fill), "boxes": float(len(boxes))}
    if len(boxes):
        x1, y1, x2, y2 = boxes[0].tolist()
        values |= {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2}
        values |= {"width": x2 - x1, "height": y2 - y1}
    for name, value in values.items():
        # Many boxes end at the very edge, where the last bit of a float is no other distribution.
        into[name].append(round(value, 3))


def test_samples_as_a_whole(v2: ModuleType, full_count: Callable[[int, int], int]) -> None:
    count = full_count(200, 10_000)
    pipeline = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=[123, 117, 104]),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(labels_getter=None),
            v2.Resize((60, 60), antialias=False),
        ]
    )
    image = ShapesDataset(1, size=96, seed=4)[0][0][:, :HEIGHT].contiguous()
    theirs: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        summary(*pipeline(*wrap(image, BOXES)), theirs)
    augmentation = Augmentation(60, recipe="torchvision")
    generator = torch.Generator().manual_seed(2)
    ours: dict[str, list[float]] = defaultdict(list)
    for _ in range(3 * count):
        pixels, target = augmentation(image, {"boxes": BOXES}, generator)
        summary(pixels, target["boxes"], ours)
    for name, values in theirs.items():
        assert distance(values, ours[name]) < limit(values, ours[name]), name


def test_strengths_of_colours(v2: ModuleType, full_count: Callable[[int, int], int]) -> None:
    count = full_count(2_000, 50_000)
    peer = v2.RandomPhotometricDistort()
    names = {f"{n}_factor": n for n in ("brightness", "contrast", "saturation", "hue")}
    theirs: dict[str, list[float]] = defaultdict(list)
    ours: dict[str, list[float]] = defaultdict(list)
    generator = torch.Generator().manual_seed(3)
    image = torch.zeros(3, 2, 2)
    for _ in range(count):
        params = peer.make_params([image])
        for key, name in names.items():
            value = params[key]
            theirs[name].append((name != "hue") if value is None else value)
        theirs["contrast_first"].append(params["contrast_before"])
        order = params["channel_permutation"]
        theirs["order"].append(_code([0, 1, 2] if order is None else order.tolist()))
        steps = draw_steps(generator)
        for name in (*names.values(), "contrast_first"):
            ours[name].append(getattr(steps, name))
        ours["order"].append(_code(steps.order))
    for name, values in theirs.items():
        assert distance(values, ours[name]) < limit(values, ours[name]), name


def _code(order: Any) -> int:
    return int("".join(map(str, order)))


@pytest.mark.parametrize(
    "steps",
    [
        Steps(),
        Steps(brightness=0.9),
        Steps(brightness=1.12),
        Steps(contrast=0.6),
        Steps(contrast=1.4),
        Steps(saturation=0.5),
        Steps(saturation=1.5),
        Steps(hue=0.05),
        Steps(hue=-0.04),
        Steps(order=(2, 0, 1)),
        Steps(1.1, 0.7, 1.3, -0.05, True, (1, 2, 0)),
        Steps(0.9, 1.5, 0.6, 0.03, False, (0, 2, 1)),
    ],
)
def test_colours_of_the_same_strengths_are_the_same(v2: ModuleType, steps: Steps) -> None:
    pixels = torch.randint(256, (3, 61, 47), dtype=torch.uint8)
    pixels[:, :9] = pixels[:1, :9]  # grey has no hue
    pixels[:, 9] = 255
    pixels[:, 10] = 0
    functional = v2.functional
    expected = functional.adjust_brightness(pixels, steps.brightness)
    if steps.contrast_first:
        expected = functional.adjust_contrast(expected, steps.contrast)
    expected = functional.adjust_saturation(expected, steps.saturation)
    if steps.hue:
        expected = functional.adjust_hue(expected, steps.hue)
    if not steps.contrast_first:
        expected = functional.adjust_contrast(expected, steps.contrast)
    expected = functional.permute_channels(expected, list(steps.order))
    before = pixels.clone()
    actual = distort_in_steps(pixels, pixels, steps)
    difference = (actual.int() - expected.int()).abs()
    # Rounding down turns the last bit of a float into a level, and contrast may make it two.
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.01
    assert torch.equal(pixels, before)
