# SPDX-License-Identifier: BSD-3-Clause
"""accelerate at the heads' outputs: random batches and attributes, equal to the original.

The networks of SSD300 and SSDlite are replaced by parameters that hold what the heads give, so a
gradient of a parameter is the gradient of an output, and all default boxes are there.
"""

import copy
import math
import random

import pytest
import torch
from torch import Tensor, nn

import ssd_fast
from ssd_fast.testing import (
    assert_close,
    flat_outputs,
    random_objects,
    seeded,
    trained_outputs,
)
from ssd_fast.testing_detections import assert_same_rows_found

BATCH, CLASSES = 2, 7
# Of the published models: size of an image, of the maps, and arguments of `DefaultBoxGenerator`
# and `SSD`.
KINDS = {
    "ssd300": (
        300,
        (38, 19, 10, 5, 3, 1),
        {
            "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            "scales": [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
            "steps": [8, 16, 32, 64, 100, 300],
        },
        {},
    ),
    "ssdlite320": (
        320,
        (20, 10, 5, 3, 2, 1),
        {"aspect_ratios": [[2, 3]] * 6, "min_ratio": 0.2, "max_ratio": 0.95},
        {
            "score_thresh": 0.001,
            "nms_thresh": 0.55,
            "detections_per_img": 300,
            "topk_candidates": 300,
        },
    ),
}


class _Maps(nn.Module):
    """A backbone that only knows the sizes of its maps."""

    def __init__(self, cells: tuple[int, ...]) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(n): x.new_zeros(len(x), 1, n, n) for n in self.cells}


class _Output(nn.Module):
    """What one layer of a head gives, as a parameter (B, A * K, H, W)."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(BATCH, channels, n, n))

    def forward(self, _: Tensor) -> Tensor:
        return self.value


def build(kind: str) -> nn.Module:
    """A model of torchvision with the head and the anchors of its kind, and no network."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD, SSDHead
    from torchvision.models.detection.ssdlite import SSDLiteHead

    size, cells, anchors, options = KINDS[kind]
    generator = DefaultBoxGenerator(**anchors)
    boxes = generator.num_anchors_per_location()
    if kind == "ssd300":
        head = SSDHead([1] * 6, boxes, CLASSES)
    else:
        head = SSDLiteHead([1] * 6, boxes, CLASSES, nn.BatchNorm2d)
    for part, columns in ((head.regression_head, 4), (head.classification_head, CLASSES)):
        part.module_list = nn.ModuleList(
            _Output(a * columns, n) for a, n in zip(boxes, cells, strict=True)
        )
    return SSD(_Maps(cells), generator, (size, size), CLASSES, head=head, **options)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, torchvision) -> tuple[nn.Module, nn.Module]:
    """An accelerated model and its untouched twin."""
    original = build(request.param)
    return ssd_fast.accelerate(copy.deepcopy(original)), original


def anchors_of(model: nn.Module) -> Tensor:
    """(P, 4) corners in [0, 1]."""
    from torchvision.models.detection.image_list import ImageList

    size, cells = model.transform.fixed_size[0], model.backbone.cells
    images = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    anchors: Tensor = model.anchor_generator(images, [torch.zeros(1, 1, n, n) for n in cells])[0]
    return anchors / size


def set_outputs(models: tuple[nn.Module, ...], deltas: Tensor, logits: Tensor) -> None:
    """Makes (B, P, K) rows what the heads give."""
    for model in models:
        for part, rows in (
            (model.head.regression_head, deltas),
            (model.head.classification_head, logits),
        ):
            begin = 0
            for output in part.module_list:
                batch, channels, height, width = output.value.shape
                end = begin + channels // rows.shape[2] * height * width
                cells = rows[:, begin:end].reshape(batch, height, width, channels)
                output.value.data = cells.permute(0, 3, 1, 2).contiguous()
                begin = end
            assert begin == rows.shape[1]


def set_attributes(models: tuple[nn.Module, ...], seed: int) -> None:
    """Everything that is read at a call, at random."""
    draw = random.Random(seed)
    values = {
        "score_thresh": draw.choice([0.001, 0.01, draw.uniform(0.01, 0.3)]),
        "nms_thresh": draw.uniform(0.2, 0.8),
        "topk_candidates": draw.choice([1, 20, 200, 400, 10_000]),
        "detections_per_img": draw.choice([1, 10, 200, 300]),
        "neg_to_pos_ratio": draw.choice([0.0, 1.0, 3.0, draw.uniform(0.5, 4)]),
    }
    weights = tuple(draw.choice([(10.0, 10.0, 5.0, 5.0), [draw.uniform(2, 12) for _ in range(4)]]))
    clip = draw.choice([math.log(1000 / 16), 1.0])
    high = draw.choice([0.5, draw.uniform(0.4, 0.7)])
    low = draw.choice([high, draw.uniform(0.1, high)])
    for model in models:
        for name, value in values.items():
            setattr(model, name, value)
        model.box_coder.weights, model.box_coder.bbox_xform_clip = weights, clip
        model.proposal_matcher.high_threshold = high
        model.proposal_matcher.low_threshold = low


def batch(
    seed: int, anchors: Tensor
) -> tuple[list[Tensor], list[dict[str, Tensor]], Tensor, Tensor]:
    """Images of two sizes, their objects, and outputs of a trained or of a new network."""
    generator = seeded(seed)
    counts = [(1, 8), (0, 3), (0, 0), (8, 16)][seed % 4]
    objects = random_objects(BATCH, generator, counts=counts, classes=CLASSES)
    if seed % 3:
        deltas, logits = trained_outputs(objects, anchors, generator, classes=CLASSES)
    else:
        deltas, logits = flat_outputs(BATCH, anchors, generator, classes=CLASSES)
    sizes = torch.randint(150, 500, (BATCH, 2), generator=generator).tolist()
    images, targets = [], []
    for i, (height, width) in enumerate(sizes):
        own = slice(int(objects.offsets[i]), int(objects.offsets[i + 1]))
        scale = torch.tensor([width, height, width, height])
        images.append(torch.zeros(3, height, width))
        targets.append({"boxes": objects.boxes[own] * scale, "labels": objects.labels[own]})
    return images, targets, deltas, logits


def train(model: nn.Module, images, targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.train().zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(model: nn.Module, original: nn.Module, seed: int, anchors: Tensor) -> int:
    """Losses to 1e-5, gradients to 1e-4 of the largest, boxes to 1e-3 pixels; how many boxes."""
    set_attributes((model, original), seed)
    images, targets, deltas, logits = batch(seed, anchors)
    set_outputs((model, original), deltas, logits)
    losses, gradients = train(model, images, targets)
    expected_losses, expected_gradients = train(original, images, targets)
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        assert_close(loss.detach(), expected_losses[name].detach(), what=f"seed {seed}: {name}")
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_close(
            gradient, expected_gradients[name], tolerance=1e-4, what=f"seed {seed}: {name}"
        )
    with torch.no_grad():
        found, expected = model.eval()(images), original.eval()(images)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_same_rows_found(f, e, what=f"seed {seed}, image {i}")
    return sum(len(e["scores"]) for e in expected)


def test_random_batches_and_attributes_equal_the_original(pair, full_count) -> None:
    """And again after `restore`, which leaves nothing behind."""
    model, original = pair
    anchors = anchors_of(original)
    assert len(anchors) == {300: 8732, 320: 3234}[original.transform.fixed_size[0]]
    count = full_count(6, 500)
    boxes = sum(assert_same(model, original, seed, anchors) for seed in range(count))
    assert boxes > 10 * count
    assert type(ssd_fast.restore(model)) is type(original)
    for seed in range(3):
        assert_same(model, original, seed, anchors)
