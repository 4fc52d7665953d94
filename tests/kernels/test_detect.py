# SPDX-License-Identifier: BSD-3-Clause
"""launch_detect against the reference: layouts, dtypes, ties, overflow, rows without a score.

Lists of a few candidates make the kernel read rows again, as it does on a GPU for flat scores.
Numbers of classes and blocks are few, because on a GPU each is compiled.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.detections import Detections
from ssd_fast.kernels.detect import launch_detect
from ssd_fast.ops.decode import decode_reference
from ssd_fast.ops.detect import SCORES, detect_reference
from ssd_fast.suppression import NMS
from ssd_fast.testing import as_maps, random_boxes, seeded
from ssd_fast.testing_detections import assert_same_detections

CELLS = [(4, 3, 5), (6, 2, 2), (2, 1, 1)]
P = sum(anchors * height * width for anchors, height, width in CELLS)
INF, NAN = math.inf, math.nan


class Case(NamedTuple):
    """Heads of a batch, options of the operator, blocks of the launcher."""

    C: int = 21
    P: int = P
    B: int = 2
    layout: str = "rows"
    dtype: torch.dtype = torch.float32
    kind: str = "trained"
    threshold: float = 0.01
    top_k: int = 400
    iou_threshold: float = 0.45
    K: int = 200
    background: int = 0  # -1 for none
    clip: tuple[float, ...] | None = None
    image_clip: bool = False
    max_log_scale: float | None = 4.0
    block: int | None = None
    capacity: int = 1024
    visit: int = 64
    nms: str = "hard"
    sigma: float = 0.5
    scores: str = "softmax"

    @property
    def class_left_out(self) -> int | None:
        """The background as the public function takes it."""
        return None if self.background < 0 else self.background


CASES = [
    Case(),
    Case(layout="maps", dtype=torch.float16, clip=(0.1, 0.0, 0.9, 1.0), block=128, B=1),
    Case(layout="channels_last", dtype=torch.bfloat16, background=20, image_clip=True, K=7),
    Case(C=5, layout="sliced", kind="flat", top_k=9, K=500, capacity=64, threshold=0.0),
    Case(C=4, layout="maps", kind="flat", K=25, capacity=32, visit=32, block=128),
    Case(C=81, layout="channels_last", kind="flat", top_k=3, K=40, capacity=128, B=1),
    Case(C=2, P=67, kind="flat", top_k=10**9, iou_threshold=0.1, K=300, capacity=32, B=1),
    Case(C=1204, P=3, dtype=torch.float16, kind="flat", threshold=2e-3, K=30, B=1),
    Case(C=3, kind="trained", threshold=-1.0, iou_threshold=-0.5, background=1, B=1),
    Case(C=3, kind="flat", iou_threshold=1.0, max_log_scale=None, capacity=8, top_k=1, K=1),
    Case(C=3, kind="ties", K=30, capacity=16, top_k=30, B=1, visit=16),
    Case(C=6, kind="equal", K=70, top_k=50, capacity=64, B=1),
    Case(nms="diou", B=1),
    Case(C=3, P=40, kind="flat", nms="diou", iou_threshold=0.3, capacity=16, visit=16, B=1),
    Case(nms="soft-linear", B=1, K=20),
    Case(layout="channels_last", dtype=torch.float16, nms="soft-gaussian", image_clip=True, K=9),
    Case(C=3, P=67, kind="flat", nms="soft-linear", capacity=16, visit=16, K=15, top_k=30, B=1),
    Case(C=4, kind="flat", nms="soft-gaussian", P=67, capacity=32, visit=16, K=20, sigma=2.0, B=1),
    Case(C=3, kind="ties", nms="soft-linear", P=30, threshold=-1.0, iou_threshold=-0.5, K=20, B=1),
    Case(C=5, scores="sigmoid", background=-1, clip=(0.1, 0.0, 0.9, 1.0), nms="diou"),
    Case(layout="channels_last", dtype=torch.bfloat16, scores="sigmoid", background=-1, K=9, B=1),
    Case(C=4, layout="maps", kind="flat", K=25, capacity=32, visit=32, scores="sigmoid", B=1),
    Case(C=1, P=40, kind="flat", threshold=-1.0, scores="sigmoid", background=-1, capacity=16),
    Case(C=1, P=1, kind="flat", threshold=-1.0, scores="sigmoid", background=-1, B=1),
    Case(C=4, P=67, kind="flat", nms="soft-linear", capacity=32, visit=16, K=15, top_k=30, B=1,
         scores="sigmoid", background=2, threshold=0.3),
]  # fmt: skip


def _lay_out(rows: Tensor, layout: str) -> list[Tensor]:
    if layout == "rows":
        return [rows]
    if layout == "sliced":  # neither channels nor rows lie side by side
        return [torch.stack((rows, rows), dim=-1)[..., 0]]
    maps = as_maps(rows, CELLS)
    if layout == "channels_last":
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    return maps


def _rows(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Deltas (B, P, 4), logits (B, P, C) and priors of a kind of head."""
    generator = seeded(case.P + case.C)
    shape = (case.B, case.P)
    logits = torch.randn(*shape, case.C, generator=generator)
    if case.kind == "trained":
        if case.scores == "sigmoid":
            logits -= 7
        else:
            logits[..., case.background] += 8
        sure = torch.rand(*shape, 1, generator=generator) < 0.3
        label = torch.randint(0, case.C, (*shape, 1), generator=generator)
        logits.scatter_add_(2, label, sure * 12.0)
    if case.kind == "ties":
        logits = logits.round()
    if case.kind == "equal":
        logits.zero_()
    deltas = torch.randn(*shape, 4, generator=generator).to(case.dtype)
    return deltas, logits.to(case.dtype), random_boxes(case.P, generator, smallest=0.1)


def _launch(case: Case, device, deltas, logits, priors, bounds=None) -> Detections:
    found = launch_detect(
        [x.to(device) for x in deltas], [x.to(device) for x in logits], priors.to(device),
        case.threshold, case.top_k, case.iou_threshold, case.K, (0.1, 0.2), case.background,
        case.clip, None if bounds is None else bounds.to(device), case.max_log_scale,
        nms=NMS[case.nms], sigma=case.sigma, scores=SCORES[case.scores],
        block=case.block, capacity=case.capacity, visit=case.visit,
    )  # fmt: skip
    return Detections(*(x.cpu() for x in found))


def _reference(case: Case, deltas, logits, priors, bounds=None) -> Detections:
    return detect_reference(
        deltas, logits, priors, score_threshold=case.threshold, top_k=case.top_k,
        iou_threshold=case.iou_threshold, max_detections=case.K, variances=(0.1, 0.2),
        background_index=case.class_left_out,
        clip=case.clip if bounds is None else bounds, max_log_scale=case.max_log_scale,
        nms=case.nms, sigma=case.sigma, scores=case.scores,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(kernel_device, case) -> None:
    """Detections are the reference's, or others that keys within the band explain."""
    rows = _rows(case)
    bounds: Tensor | None = None
    if case.image_clip:
        bounds = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.3, 0.7, 0.8]])
    found = _launch(
        case, kernel_device, *(_lay_out(x, case.layout) for x in rows[:2]), rows[2], bounds
    )
    expected = _reference(case, *rows, bounds)
    assert int(expected.counts.min()) > 0
    wide = [x.double() for x in rows]
    boxes = decode_reference(wide[0], wide[2], max_log_scale=case.max_log_scale)
    if case.clip is not None:
        bounds = torch.tensor([case.clip] * case.B)
    if bounds is not None:
        low, high = bounds[:, None, [0, 1, 0, 1]].double(), bounds[:, None, [2, 3, 2, 3]].double()
        boxes = boxes.maximum(low).minimum(high)
    scores = wide[1].sigmoid() if case.scores == "sigmoid" else wide[1].softmax(dim=2)
    assert_same_detections(
        found, expected, scores, boxes, score_threshold=case.threshold,
        top_k=case.top_k, iou_threshold=case.iou_threshold,
        background_index=case.class_left_out, nms=case.nms, sigma=case.sigma,
    )  # fmt: skip


@pytest.mark.parametrize(("capacity", "nms"), [(16, "hard"), (1024, "hard"), (16, "soft-linear")])
def test_ties_go_by_label_then_prior(kernel_device, capacity, nms) -> None:
    """Equal scores: the order is exact, within a list and across the ranges that are read again."""
    x = 2 * torch.arange(11.0)
    priors = torch.stack((x, 0 * x, x + 1, 0 * x + 1), dim=1)
    deltas, logits = torch.zeros(1, 11, 4), torch.zeros(1, 11, 3)
    for top_k, K in ((400, 15), (2, 30)):
        case = Case(C=3, top_k=top_k, K=K, capacity=capacity, visit=16, nms=nms)
        found = _launch(case, kernel_device, [deltas], [logits], priors)
        expected = _reference(case, deltas, logits, priors)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_and_boxes_that_are_not_finite(kernel_device) -> None:
    """Rows with a NaN or +inf logit yield nothing; boxes that are not finite use up top_k."""
    case = Case(C=3, P=30, B=1, top_k=20, K=100, visit=16)
    deltas, logits, priors = _rows(case)
    logits[0, :, 0] = 0
    for i, bad in enumerate((NAN, INF, -INF)):
        for c in range(3):
            logits[0, 3 * i + c, c] = bad
    logits[0, 9] = -INF
    deltas[0, 10:13, 0] = torch.tensor([NAN, INF, -INF])
    deltas[0, 13, 2] = NAN
    priors[14, 3] = INF
    for threshold, capacity in ((0.01, 16), (-1.0, 1024)):
        options = case._replace(threshold=threshold, capacity=capacity)
        found = _launch(options, kernel_device, [deltas], [logits], priors)
        expected = _reference(options, deltas, logits, priors)
        torch.testing.assert_close(found, expected)
    bounds = torch.tensor([[0.0, 0.0, NAN, 1.0]])
    found = _launch(case, kernel_device, [deltas], [logits], priors, bounds)
    assert found.counts.tolist() == [0]


def test_sigmoids_of_logits_that_are_not_finite(kernel_device) -> None:
    """NaN is no score and hides no other of its row, +inf is 1; read once and read again."""
    case = Case(C=5, P=24, kind="flat", scores="sigmoid", background=-1, K=60, B=1)
    deltas, logits, priors = _rows(case)
    for start, value in enumerate((NAN, INF, -INF, 100.0, -100.0)):
        logits[0, start::7, start] = value
    logits[0, 6::7] = NAN
    for threshold, capacity in ((0.3, 1024), (-1.0, 64)):
        options = case._replace(threshold=threshold, capacity=capacity)
        found = _launch(options, kernel_device, [deltas], [logits], priors)
        torch.testing.assert_close(found, _reference(options, deltas, logits, priors))


def test_degenerate_boxes(kernel_device) -> None:
    """Boxes without area, inverted or huge: NaN overlaps suppress nothing, at any threshold."""
    corners = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1],
               [-3e38, -3e38, 3e38, 3e38], [0, 0, 3e38, 3e38], [0, 0, 1e30, 1e30]]  # fmt: skip
    priors = torch.tensor(corners, dtype=torch.float32)
    logits = torch.zeros(1, 9, 3)
    logits[0, :, 1] = torch.arange(9.0).flip(0) + 9
    limits = [(-1.0, "hard"), (0.0, "hard"), (1.0, "hard"), *((0.45, nms) for nms in NMS)]
    for iou_threshold, nms in limits:
        case = Case(C=3, iou_threshold=iou_threshold, K=10, visit=16, nms=nms)
        found = _launch(case, kernel_device, [torch.zeros(1, 9, 4)], [logits], priors)
        expected = _reference(case, torch.zeros(1, 9, 4), logits, priors)
        assert torch.equal(found.counts, expected.counts)
        assert torch.equal(found.boxes, expected.boxes)


def test_chains_of_suppression_settle(kernel_device) -> None:
    """Each box overlaps the next: every other one is kept, over blocks and within."""
    x = torch.arange(40.0)
    priors = torch.stack((x, 0 * x, x + 3, 0 * x + 1), dim=1)
    logits = torch.zeros(1, 40, 3)
    logits[0, :, 1] = 9 - x / 16
    for visit in (16, 64):
        case = Case(C=3, visit=visit, iou_threshold=0.3)
        found = _launch(case, kernel_device, [torch.zeros(1, 40, 4)], [logits], priors)
        assert found.boxes[0, : int(found.counts), 0].tolist() == list(range(0, 40, 2))


def test_repeats_are_equal(kernel_device) -> None:
    """Bit for bit, whatever the blocks and the room for candidates."""
    case = Case(C=3, kind="flat", K=30, top_k=20, B=1)
    deltas, logits, priors = _rows(case)
    first = _launch(case, kernel_device, [deltas], [logits], priors)
    for other in (case, case._replace(capacity=16, visit=16, block=16)):
        again = _launch(other, kernel_device, [deltas], [logits], priors)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_nothing_in_nothing_out(kernel_device) -> None:
    """No image, prior, class, candidate or room for a detection; empty levels of maps."""
    for case in (Case(B=0), Case(C=1), Case(top_k=0), Case(C=3, K=0), Case(C=3, threshold=1.0)):
        deltas, logits, priors = _rows(case)
        found = _launch(case, kernel_device, [deltas], [logits], priors)
        assert found.counts.tolist() == [0] * case.B
        assert found.boxes.shape == (case.B, case.K, 4)
        assert not any(bool(x.any()) for x in found)
    empty = torch.zeros(2, 0, 4)
    found = _launch(Case(C=3), kernel_device, [empty], [torch.zeros(2, 0, 3)], empty[0])
    assert found.counts.tolist() == [0, 0]
    deltas = [torch.zeros(1, 8, 0, 3), torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 3, 0)]
    logits = [torch.zeros(1, 6, *x.shape[2:]) for x in deltas]
    x = 2 * torch.arange(8.0)
    priors = torch.stack((x, 0 * x, x + 1, 0 * x + 1), dim=1)
    assert _launch(Case(C=3), kernel_device, deltas, logits, priors).counts.tolist() == [16]


def test_what_would_be_read_out_of_bounds_is_refused(kernel_device) -> None:
    """The operator guards memory itself."""
    deltas, logits, priors = _rows(Case())
    with pytest.raises(ValueError, match=rf"priors: expected one for each of the {P} rows"):
        _launch(Case(), kernel_device, [deltas], [logits], priors[1:])
    with pytest.raises(ValueError, match="background_index: expected from 0 to 20, got 21"):
        _launch(Case(background=21), kernel_device, [deltas], [logits], priors)
    with pytest.raises(ValueError, match="background_index: expected from -1 to 20, got -2"):
        _launch(Case(background=-2, scores="sigmoid"), kernel_device, [deltas], [logits], priors)
