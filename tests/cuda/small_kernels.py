# SPDX-License-Identifier: BSD-3-Clause
"""Runs every GPU kernel once at small sizes: what `make gpu` gives to compute-sanitizer.

compute-sanitizer --tool=memcheck python tests/cuda/small_kernels.py
"""

import sys

import torch

from ssd_fast import _C, ops
from ssd_fast.testing import as_maps, crowded_boxes, random_boxes, random_objects, seeded

CELLS = [(4, 5, 4), (6, 3, 3), (2, 1, 1)]
P = sum(anchors * height * width for anchors, height, width in CELLS)


def train(device: torch.device) -> None:
    """Matching, mining, the loss and its gradients: rows and maps, with and without objects."""
    priors = random_boxes(P, seeded(0)).to(device)
    for counts, assign, dtype in (
        ((1, 5), "last", torch.float32),
        ((0, 3), "bipartite", torch.float16),
        ((0, 0), "none", torch.bfloat16),
    ):
        objects = random_objects(3, seeded(1), counts=counts)
        targets = [x.to(device) for x in objects]
        matched = ops.match(priors, targets[0], targets[2], assign=assign)
        ops.mine(torch.rand(3, P, generator=seeded(2)).to(device), matched)
        rows = [torch.randn(3, P, k, generator=seeded(k)).to(dtype) for k in (4, 21)]
        for as_layout in (lambda x: [x], lambda x: as_maps(x, CELLS)):
            heads = [[y.to(device).requires_grad_() for y in as_layout(x)] for x in rows]
            box, classes, _ = ops.multibox_loss(*heads, priors, *targets, assign=assign)
            (box + classes).backward()
        losses = {"box_loss": "ciou", "label_smoothing": 0.1, "class_weights": torch.ones(21)}
        losses["class_weights"] = losses["class_weights"].to(device)
        for given in (None, matched):
            box, classes, _ = ops.multibox_loss(*heads, priors, *targets, matches=given, **losses)
            (box + classes).backward()
            options = {"matches": given, "gamma": 1.5, "normalizer": "image"}
            box, classes, _ = ops.focal_loss(*heads, priors, *targets, **options)
            (box + classes).backward()


def postprocess(device: torch.device) -> None:
    """Encoding, decoding, detection: rows and maps."""
    priors = random_boxes(P, seeded(0)).to(device)
    deltas, logits = (torch.randn(2, P, k, generator=seeded(k)).to(device) for k in (4, 5))
    boxes = ops.decode(deltas, priors, (0.1, 0.2))
    ops.encode(boxes, priors, (0.1, 0.2))
    ops.detect(deltas, logits, priors)
    ops.detect(as_maps(deltas, CELLS), as_maps(logits, CELLS), priors, clip=(0, 0, 1, 1))
    ops.detect(deltas, logits, priors, scores="sigmoid", background_index=None)
    many = [x.repeat(1, 20, 1) for x in (deltas, logits)]  # more candidates than are listed
    for nms in ("hard", "diou", "soft-linear", "soft-gaussian"):
        ops.detect(*many, priors.repeat(20, 1), nms=nms)


def suppress(device: torch.device) -> None:
    """NMS in a block and in tiles."""
    for n in (1, 300, 4500):
        b, s = (x.to(device) for x in crowded_boxes("random", n, seeded(n)))
        idxs = torch.arange(n, device=device)
        ops.nms(b, s, 0.45)
        for classes in (1, 7):
            ops.batched_nms(b, s, idxs % classes, 0.45)
            ops.nms_padded(b, s, 0.45, idxs % classes)


def has_kernels_of_nms() -> bool:
    """Whether nvcc compiled them; without them the reference would answer."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return _C.with_cuda and has_kernel("ssd_fast::nms_padded", "CUDA")


if __name__ == "__main__":
    device = torch.device("cuda")
    train(device)
    postprocess(device)
    torch.cuda.synchronize()
    if not has_kernels_of_nms():
        sys.exit("the kernels of NMS did not run: ssd_fast was built without nvcc")
    suppress(device)
    torch.cuda.synchronize()
    print("every kernel ran")
