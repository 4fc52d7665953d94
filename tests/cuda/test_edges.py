# SPDX-License-Identifier: BSD-3-Clause
"""Empty batches, wrong devices, other streams and wild targets on a GPU."""

import pytest
import torch

from ssd_fast import ops
from ssd_fast.testing import crowded_boxes, random_boxes, seeded


@pytest.mark.parametrize(("B", "N"), [(0, 0), (2, 0)])
def test_empty_batches(gpu, B, N):
    priors = random_boxes(50, seeded(0)).to(gpu)
    boxes, labels = torch.zeros(N, 4, device=gpu), torch.zeros(N, device=gpu).long()
    offsets = torch.zeros(B + 1, device=gpu).long()
    assert ops.match(priors, boxes, offsets).shape == (B, 50)
    heads = [torch.randn(B, 50, k, device=gpu).requires_grad_() for k in (4, 5)]
    box, classes, positives = ops.multibox_loss(*heads, priors, boxes, labels, offsets)
    assert positives.tolist() == [0] * B
    assert float(box) == float(classes) == 0
    gradients = torch.autograd.grad(box + classes, heads)
    assert not any(bool(x.any()) for x in gradients)
    assert ops.mine(torch.zeros(B, 50, device=gpu), torch.zeros(B, 50, device=gpu).int()).shape == (
        B,
        50,
    )
    assert ops.decode(heads[0].detach(), priors, (0.1, 0.2)).shape == (B, 50, 4)
    assert ops.detect(*(x.detach() for x in heads), priors).counts.shape == (B,)


def test_no_boxes(gpu):
    boxes, scores = torch.zeros(0, 4, device=gpu), torch.zeros(0, device=gpu)
    idxs = scores.long()
    assert ops.nms(boxes, scores, 0.5).shape == (0,)
    assert ops.batched_nms(boxes, scores, idxs, 0.5).shape == (0,)
    keep, count = ops.nms_padded(boxes, scores, 0.5)
    assert (keep.shape, int(count)) == ((0,), 0)


def test_other_devices_are_refused(gpu):
    boxes, scores = torch.rand(3, 4, device=gpu), torch.rand(3)
    priors = random_boxes(5, seeded(0))
    with pytest.raises(ValueError, match=r"scores: expected on cuda:\d+ like boxes, got cpu"):
        ops.nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=r"expected on .* got "):
        ops.match(priors, boxes, torch.tensor([0, 3], device=gpu))
    with pytest.raises(ValueError, match=r"expected on .* got "):
        ops.decode(torch.zeros(1, 5, 4, device=gpu), priors, (0.1, 0.2))
    with pytest.raises(ValueError, match=r"expected on .* got "):
        ops.multibox_loss(
            torch.zeros(1, 5, 4, device=gpu),
            torch.zeros(1, 5, 3, device=gpu),
            priors.to(gpu),
            boxes,
            torch.zeros(3).long(),
            torch.tensor([0, 3], device=gpu),
        )


def test_the_operators_guard_memory_themselves(gpu, needs_kernel):
    needs_kernel("nms")
    boxes, scores = torch.rand(3, 4, device=gpu), torch.rand(3, device=gpu)
    for wrong in (scores[:2], scores.double(), scores.cpu()):
        with pytest.raises(RuntimeError, match="scores: expected 3 float32 on the GPU"):
            torch.ops.ssd_fast.nms(boxes, wrong, 0.5)


def test_work_stays_on_the_current_stream(gpu, needs_kernel):
    """What is enqueued before on a stream of its own has been seen; nothing waits for another."""
    needs_kernel("nms")
    boxes, scores = crowded_boxes("random", 3000, seeded(0))
    expected = ops.nms(boxes, scores, 0.5)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.empty(3000, 4, device=gpu)
        torch.cuda._sleep(10**8)
        late.copy_(boxes.pin_memory(), non_blocking=True)
        found = ops.nms(late, scores.to(gpu), 0.5)
    assert torch.equal(found.cpu(), expected)


def test_views_and_offsets_in_storage(gpu):
    boxes, scores = (x.to(gpu) for x in crowded_boxes("random", 501, seeded(0)))
    flat = torch.cat((torch.zeros(3, device=gpu), boxes.flatten()))[3:].view(-1, 4)
    expected = ops.nms(boxes, scores, 0.5)
    assert torch.equal(ops.nms(flat, scores, 0.5), expected)
    assert torch.equal(ops.nms(boxes.T.contiguous().T, scores, 0.5), expected)


def test_wild_offsets_are_clamped(gpu):
    priors, boxes = random_boxes(20, seeded(0)), random_boxes(3, seeded(1))
    for numbers in ([-5, 99, 0, 2**40], [3, 3], [0, 2, 1]):
        offsets = torch.tensor(numbers)
        found = ops.match(priors.to(gpu), boxes.to(gpu), offsets.to(gpu))
        assert torch.equal(found.cpu(), ops.match(priors, boxes, offsets))


def test_beyond_31_bits_of_logits(gpu):
    """B * P * C > 2^31: the last image gets the losses that it has alone."""
    batch, P, C = 260, 8732, 1000
    if torch.cuda.get_device_properties(gpu).total_memory < 40 * 2**30:
        pytest.skip("needs a GPU of 40 GB")
    priors = random_boxes(P, seeded(0)).to(gpu)
    deltas = torch.zeros(1, P, 4, device=gpu, dtype=torch.bfloat16).expand(batch, -1, -1)
    logits = torch.zeros(batch, P, C, device=gpu, dtype=torch.bfloat16)
    logits[-1].normal_()
    boxes, labels = priors[:1].clone(), torch.ones(1, device=gpu).long()
    offsets = torch.zeros(batch + 1, device=gpu).long()
    offsets[-1] = 1
    with torch.no_grad():
        found = ops.multibox_loss(deltas, logits, priors, boxes, labels, offsets)
        alone = ops.multibox_loss(deltas[-1:], logits[-1:], priors, boxes, labels, offsets[[0, -1]])
    torch.testing.assert_close(found[:2], alone[:2])
