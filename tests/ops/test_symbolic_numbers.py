# SPDX-License-Identifier: BSD-3-Clause
"""Options as torch.compile passes them once they changed between two calls: symbolic numbers."""

import pytest
import torch

from ssd_fast.ops import decode, detect, focal_loss, match, mine, multibox_loss, nms, nms_padded

PRIORS = torch.tensor([[0, 0, 0.5, 0.5], [0.4, 0.4, 1, 1], [0, 0, 0.45, 0.5]])
BOXES, LABELS = torch.tensor([[0.1, 0, 0.5, 0.5]]), torch.tensor([1])
OFFSETS = torch.tensor([0, 1])
DELTAS = torch.linspace(-1, 1, 12).reshape(1, 3, 4)
DELTAS_IN_TRAINING = DELTAS.clone().requires_grad_()
LOGITS = torch.linspace(-2, 2, 9).sin().reshape(1, 3, 3)


def _loss(x, deltas=DELTAS):
    options = {"iou_threshold": x, "low_threshold": x / 2, "ratio": 3 * x, "beta": x}
    return multibox_loss(deltas, LOGITS, PRIORS, BOXES, LABELS, OFFSETS, **options)


def _loss_with_gradient(x):
    return _loss(x, DELTAS_IN_TRAINING)


CALLS = {
    "decode": lambda x: decode(DELTAS, PRIORS, (x, 0.2), max_log_scale=4 * x),
    "detect": lambda x: tuple(
        detect(DELTAS, LOGITS, PRIORS, score_threshold=x, iou_threshold=x, max_log_scale=4 * x)
    ),
    "detect by soft-gaussian": lambda x: tuple(
        detect(DELTAS, LOGITS, PRIORS, score_threshold=x, nms="soft-gaussian", sigma=x)
    ),
    "focal_loss": lambda x: focal_loss(
        DELTAS, LOGITS, PRIORS, BOXES, LABELS, OFFSETS, alpha=x, gamma=4 * x, low_threshold=x / 2
    ),
    "match": lambda x: match(PRIORS, BOXES, OFFSETS, iou_threshold=x, low_threshold=x / 2),
    "mine": lambda x: mine(LOGITS[..., 0], torch.tensor([[0, -1, -1]]).int(), ratio=3 * x),
    "multibox_loss": _loss,
    "multibox_loss_with_gradient": _loss_with_gradient,
    "nms": lambda x: nms(PRIORS, PRIORS[:, 3], x),
    "nms_padded": lambda x: nms_padded(PRIORS, PRIORS[:, 3], x),
}


@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_a_graph_break(name):
    torch.compiler.reset()
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for threshold in (0.3, 0.4, 0.55):
        torch.testing.assert_close(compiled(threshold), call(threshold), rtol=0, atol=0)
