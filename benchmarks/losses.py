# SPDX-License-Identifier: BSD-3-Clause
"""Every system's matching and loss on a `Case`, and the check that its result is the reference's.

The reference is `multibox_loss_reference` in float64, with the options that describe the system:
its normalisation, its threshold's edge, its kind of box loss. Mining orders rows by a key of each
system's own making, so rows whose key is within `MINING_BAND` of the boundary may be chosen either
way and are left out of the comparison of gradients.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.harness import Contender
from benchmarks.peers import amdegroot, lufficc, nvidia, sgrvinod, torchvision_ssd, vectorized
from benchmarks.peers.torchvision_installed import installed_torchvision
from ssd_fast import ops
from ssd_fast.ops.multibox_loss import multibox_loss_reference
from ssd_fast.testing import RELATIVE_TOLERANCE, assert_close

MINING_BAND = 1e-3
"""Relative. A log-softmax near 0.005, where the boundary lies, has float32 errors of 2e-4 of it."""


@dataclass(frozen=True)
class LossSystem:
    """A system's training loss.

    Args:
        name: as the tables show it.
        losses: of its deltas and logits; the sum of what it returns is the loss.
        reference: options of `multibox_loss_reference` that describe it.
        box_weight: weight of its box loss relative to the reference's.
        transposed: it takes (B, 4, P) and (B, C, P).
    """

    name: str
    losses: Callable[[Tensor, Tensor], Iterable[Tensor]]
    reference: dict[str, Any] = field(default_factory=dict)
    box_weight: float = 1.0
    transposed: bool = False


def ssd_fast(case: Case) -> LossSystem:
    """Our operator."""
    arguments = (case.priors, *case.objects)
    return LossSystem("ssd_fast", lambda d, x: ops.multibox_loss(d, x, *arguments)[:2])


def of_amdegroot(case: Case) -> LossSystem:
    """Matching per image in Python, global-max key, two sorts."""
    criterion = amdegroot.MultiBoxLoss(case.classes)
    targets, priors = case.amdegroot_targets, case.priors_xywh
    return LossSystem("amdegroot", lambda d, x: criterion((d, x, priors), targets))


def of_torchvision(case: Case) -> LossSystem:
    """The code of torchvision itself where it is installed, else our re-writing of it."""
    targets, anchors = case.torchvision_targets, [case.priors_pixels] * case.batch
    installed = installed_torchvision()
    if installed is None:
        match, compute_loss = torchvision_ssd.match_targets, torchvision_ssd.compute_loss
        name = "torchvision (re-written)"
    else:
        match, compute_loss, name = installed.match, installed.compute_loss, "torchvision"

    def losses(deltas: Tensor, logits: Tensor) -> Iterable[Tensor]:
        head = {"bbox_regression": deltas, "cls_logits": logits}
        matched = match(targets, anchors)
        result: dict[str, Tensor] = compute_loss(targets, head, anchors, matched)
        return result.values()

    return LossSystem(name, losses)


def of_nvidia(case: Case) -> LossSystem:
    """`Encoder.encode` for every image, then `Loss`, in NVIDIA's (B, K, P) layout."""
    encoder, criterion = nvidia.Encoder(case.default_boxes), nvidia.Loss(case.default_boxes)

    def losses(deltas: Tensor, logits: Tensor) -> Iterable[Tensor]:
        encoded = [encoder.encode(b, n) for b, n in zip(case.boxes, case.labels, strict=True)]
        boxes, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
        return [criterion(deltas, logits, boxes.transpose(1, 2).contiguous(), labels)]

    # An image without objects counts in the mean there as here, and `encode` takes none.
    reference = {"normalizer": "image", "strict": True}
    return LossSystem("nvidia", losses, reference, transposed=True)


def of_lufficc(case: Case) -> LossSystem:
    """Its target transform for every image, then its loss on dense targets."""
    transform, criterion = lufficc.SSDTargetTransform(case.priors_xywh), lufficc.MultiBoxLoss()

    def losses(deltas: Tensor, logits: Tensor) -> Iterable[Tensor]:
        encoded = [transform(b, n) for b, n in zip(case.boxes, case.labels, strict=True)]
        locations, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
        result: tuple[Tensor, Tensor] = criterion(logits, deltas, labels, locations)
        return result

    return LossSystem("lufficc", losses)


def of_sgrvinod(case: Case) -> LossSystem:
    """L1, averaged over the four coordinates too."""
    criterion = sgrvinod.MultiBoxLoss(case.priors_xywh)
    return LossSystem(
        "sgrvinod",
        lambda d, x: [criterion(d, x, case.boxes, case.labels)],
        {"beta": 0.0},
        box_weight=0.25,
    )


def of_vectorized(case: Case) -> LossSystem:
    """No system's: the naive loss without a loop, on padded targets."""
    arguments = (case.priors, *case.padded_targets)
    return LossSystem("vectorized", lambda d, x: vectorized.multibox_loss(d, x, *arguments))


def of_compiled(case: Case) -> LossSystem:
    """The same, compiled whole."""
    arguments = (case.priors, *case.padded_targets)
    compiled = torch.compile(vectorized.multibox_loss, fullgraph=True, dynamic=False)
    return LossSystem("torch.compile", lambda d, x: compiled(d, x, *arguments))


SYSTEMS = (
    ssd_fast,
    of_amdegroot,
    of_torchvision,
    of_nvidia,
    of_lufficc,
    of_sgrvinod,
    of_vectorized,
)


def loss_contenders(
    case: Case, systems: Sequence[Callable[[Case], LossSystem]] = SYSTEMS, *, backward: bool
) -> list[Contender]:
    """The systems as contenders: the losses, or the gradients of their sum through autograd."""
    checks = LossChecks(case)
    return [_contender(case, make(case), checks, backward) for make in systems]


def _contender(case: Case, system: LossSystem, checks: "LossChecks", backward: bool) -> Contender:
    deltas, logits = case.deltas, case.logits
    if system.transposed:
        deltas, logits = deltas.transpose(1, 2).contiguous(), logits.transpose(1, 2).contiguous()
    deltas = deltas.clone().requires_grad_(backward)
    logits = logits.clone().requires_grad_(backward)
    if not backward:
        # Peers in half precision mean what autocast makes of cross-entropy: float32 logits.
        wide = deltas.dtype != torch.float32 and system.name != "ssd_fast"
        return Contender(
            system.name,
            (lambda: system.losses(deltas.float(), logits.float()))
            if wide
            else (lambda: system.losses(deltas, logits)),
            lambda losses: checks.loss(system, sum(losses)),
        )
    return Contender(
        system.name,
        lambda: torch.autograd.grad(list(system.losses(deltas, logits)), (deltas, logits)),
        lambda gradients: checks.gradients(system, gradients),
    )


class LossChecks:
    """Compares systems with the float64 reference on one case.

    Args:
        case: the batch.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._known: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def loss(self, system: LossSystem, actual: Tensor) -> None:
        """Fails unless the summed loss is the reference's."""
        assert_close(actual, self._reference(system)[0], what="loss")

    def gradients(self, system: LossSystem, actual: tuple[Tensor, Tensor]) -> None:
        """Fails unless both gradients are the reference's, but for rows mined at the boundary."""
        _, expected_deltas, expected_logits = self._reference(system)
        actual_deltas, actual_logits = (
            gradient.transpose(1, 2) if system.transposed else gradient for gradient in actual
        )
        # torchvision rounds boxes to float32 in pixels: of 32 images the worst is 1.4e-5 off, and
        # in float64 1e-15. Everybody else keeps the tolerance.
        rounds = system.name.startswith("torchvision")
        tolerance = (3 if rounds else 1) * RELATIVE_TOLERANCE
        assert_close(
            actual_deltas, expected_deltas, tolerance=tolerance, what="gradient of the deltas"
        )
        decided = ~self._at_the_boundary(expected_logits)
        assert_close(
            actual_logits[decided], expected_logits[decided], what="gradient of the logits"
        )

    def _reference(self, system: LossSystem) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradients in float64, once for all systems of one description."""
        description = f"{system.box_weight} {system.reference}"
        if description not in self._known:
            case = self.case
            deltas, logits = (x.double().requires_grad_() for x in (case.deltas, case.logits))
            priors, boxes = case.priors.double(), case.objects.boxes.double()
            box, cls, _ = multibox_loss_reference(
                deltas, logits, priors, boxes, *case.objects[1:], **system.reference
            )
            loss = system.box_weight * box + cls
            of_deltas, of_logits = torch.autograd.grad(loss, (deltas, logits))
            self._known[description] = (loss.detach(), of_deltas, of_logits)
        return self._known[description]

    def _at_the_boundary(self, gradient: Tensor) -> Tensor:
        """Rows (B, P) whose key is so close to the last mined one's that another key may differ."""
        logits = self.case.logits.double()
        key = (logits[..., 1:] - logits[..., :1]).exp().sum(2)
        mined = (gradient[..., 0] < 0) & (gradient != 0).any(2)  # only background pulls x_0 up
        last = key.masked_fill(~mined, torch.inf).amin(1, keepdim=True)
        band = (key / last - 1).abs() <= MINING_BAND
        limit = max(3 * band.size(0), int(mined.sum()) // 100)
        assert int(band.sum()) <= limit, "too many keys are close to the boundary to compare"
        return band
