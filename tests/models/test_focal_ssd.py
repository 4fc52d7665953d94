# SPDX-License-Identifier: BSD-3-Clause
"""SSD(classification="focal"): sigmoids from the first step to what is detected and exported."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from ssd_fast.engine.export import export_torch
from ssd_fast.engine.initialisation import quiet_heads
from ssd_fast.models import SSD, ssd300_vgg16
from ssd_fast.ops import detect
from ssd_fast.priors import PriorBoxes


class Maps(nn.Module):
    """Two feature maps of 8 and 4 cells a side."""

    out_channels = (16, 16)

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
        self.fine = nn.Sequential(*layers, nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


def small(num_classes: int = 3, **options) -> SSD:
    torch.manual_seed(0)
    grid = PriorBoxes(64, (8, 4), (12, 24), (20, 40), ((2,), (2,)))
    cells = grid.boxes_per_cell
    options = {"classification": "focal", "image_std": (0.25,) * 3, **options}
    return SSD(Maps(), num_classes, priors=grid(), boxes_per_cell=cells, image_size=64, **options)


def squares(first_label: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A red and a green square on black, of the two classes from `first_label` on."""
    images, targets = torch.zeros(2, 3, 64, 64), []
    for image, (x, y) in zip(images, ((4, 6), (10, 2)), strict=True):
        boxes = torch.tensor([[x, y, x + 22, y + 22], [x + 26, y + 28, x + 48, y + 50]])
        for channel, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            image[channel, y1:y2, x1:x2] = 1
        targets.append(
            {"boxes": boxes.float(), "labels": torch.tensor([first_label, first_label + 1])}
        )
    return images, targets


@pytest.mark.parametrize(("background", "classes", "first"), [(0, 3, 1), (-1, 3, 0), (None, 2, 0)])
def test_trains_and_detects(background, classes, first):
    """What some steps teach comes out with the labels that went in."""
    model = small(classes, loss={"background_index": background})
    images, targets = squares(first)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    model.eval().score_threshold = 0.4
    for found, target in zip(model(images), targets, strict=True):
        order = found["labels"].argsort()
        assert found["labels"][order].tolist() == target["labels"].tolist()
        torch.testing.assert_close(found["boxes"][order], target["boxes"], rtol=0, atol=4)


def test_every_class_starts_from_one_in_a_hundred():
    """RetinaNet's bias and weights, also after `quiet_heads`, whatever the image."""
    for model in (small(), ssd300_vgg16(21, width=0.125, norm=True, classification="focal")):
        size = model.transform.size
        for _ in range(2):
            for layer in model.heads.classification:
                torch.testing.assert_close(
                    layer.bias.sigmoid(), torch.full_like(layer.bias, 0.01), rtol=1e-5, atol=0
                )
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
            _, logits = model.head_outputs(torch.rand(2, 3, size, size))
            assert 0.009 < logits.sigmoid().mean().item() < 0.012
            quiet_heads(model)


def test_scores_are_sigmoids():
    model = small(score_threshold=0.009, max_detections=30, nms="soft-linear").eval()
    images = torch.rand(2, 3, 64, 64)
    found = model.detect_padded(images)
    expected = detect(
        *model.head_maps(images), model.priors, scores="sigmoid", score_threshold=0.009,
        max_detections=30, nms="soft-linear", clip=(0, 0, 1, 1),
    )  # fmt: skip
    assert int(found.counts.min()) == 30
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loss", [{}, {"background_index": None, "alpha": 0.4, "gamma": 1.5}])
def test_config_builds_the_model_again(loss):
    model = ssd300_vgg16(4, width=0.03, classification="focal", loss=loss)
    again = SSD.from_config(json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert again.loss.classification == "focal"
    assert again.loss.focal_options == model.loss.focal_options
    assert again.loss.options == model.loss.options


def test_an_option_of_the_loss_too():
    model = small(classification=None, loss={"classification": "focal"})
    assert model.loss.config == small().loss.config
    with pytest.raises(ValueError, match="classification: got 'focal', but loss has 'softmax'"):
        small(loss={"classification": "softmax"})
    with pytest.raises(ValueError, match="classification: expected 'softmax' or 'focal', got 'x'"):
        small(classification="x")
    with pytest.raises(ValueError, match="ratio: the focal loss takes none"):
        small(loss={"ratio": 2.0})
    with pytest.raises(ValueError, match="background_index: None, no background, goes with"):
        small(classification="softmax", loss={"background_index": None})
    with pytest.raises(ValueError, match="num_classes: expected"):
        small(1)
    small(1, loss={"background_index": None})


def test_labels_are_checked():
    images, targets = squares(0)
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[0\] is 0, the background"):
        small()(images, targets)
    model = small(2, loss={"background_index": None})
    assert math.isfinite(model(images, targets)["classification"].item())
    targets[1]["labels"][1] = 2
    with pytest.raises(ValueError, match=r"targets\[1\]\['labels'\]\[1\] is 2: expected at least"):
        model(images, targets)


def test_exports(tmp_path):
    model = small(score_threshold=0.009).eval()
    export_torch(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.rand(3, 3, 64, 64)
    for found, expected in zip(program(images), model.detect_padded(images), strict=True):
        torch.testing.assert_close(found, expected)
