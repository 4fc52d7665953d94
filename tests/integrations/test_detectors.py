# SPDX-License-Identifier: BSD-3-Clause
"""accelerate: RetinaNet, FCOS and the R-CNNs give the same on our NMS, and change nothing else."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import ssd_fast
from ssd_fast.testing import assert_close, random_objects, seeded

KINDS = ["retinanet", "fcos", "faster_rcnn"]


class _Backbone(nn.Module):
    """Two small maps."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 32, 3, stride=8, padding=1)
        self.coarse = nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"0": fine, "1": self.coarse(fine.relu())}


def build(kind: str) -> nn.Module:
    """A small detector of 5 classes whose scores are spread, so that NMS has work."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    scale = {"min_size": 64, "max_size": 96}

    def anchors(*ratios: float) -> AnchorGenerator:
        return AnchorGenerator(((16,), (40,)), (ratios,) * 2)

    if kind == "retinanet":
        model = detection.RetinaNet(
            _Backbone(), 5, anchor_generator=anchors(0.5, 1.0, 2.0), topk_candidates=300, **scale
        )
    elif kind == "fcos":
        model = detection.FCOS(_Backbone(), 5, anchor_generator=anchors(1.0), **scale)
    else:
        options = {
            "rpn_anchor_generator": anchors(0.5, 1.0, 2.0),
            "box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 2),
            "rpn_pre_nms_top_n_test": 300,
            "rpn_post_nms_top_n_test": 100,
            "rpn_post_nms_top_n_train": 100,
            "box_batch_size_per_image": 64,
            "box_score_thresh": 0.19,
            "box_detections_per_img": 30,
        }
        if kind == "mask_rcnn":
            options["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1"], 7, 2)
        maker = detection.FasterRCNN if kind == "faster_rcnn" else detection.MaskRCNN
        model = maker(_Backbone(), 5, **options, **scale)
    # New heads are all alike: spread what they predict.
    generator = seeded(1)
    for name, parameter in model.named_parameters():
        if name.endswith("cls_logits.bias"):
            parameter.data.zero_()
        if name.endswith(("cls_logits.weight", "cls_score.weight")):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * (0.5 if "cls_logits" in name else 0.2)
    return model


def batch(seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes; every third batch has one without objects."""
    generator = seeded(seed)
    images, targets = [], []
    for i, (height, width) in enumerate([(80, 100), (64, 64)]):
        counts = (0, 0) if i == 1 and seed % 3 == 0 else (1, 5)
        objects = random_objects(1, generator, counts=counts, classes=5, smallest=0.2)
        boxes = objects.boxes * torch.tensor([width, height, width, height])
        images.append(torch.rand(3, height, width, generator=generator))
        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": objects.labels, "masks": masks})
    return images, targets


def assert_same_training(model: nn.Module, original: nn.Module, seed: int) -> None:
    """Losses and gradients; the heads sample proposals at random, from the same seed."""
    results = []
    for each in (model, original):
        torch.manual_seed(seed)
        each.train().zero_grad()
        losses = each(*batch(seed))
        sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in each.named_parameters() if p.grad is not None}
        results.append((losses, gradients))
    (losses, gradients), (expected, expected_gradients) = results
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert_close(loss.detach(), expected[name].detach(), what=f"seed {seed}: {name}")
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)


def assert_same_detections(model: nn.Module, original: nn.Module, seed: int) -> None:
    images, _ = batch(seed)
    with torch.no_grad():
        found, expected = model.eval()(images), original.eval()(images)
    for f, e in zip(found, expected, strict=True):
        assert len(e["scores"]) > 5
        assert f.keys() == e.keys()
        for name in e:
            torch.testing.assert_close(f[name], e[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=KINDS)
def pair(request, torchvision) -> tuple[nn.Module, nn.Module]:
    """An accelerated model and its untouched twin."""
    original = build(request.param)
    return ssd_fast.accelerate(copy.deepcopy(original)), original


def test_training_and_detections_equal_the_original(pair, full_count) -> None:
    model, original = pair
    for seed in range(full_count(4, 100)):
        assert_same_training(model, original, seed)
        assert_same_detections(model, original, seed)


def test_mask_rcnn_equals_the_original(torchvision) -> None:
    """The masks follow the boxes."""
    original = build("mask_rcnn")
    model = ssd_fast.accelerate(copy.deepcopy(original))
    assert_same_training(model, original, 1)
    assert_same_detections(model, original, 1)


def test_restore_brings_back_the_original(pair) -> None:
    model, original = pair
    assert any("batched_nms" in ours for ours in ssd_fast.accelerated(model).values())
    assert ssd_fast.restore(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert ssd_fast.accelerated(model) == {}
    assert_same_detections(model, original, 0)


def test_our_nms_is_called_and_theirs_is_not(pair, monkeypatch) -> None:
    """Torchvision's NMS breaks for everybody, and the accelerated model does not notice."""
    import torchvision

    def broken(*_: object) -> Tensor:
        raise AssertionError("torchvision's NMS was called")

    model, original = pair
    monkeypatch.setattr(torchvision.ops.boxes, "batched_nms", broken)
    images, _ = batch(1)
    model.eval()(images)
    with pytest.raises(AssertionError, match=r"torchvision's NMS was called"):
        original.eval()(images)


def test_other_objects_are_left_alone(pair) -> None:
    """No global patching: the twin, its parts and torchvision's module stay what they were."""
    import torchvision

    _, original = pair
    assert not any(hasattr(type(m), "_ssd_fast_original") for m in original.modules())
    assert torchvision.ops.boxes.batched_nms.__module__ == "torchvision.ops.boxes"


def test_attributes_are_read_at_each_call(pair) -> None:
    model, original = pair
    for each in (model, original):
        heads = getattr(each, "roi_heads", each)
        heads.nms_thresh, heads.detections_per_img = 0.2, 9
        if heads is not each:
            heads.proposal_matcher.high_threshold = 0.6
            heads.proposal_matcher.low_threshold = 0.3
    assert_same_training(model, original, 1)
    assert_same_detections(model, original, 1)


def test_copies_and_pickles_stay_accelerated(pair) -> None:
    model, original = pair
    assert model.state_dict().keys() == original.state_dict().keys()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert ssd_fast.accelerated(twin) == ssd_fast.accelerated(model)
        assert_same_detections(twin, original, 0)


def test_twice_changes_nothing(pair) -> None:
    model, _ = pair
    kinds = [type(m) for m in model.modules()]
    assert ssd_fast.accelerate(model) is model
    assert [type(m) for m in model.modules()] == kinds


METHODS = pytest.mark.parametrize(
    ("kind", "part", "method"),
    [
        ("retinanet", None, "postprocess_detections"),
        ("fcos", None, "postprocess_detections"),
        ("faster_rcnn", "rpn", "filter_proposals"),
        ("faster_rcnn", "roi_heads", "assign_targets_to_proposals"),
    ],
)


@METHODS
def test_refuses_a_class_with_its_own_method(torchvision, kind, part, method) -> None:
    """Nothing is changed before the refusal."""
    model = build(kind)
    module = model if part is None else getattr(model, part)
    module.__class__ = type("Own", (type(module),), {method: lambda *_: None})
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(TypeError, match=rf"Own overrides {method}\(\)"):
        ssd_fast.accelerate(model)
    assert [type(m) for m in model.modules()] == kinds


@METHODS
def test_refuses_a_method_set_on_the_object(torchvision, kind, part, method) -> None:
    """It would pass our kernels by; nothing is changed before the refusal."""
    model = build(kind)
    module = model if part is None else getattr(model, part)
    setattr(module, method, getattr(module, method))
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(TypeError, match=rf"model: {method} is set on this .* remove it"):
        ssd_fast.accelerate(model)
    assert [type(m) for m in model.modules()] == kinds


def test_refuses_parts_that_are_not_torchvisions(torchvision) -> None:
    model = build("faster_rcnn")
    model.roi_heads = nn.Identity()
    with pytest.raises(TypeError, match=r"model.roi_heads: expected torchvision's RoIHeads, got I"):
        ssd_fast.accelerate(model)
    with pytest.raises(TypeError, match=r"model: expected an SSD.*, got torchvision.*RegionProp"):
        ssd_fast.accelerate(model.rpn)
