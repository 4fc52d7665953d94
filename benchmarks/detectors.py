# SPDX-License-Identifier: BSD-3-Clause
"""Every system's way from head outputs to detections, and the check against the reference.

The reference is `detect_reference` in float64 with the settings each system is published with: its
score threshold, its candidates a class, its results an image. Scores of a flat network lie so close
that float32 orders some of them otherwise, and then NMS keeps another box of a pair: there, one row
in a hundred may differ, and none elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import IMAGE_SIZE, Case
from benchmarks.harness import Contender
from benchmarks.peers import amdegroot, lufficc, nvidia, sgrvinod
from benchmarks.peers.torchvision_installed import installed_torchvision
from ssd_fast import ops
from ssd_fast.ops.detect import detect_reference

UNIT = (0.0, 0.0, 1.0, 1.0)
TOLERANCE = 1e-4
"""Of a score or a corner in [0, 1]: 0.03 pixels."""


@dataclass(frozen=True)
class DetectSystem:
    """A system's postprocessing.

    Args:
        name: as the tables show it.
        detect: of its deltas and logits, whatever it returns.
        rows: of that, one (n, 6) tensor an image: label, score, corners in [0, 1].
        reference: options of `detect_reference` that describe it.
        transposed: it takes (B, 4, P) and (B, C, P).
    """

    name: str
    detect: Callable[[Tensor, Tensor], Any]
    rows: Callable[[Any], list[Tensor]]
    reference: dict[str, Any] = field(default_factory=dict)
    transposed: bool = False


def ssd_fast(case: Case) -> DetectSystem:
    """Our operator, with all that torchvision does."""

    def detect(deltas: Tensor, logits: Tensor) -> Any:
        return ops.detect(deltas, logits, case.priors, clip=UNIT)

    return DetectSystem("ssd_fast", detect, rows_of_detections, {"clip": UNIT})


def of_torchvision(case: Case) -> DetectSystem | None:
    """The code of torchvision itself; None where it is not installed: its NMS is compiled."""
    installed = installed_torchvision()
    if installed is None:
        return None
    anchors = [case.priors_pixels] * case.batch
    shapes = [(IMAGE_SIZE, IMAGE_SIZE)] * case.batch

    def detect(deltas: Tensor, logits: Tensor) -> list[dict[str, Tensor]]:
        head = {"bbox_regression": deltas, "cls_logits": logits}
        result: list[dict[str, Tensor]] = installed.postprocess(head, anchors, shapes)
        return result

    return DetectSystem("torchvision", detect, _rows_of_torchvision, {"clip": UNIT})


SIGMOID = {
    "scores": "sigmoid",
    "background_index": None,
    "score_threshold": 0.05,
    "top_k": 8732,
    "iou_threshold": 0.5,
    "max_detections": 300,
    "clip": UNIT,
}
"""What torchvision's RetinaNet does as long as no more than 1000 scores exceed its threshold."""


def ssd_fast_sigmoids(case: Case) -> DetectSystem:
    """Our operator with the settings of torchvision's RetinaNet."""

    def detect(deltas: Tensor, logits: Tensor) -> Any:
        return ops.detect(deltas, logits, case.priors, **SIGMOID)

    return DetectSystem("ssd_fast", detect, rows_of_detections, SIGMOID)


def of_retinanet(case: Case) -> DetectSystem | None:
    """The code of torchvision's RetinaNet, all anchors one level; None where it is not there."""
    installed = installed_torchvision()
    if installed is None:
        return None
    anchors = [[case.priors_pixels]] * case.batch
    shapes = [(IMAGE_SIZE, IMAGE_SIZE)] * case.batch

    def detect(deltas: Tensor, logits: Tensor) -> list[dict[str, Tensor]]:
        head = {"bbox_regression": [deltas], "cls_logits": [logits]}
        result: list[dict[str, Tensor]] = installed.postprocess_sigmoids(head, anchors, shapes)
        return result

    return DetectSystem("torchvision", detect, _rows_of_torchvision, SIGMOID)


def _rows_of_torchvision(images: list[dict[str, Tensor]]) -> list[Tensor]:
    return [row_tensor(i["boxes"] / IMAGE_SIZE, i["labels"], i["scores"]) for i in images]


def of_amdegroot(case: Case) -> DetectSystem:
    """The softmax of its network's last layer, then `Detect`."""
    detector = amdegroot.Detect(case.classes)

    def detect(deltas: Tensor, logits: Tensor) -> Tensor:
        return detector(deltas, logits.softmax(2), case.priors_xywh)

    def rows(padded: Tensor) -> list[Tensor]:
        label = torch.arange(padded.size(1), device=padded.device).repeat_interleave(padded.size(2))
        images = [torch.cat([label[:, None], image.flatten(0, 1)], 1) for image in padded]
        return [image[image[:, 1] > 0] for image in images]

    limit = 200 * (case.classes - 1)
    return DetectSystem("amdegroot", detect, rows, {"top_k": 200, "max_detections": limit})


def of_nvidia(case: Case) -> DetectSystem:
    """`Encoder.decode_batch`; its score threshold of 0.05 leaves it less to do."""
    encoder = nvidia.Encoder(case.default_boxes)
    reference = {"score_threshold": 0.05, "top_k": 200, "max_detections": 200}
    return DetectSystem(
        "nvidia",
        encoder.decode_batch,
        lambda images: [row_tensor(*image) for image in images],
        reference,
        transposed=True,
    )


def of_lufficc(case: Case) -> DetectSystem | None:
    """Decoding, then `PostProcessor` over torchvision's NMS; None where that is not installed."""
    installed = installed_torchvision()
    if installed is None:
        return None
    process = lufficc.PostProcessor(installed.nms)

    def detect(deltas: Tensor, logits: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        boxes = lufficc.convert_locations_to_boxes(deltas, case.priors_xywh, 0.1, 0.2)
        return process(logits.softmax(2), lufficc.center_form_to_corner_form(boxes))

    def rows(images: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        return [row_tensor(boxes / IMAGE_SIZE, *rest) for boxes, *rest in images]

    every = case.priors.size(0)
    return DetectSystem("lufficc", detect, rows, {"top_k": every, "max_detections": 100})


def of_sgrvinod(case: Case) -> DetectSystem:
    """Its full IoU matrix makes it a matter of minutes on flat scores."""

    def detect(deltas: Tensor, logits: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return sgrvinod.detect_objects(deltas, logits, case.priors_xywh)

    def rows(batch: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> list[Tensor]:
        return [row_tensor(*image) for image in zip(*batch, strict=True)]

    every = case.priors.size(0)
    return DetectSystem("sgrvinod", detect, rows, {"top_k": every, "max_detections": 200})


TRAINED = (ssd_fast, of_amdegroot, of_torchvision, of_nvidia, of_lufficc, of_sgrvinod)
FLAT = (ssd_fast, of_amdegroot, of_torchvision)
SIGMOIDS = (ssd_fast_sigmoids, of_retinanet)


def detect_contenders(
    case: Case, systems: Sequence[Callable[[Case], DetectSystem | None]], *, share: float = 1.0
) -> list[Contender]:
    """The systems that can run here as contenders.

    Args:
        case: the batch.
        systems: who competes.
        share: of the reference's rows that a result must have.
    """
    made = [make(case) for make in systems]
    return [_contender(case, system, share) for system in made if system is not None]


def _contender(case: Case, system: DetectSystem, share: float) -> Contender:
    deltas, logits = case.deltas, case.logits
    if system.transposed:
        deltas, logits = deltas.transpose(1, 2).contiguous(), logits.transpose(1, 2).contiguous()

    def check(result: Any) -> None:
        expected = rows_of_detections(
            detect_reference(
                case.deltas.double(), case.logits.double(), case.priors.double(), **system.reference
            )
        )
        for image, (actual, truth) in enumerate(zip(system.rows(result), expected, strict=True)):
            found = min(found_share(actual, truth), found_share(truth, actual))
            assert found >= share, (
                f"image {image}: {len(actual)} detections for {len(truth)}, {found:.2%} alike"
            )

    return Contender(system.name, lambda: system.detect(deltas, logits), check)


def found_share(rows: Tensor, truth: Tensor) -> float:
    """Fraction of `truth` (n, 6) that is among `rows` (m, 6), label by label."""
    if len(truth) == 0:
        return 1.0
    found = 0
    for label in range(int(truth[:, 0].max()) + 1):
        wanted, have = truth[truth[:, 0] == label], rows[rows[:, 0] == label]
        close = (wanted[:, None] - have[None]).abs() <= TOLERANCE
        found += int(close.all(2).any(1).sum())
    return found / len(truth)


def rows_of_detections(detections: Any) -> list[Tensor]:
    """`Detections` as one (n, 6) tensor an image."""
    boxes, scores, labels, counts = detections
    return [
        row_tensor(boxes[i, :n], labels[i, :n], scores[i, :n])
        for i, n in enumerate(counts.tolist())
    ]


def row_tensor(boxes: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """Boxes (n, 4), labels (n,) and scores (n,) as (n, 6) rows: label, score, corners."""
    return torch.cat([labels[:, None].to(boxes), scores[:, None], boxes], 1)
