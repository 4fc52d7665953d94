# SPDX-License-Identifier: BSD-3-Clause
"""detect: equal to its definition and to torchvision, from heads in any layout."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.detections import Detections
from ssd_fast.ops.decode import decode_reference
from ssd_fast.ops.detect import detect, detect_reference
from ssd_fast.testing import as_maps, seeded
from ssd_fast.testing_detections import assert_same_detections

from .detect_cases import CELLS, P, heads


def assert_matches_reference(deltas, logits, priors, **options):
    """Detections of kernel and reference, equal or told apart only within the band."""
    found = detect(deltas, logits, priors, **options)
    rows = (deltas.double(), logits.double(), priors.double())
    scores = rows[1].softmax(dim=2)
    boxes = decode_reference(rows[0], rows[2], max_log_scale=options.get("max_log_scale", 4.0))
    if (clip := options.pop("clip", None)) is not None:
        clip = torch.as_tensor(clip, dtype=torch.float64).reshape(-1, 1, 4).expand(len(boxes), 1, 4)
        boxes = boxes.maximum(clip[..., :2].repeat(1, 1, 2)).minimum(clip[..., 2:].repeat(1, 1, 2))
        options["clip"] = clip.squeeze(1).float().contiguous()
    expected = detect_reference(deltas, logits, priors, **options)
    kept = ("score_threshold", "top_k", "iou_threshold", "background_index")
    options = {name: value for name, value in options.items() if name in kept}
    assert_same_detections(found, expected, scores, boxes, **options)


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["trained", "untrained", "ties"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    classes=st.sampled_from([1, 2, 4, 21]),
    options=st.fixed_dictionaries(
        {
            "score_threshold": st.sampled_from([0.01, 0.0, -0.1, 0.3, 0.6, 1e-6, 1e-38, 1.0]),
            "top_k": st.sampled_from([0, 1, 5, 400]),
            "max_detections": st.sampled_from([0, 1, 7, 200, 600]),
            "iou_threshold": st.sampled_from([0.45, 0.0, 0.7, 1.0]),
            "clip": st.sampled_from([None, (0.0, 0.0, 1.0, 1.0)]),
            "max_log_scale": st.sampled_from([4.0, 0.1]),
        }
    ),
)
def test_equals_reference(seed, kind, dtype, classes, options):
    inputs = heads(seeded(seed), batch=1, priors=60, classes=classes, kind=kind, dtype=dtype)
    options["background_index"] = seed % classes
    assert_matches_reference(*inputs, **options)


@pytest.mark.parametrize("kind", ["trained", "untrained"])
@pytest.mark.parametrize("classes", [2, 21])
def test_every_device_decides_the_same(device, classes, kind):
    inputs = [t.to(device) for t in heads(seeded(0), priors=700, classes=classes, kind=kind)]
    found = detect(*inputs)
    assert found.counts.device.type == device.type
    assert [t.dtype for t in found] == [torch.float32, torch.float32, torch.int64, torch.int64]
    deltas, logits, priors = (t.cpu() for t in inputs)
    assert_same_detections(
        Detections(*(t.cpu() for t in found)),
        detect_reference(deltas, logits, priors),
        logits.double().softmax(dim=2),
        decode_reference(deltas.double(), priors.double()),
    )


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["trained", "untrained"]))
def test_equals_torchvision(torchvision, seed, kind):
    deltas, logits, priors = heads(seeded(seed), kind=kind)
    priors = priors * 300
    detector = torchvision.models.detection
    model = SimpleNamespace(
        box_coder=detector._utils.BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=0.01,
        topk_candidates=10,
        nms_thresh=0.45,
        detections_per_img=50,
    )
    lists = detector.ssd.SSD.postprocess_detections(
        model,
        {"bbox_regression": deltas, "cls_logits": logits},
        [priors] * 2,
        [(300, 300)] * 2,
    )
    expected = Detections(
        torch.zeros(2, 50, 4), torch.zeros(2, 50), torch.zeros(2, 50).long(), torch.zeros(2).long()
    )
    for i, image in enumerate(lists):
        expected.counts[i] = n = image["scores"].numel()
        expected.boxes[i, :n], expected.scores[i, :n] = image["boxes"], image["scores"]
        expected.labels[i, :n] = image["labels"]
    found = detect(deltas, logits, priors, top_k=10, max_detections=50, clip=(0, 0, 300, 300))
    boxes = decode_reference(deltas.double(), priors.double()).clamp(0, 300)
    scores = logits.double().softmax(dim=2)
    assert_same_detections(found, expected, scores, boxes, top_k=10)


def strided(level):
    """The same numbers with gaps between all dimensions."""
    wide = torch.zeros([2 * n for n in level.shape], dtype=level.dtype, device=level.device)
    view = wide[tuple(slice(None, None, 2) for _ in level.shape)]
    return view.copy_(level)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.01, 0.0])
@pytest.mark.parametrize("background", [0, 2])
def test_heads_are_read_where_they_lie(device, dtype, threshold, background):
    """Rows or maps, in any strides and dtype, give the same detections.

    On the CPU bit for bit; a GPU adds exponentials in an order that follows the layout.
    """
    slack = 1e-5 if device.type == "cuda" else 0
    deltas, logits, priors = heads(seeded(0), kind="trained", dtype=dtype)
    deltas, logits, priors = deltas.to(device), logits.to(device), priors.to(device)
    options = {"score_threshold": threshold, "background_index": background}
    expected = detect(deltas, logits, priors, **options)
    assert int(expected.counts.min()) > 10
    split = [100, P - 100]
    layouts = {
        "levels of rows": (deltas.split(split, dim=1), logits.split(split, dim=1)),
        "class by class": (deltas.mT.contiguous().mT, logits.mT.contiguous().mT),
        "strided rows": (strided(deltas), strided(logits)),
        "maps": (as_maps(deltas, CELLS), as_maps(logits, CELLS)),
    }
    maps = layouts["maps"]
    layouts["channels_last"] = tuple(
        [level.to(memory_format=torch.channels_last) for level in levels] for levels in maps
    )
    layouts["strided maps"] = tuple([strided(level) for level in levels] for levels in maps)
    layouts["transposed maps"] = tuple([x.mT.contiguous().mT for x in levels] for levels in maps)
    layouts["mixed"] = (maps[0], layouts["channels_last"][1])
    for name, (one, other) in layouts.items():
        for found, wanted in zip(detect(one, other, priors, **options), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=slack, atol=0, msg=name)
    for found, wanted in zip(
        detect_reference(*maps, priors, **options)[2:], expected[2:], strict=True
    ):
        assert torch.equal(found, wanted)


def test_large_maps_are_scanned_whole(device):
    """A map longer than the strips in which it is scanned: a class at every place is found."""
    cells = [(1, 70, 61)]
    deltas = torch.zeros(1, 4270, 4, device=device)
    logits = torch.zeros(1, 4270, 2, device=device)
    logits[..., 0] = 9
    x = torch.arange(4270.0, device=device)
    priors = torch.stack((x, x * 0, x + 1, x * 0 + 1), dim=1)
    for begin in range(0, 4270, 61):
        some = logits.clone()
        some[0, begin : begin + 3, 1] = torch.tensor([30.0, 20, 19], device=device)
        maps = (as_maps(deltas, cells), as_maps(some, cells))
        for found in (detect(*maps, priors), detect(deltas, some, priors)):
            assert found.boxes[0, : int(found.counts), 0].tolist() == [begin, begin + 1, begin + 2]


def test_expanded_inputs(device):
    deltas, logits, priors = (t.to(device) for t in heads(seeded(0), batch=1))
    three = detect(deltas.expand(3, -1, -1), logits.expand(3, -1, -1), priors)
    for single, triple in zip(detect(deltas, logits, priors), three, strict=True):
        assert torch.equal(single.expand_as(triple), triple)
