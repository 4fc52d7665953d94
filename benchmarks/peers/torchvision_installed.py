# SPDX-License-Identifier: BSD-3-Clause
"""The installed torchvision, as far as its SSD runs after the heads: not re-written, called.

The methods of its model run on the few settings they read, without a network around them; so does
RetinaNet's postprocessing, for scores that are sigmoids.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.peers.torchvision_ssd import WEIGHTS


class NotInstalledError(RuntimeError):
    """What a measurement needs is not there: a reason to leave it out, not a failure."""


def installed_torchvision() -> SimpleNamespace | None:
    """Functions by name: `match`, `compute_loss`, `postprocess`, `postprocess_sigmoids`, `nms`, ...

    None where torchvision is not installed or, beside another build of torch, does not load.
    """
    try:
        from torchvision.models.detection import _utils
        from torchvision.models.detection.retinanet import RetinaNet
        from torchvision.models.detection.ssd import SSD
        from torchvision.ops import batched_nms, box_iou, nms, sigmoid_focal_loss
    except (ImportError, RuntimeError, OSError):  # a CUDA build beside CPU torch: RuntimeError
        return None
    settings = SimpleNamespace(
        box_coder=_utils.BoxCoder(weights=WEIGHTS),
        neg_to_pos_ratio=3.0,
        score_thresh=0.01,
        topk_candidates=400,
        nms_thresh=0.45,
        detections_per_img=200,
    )
    retinanet = SimpleNamespace(
        box_coder=settings.box_coder,
        score_thresh=0.05,
        topk_candidates=1000,
        nms_thresh=0.5,
        detections_per_img=300,
    )
    matcher = _utils.SSDMatcher(0.5)

    def match(targets: list[dict[str, Tensor]], anchors: list[Tensor]) -> list[Tensor]:
        """As in `SSD.forward`."""
        return [
            matcher(box_iou(target["boxes"], anchor))
            if target["boxes"].numel()
            else torch.full((anchor.size(0),), -1, device=anchor.device)
            for target, anchor in zip(targets, anchors, strict=True)
        ]

    return SimpleNamespace(
        match=match,
        compute_loss=lambda *arguments: SSD.compute_loss(settings, *arguments),
        postprocess=lambda *arguments: SSD.postprocess_detections(settings, *arguments),
        postprocess_sigmoids=lambda *arguments: RetinaNet.postprocess_detections(
            retinanet, *arguments
        ),
        decode=settings.box_coder.decode_single,
        nms=nms,
        batched_nms=batched_nms,
        sigmoid_focal_loss=sigmoid_focal_loss,
    )
