# SPDX-License-Identifier: BSD-3-Clause
"""The same weights and priors give the same SSD300 as torchvision's, empty images included."""

import pytest
import torch

from ssd_fast.boxes import box_iou
from ssd_fast.models import ssd300_vgg16
from ssd_fast.models.heads import concatenate_maps
from ssd_fast.ops import match

CLASSES = 21


def torchvision_names():
    """The name in torchvision of each of this package's 71 parameters."""
    features = iter([0, 2, 5, 7, 10, 12, 14, 17, 19, 21])
    convs = {}
    for stage, length in ((1, 2), (2, 2), (3, 3), (4, 3)):
        convs |= {f"conv{stage}.{i}": f"features.{next(features)}" for i in range(length)}
    convs |= {f"conv5.{i}": f"extra.0.{2 * i + 1}" for i in range(3)}
    convs |= {"conv6": "extra.0.7.1", "conv7": "extra.0.7.3"}
    for k in range(4):
        convs |= {f"extras.{k}.0": f"extra.{k + 1}.0", f"extras.{k}.1": f"extra.{k + 1}.2"}
    names = {"backbone.l2norm.weight": "backbone.scale_weight"}
    for part in ("weight", "bias"):
        names |= {f"backbone.{a}.conv.{part}": f"backbone.{b}.{part}" for a, b in convs.items()}
        for kind in ("regression", "classification"):
            theirs = f"head.{kind}_head.module_list"
            names |= {f"heads.{kind}.{k}.{part}": f"{theirs}.{k}.{part}" for k in range(6)}
    return names


@pytest.fixture(scope="module")
def twins(torchvision):
    """Both models. The background is likely, as after training: few boxes reach NMS."""
    torch.manual_seed(2)
    theirs = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )
    with torch.no_grad():
        for layer in theirs.head.classification_head.module_list:
            layer.weight.mul_(0.08)
            layer.bias.view(-1, CLASSES)[:, 0] += 6
    ours = ssd300_vgg16(CLASSES, priors="torchvision")
    weights = theirs.state_dict()
    names = torchvision_names()
    assert sorted(names.values()) == sorted(weights)
    ours.load_state_dict({our: weights[their] for our, their in names.items()})
    for our, their in names.items():
        # The 13 layers of VGG cost most of a backward pass, and nothing in it is ours.
        if our.startswith(tuple(f"backbone.conv{stage}" for stage in range(1, 6))):
            ours.get_parameter(our).requires_grad_(False)
            theirs.get_parameter(their).requires_grad_(False)
    return ours, theirs


@pytest.fixture(scope="module")
def scenes():
    """Two images of different sizes; the second has no object."""
    generator = torch.Generator().manual_seed(5)
    images = [
        torch.rand(3, 300, 300, generator=generator),
        torch.rand(3, 211, 333, generator=generator),
    ]
    corner = torch.rand(4, 2, generator=generator) * 180
    size = torch.tensor([[28.0, 31], [60, 90], [110, 70], [190, 160]])  # one for each fine map
    boxes = torch.cat([corner, corner + size], dim=1).clamp(max=300)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [{"boxes": boxes, "labels": torch.tensor([1, 7, 20, 7])}, empty]


@pytest.fixture(scope="module")
def theirs_run(twins, scenes):
    """One training pass of theirs: losses, what the heads predict, anchors in pixels."""
    _, theirs = twins
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, module in (("heads", theirs.head), ("anchors", theirs.anchor_generator))
    ]
    losses = theirs(*scenes)
    for hook in hooks:
        hook.remove()
    return losses, seen["heads"], seen["anchors"]


def test_matching(twins, scenes, theirs_run):
    """In pixels, as they match, and in [0, 1], as we do."""
    ours, theirs = twins
    _, _, (anchors, _) = theirs_run
    boxes = scenes[1][0]["boxes"]
    offsets = torch.tensor([0, len(boxes)])
    expected = theirs.proposal_matcher(box_iou(boxes, anchors)).to(torch.int32)
    assert (expected >= 0).any()
    assert match(anchors, boxes, offsets)[0].equal(expected)
    assert match(ours.priors, boxes / 300, offsets)[0].equal(expected)


def test_heads_losses_and_gradients(twins, scenes, theirs_run):
    ours, theirs = twins
    expected, outputs, _ = theirs_run
    seen = []
    hook = ours.heads.register_forward_hook(lambda _, __, output: seen.append(output))
    actual = ours(*scenes)
    hook.remove()
    ((deltas, logits),) = seen
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(concatenate_maps(deltas, 4), outputs["bbox_regression"], **close)
    torch.testing.assert_close(concatenate_maps(logits, CLASSES), outputs["cls_logits"], **close)
    for name in ("bbox_regression", "classification"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=0)
    sum(expected.values()).backward()
    sum(actual.values()).backward()
    parameters = dict(theirs.named_parameters())
    compared = 0
    for our, their in torchvision_names().items():
        gradient, reference = ours.get_parameter(our).grad, parameters[their].grad
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            assert (gradient - reference).norm() < 1e-4 * reference.norm(), our
            compared += 1
    assert compared == 71 - 2 * 13


def test_detections(twins, scenes, theirs_run):
    ours, theirs = twins
    _, outputs, anchors = theirs_run
    sizes = [tuple(image.shape[1:]) for image in scenes[0]]
    with torch.no_grad():
        expected = theirs.postprocess_detections(outputs, anchors, [(300, 300)] * 2)
        expected = theirs.transform.eval().postprocess(expected, [(300, 300)] * 2, sizes)
        actual = ours.eval()(scenes[0])
    for result, reference in zip(actual, expected, strict=True):
        assert len(reference["boxes"]) > 50
        assert result["labels"].equal(reference["labels"])
        torch.testing.assert_close(result["scores"], reference["scores"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result["boxes"], reference["boxes"], rtol=1e-4, atol=1e-2)
