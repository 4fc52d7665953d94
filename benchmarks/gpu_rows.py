# SPDX-License-Identifier: BSD-3-Clause
"""What `benchmarks.gpu` measures: inputs on the device, who works on them, and the checks."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases, detectors, focal_losses, losses
from benchmarks.device_timing import Times, capture, copies_for, measure
from benchmarks.peers.torchvision_installed import NotInstalledError, installed_torchvision
from ssd_fast import ops
from ssd_fast.models import ssd300_vgg16
from ssd_fast.models.heads import concatenate_maps
from ssd_fast.priors import ssd300
from ssd_fast.testing import (
    Objects,
    assert_close,
    crowded_boxes,
    random_objects,
    seeded,
    trained_outputs,
)

IOU_THRESHOLD = 0.45
OBJECTS = {"1-8": (1, 8), "8-40": (8, 40), "100": (100, 100), "none": (0, 0)}
DECIDED = ("1-8", "none")  # objects of which no matching decision is close
GRAPH = "ssd_fast in a CUDA graph"
COMPILED = "vectorized, compiled"
ALONE = "the network alone"
LOSSES: dict[str, Callable[[cases.Case], losses.LossSystem]] = {
    "ssd_fast": losses.ssd_fast,
    GRAPH: losses.ssd_fast,
    "torchvision": losses.of_torchvision,
    "amdegroot": losses.of_amdegroot,
    "nvidia": losses.of_nvidia,
    "sgrvinod": losses.of_sgrvinod,
    "vectorized": losses.of_vectorized,
    COMPILED: losses.of_vectorized,
}
CRASH_WITHOUT_OBJECTS = {"amdegroot", "nvidia", "sgrvinod", "vectorized", COMPILED}
FOCAL_LOSSES = ("ssd_fast", GRAPH, "torchvision", focal_losses.PLAIN)
DETECTORS = ("ssd_fast", GRAPH, "torchvision")
SUPPRESSORS = ("ssd_fast", "ssd_fast, padded, in a CUDA graph", "torchvision")
NETWORKS = tuple(
    f"{mode}, {head}"
    for mode in ("training", "inference")
    for head in (ALONE, "ssd_fast", "torchvision")
)


def crowds(full: bool) -> tuple[str, ...]:
    """The kinds of boxes for NMS, and boxes of 80 classes."""
    crowded = ("random", "clustered", "sparse") if full else ("random",)
    return (*crowded, "random, 80 classes")


def loss_names(full: bool, batch: int, classes: int, objects: str) -> list[str]:
    """Who computes the loss there. Compiling takes half a minute: in the full table alone."""
    names = list(LOSSES)
    if not (full and classes in (21, 81) and objects == "1-8"):
        names.remove(COMPILED)
    return [name for name in names if objects != "none" or name not in CRASH_WITHOUT_OBJECTS]


@lru_cache(maxsize=1)
def _case(
    batch: int, classes: int, objects: str, flat: bool, device: torch.device
) -> tuple[cases.Case, losses.LossChecks]:
    """A batch on the device and what checks losses on it; the last one is kept."""
    cases.make_case.cache_clear()
    if objects in DECIDED:
        case = cases.make_case(batch, classes, objects=OBJECTS[objects], flat=flat)
    else:
        priors = ssd300("voc")
        truth = random_objects(batch, seeded(1), counts=OBJECTS[objects], classes=classes)
        outputs = trained_outputs(truth, priors, seeded(2), classes=classes)
        case = cases.Case(truth, priors, *outputs)
    truth = Objects(*(x.to(device) for x in case.objects))
    case = cases.Case(truth, *(x.to(device) for x in (case.priors, case.deltas, case.logits)))
    return case, losses.LossChecks(case)


def _require(name: str, operator: str, device: torch.device) -> None:
    """Torchvision, or our kernel: the reference would be timed in its place, for minutes."""
    if name == "torchvision":
        if installed_torchvision() is None:
            raise NotInstalledError("torchvision is not installed, or does not load")
        return
    key = "CUDA" if device.type == "cuda" else "CPU"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"ssd_fast::{operator}", key):
        raise RuntimeError(f"{operator} has no {key} kernel in this build")


def loss_row(
    make_row: Callable[..., Any],
    name: str,
    batch: int,
    classes: int,
    objects: str,
    device: torch.device,
) -> Any:
    """The loss with its matching, forward and backward."""
    rows = batch * 8732
    # Logits are read once, and both gradients written; deltas are read where there are objects.
    moved = 4 * rows * (2 * classes + 4)

    def run() -> Times:
        case, checks = _case(batch, classes, objects, False, device)
        system = LOSSES[name](case)
        if name.endswith("compiled"):
            system = replace(system, losses=torch.compile(system.losses))
        deltas, logits = case.deltas, case.logits
        if system.transposed:
            deltas, logits = (x.transpose(1, 2).contiguous() for x in (deltas, logits))
        inputs = [
            (deltas.clone().requires_grad_(), logits.clone().requires_grad_())
            for _ in range(copies_for(4 * rows * (classes + 4)))
        ]

        def call(d: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(list(system.losses(d, x)), (d, x))

        calls = [lambda d=d, x=x: call(d, x) for d, x in inputs]
        if objects == "1-8":
            checks.gradients(system, calls[0]())
        return _measure(calls, device, in_graphs=name == GRAPH)

    group = f"loss and gradients, B={batch}, C={classes}, {objects} objects"
    return make_row(group, name, run, moved)


def focal_row(
    make_row: Callable[..., Any], name: str, batch: int, classes: int, device: torch.device
) -> Any:
    """The sigmoid focal loss, forward and backward; ours matches in the same call."""
    size = 4 * batch * 8732 * classes

    def run() -> Times:
        if name == "torchvision":
            _require(name, "focal_loss", device)
        case, _ = _case(batch, classes, "1-8", False, device)
        losses_of = focal_losses.class_losses(case)
        loss = losses_of["ssd_fast" if name == GRAPH else name]
        inputs = [case.logits.clone().requires_grad_() for _ in range(copies_for(2 * size))]
        calls = [lambda x=x: torch.autograd.grad(loss(x), x)[0] for x in inputs]
        wide = case.logits.double().requires_grad_()
        (expected,) = torch.autograd.grad(losses_of[focal_losses.PLAIN](wide), wide)
        assert_close(calls[0](), expected, what=name)
        return _measure(calls, device, in_graphs=name == GRAPH)

    return make_row(f"focal loss and gradient, B={batch}, C={classes}", name, run, 2 * size)


def _measure(calls: list[Callable[[], Any]], device: torch.device, *, in_graphs: bool) -> Times:
    """Times the calls, or the first ones as CUDA graphs, which follow a flush of the caches."""
    if not in_graphs:
        return measure(calls, device)
    captured = [capture(c) if device.type == "cuda" else c for c in calls[:8]]
    return measure(captured, device, flush=True)


def detect_row(
    make_row: Callable[..., Any],
    name: str,
    batch: int,
    classes: int,
    scores: str,
    device: torch.device,
) -> Any:
    """From the heads' outputs to detections."""
    read = 4 * batch * 8732 * classes

    def run() -> Times:
        _require(name, "detect", device)
        case, _ = _case(batch, classes, "1-8", scores == "flat", device)
        make = detectors.of_torchvision if name == "torchvision" else detectors.ssd_fast
        (contender,) = detectors.detect_contenders(case, [make], share=0.99)
        system = make(case)
        assert system is not None
        if batch <= 8 and scores == "trained":  # the reference takes minutes beyond
            contender.check(contender.call())
        inputs = [(case.deltas.clone(), case.logits.clone()) for _ in range(copies_for(read))]
        calls = [lambda d=d, x=x: system.detect(d, x) for d, x in inputs]
        return _measure(calls, device, in_graphs=name == GRAPH)

    return make_row(f"detect, B={batch}, C={classes}, {scores} scores", name, run, read)


def nms_row(
    make_row: Callable[..., Any], name: str, count: int, crowd: str, device: torch.device
) -> Any:
    """NMS of one class or of 80."""
    kind, _, by_class = crowd.partition(", ")

    def run() -> Times:
        _require(name, "nms", device)
        boxes, scores = (x.to(device) for x in crowded_boxes(kind, count, seeded(count)))
        idxs = torch.arange(count, device=device) % 80 if by_class else None
        calls = []
        for _ in range(copies_for(20 * count)):
            b, s = boxes.clone(), scores.clone()
            calls.append(_suppress(name, b, s, None if idxs is None else idxs.clone()))
        expected = _expected(boxes, scores, idxs)
        kept = calls[0]()
        found = kept[0][: int(kept[1])] if isinstance(kept, tuple) else kept
        # Torchvision shifts classes apart and so rounds: it may keep others of 80 classes.
        if idxs is None or name != "torchvision":
            assert torch.equal(found.cpu(), expected), f"{name} keeps other boxes"
        return _measure(calls, device, in_graphs="graph" in name)

    return make_row(f"nms, N={count}, {crowd}", name, run)


def _expected(boxes: Tensor, scores: Tensor, idxs: Tensor | None) -> Tensor:
    """What the CPU kernel keeps, which the tests hold to the reference."""
    b, s = boxes.cpu(), scores.cpu()
    if idxs is None:
        return ops.nms(b, s, IOU_THRESHOLD)
    return ops.batched_nms(b, s, idxs.cpu(), IOU_THRESHOLD)


def _suppress(name: str, b: Tensor, s: Tensor, idxs: Tensor | None) -> Callable[[], Any]:
    if "padded" in name:
        return lambda: ops.nms_padded(b, s, IOU_THRESHOLD, idxs)
    source: Any = installed_torchvision() if name == "torchvision" else ops
    if idxs is None:
        return lambda: source.nms(b, s, IOU_THRESHOLD)
    return lambda: source.batched_nms(b, s, idxs, IOU_THRESHOLD)


def network_row(
    make_row: Callable[..., Any], name: str, device: torch.device, *, compiled: bool = False
) -> Any:
    """SSD300-VGG16 in bfloat16 and channels_last, B=32: with and without what follows the heads.

    The network is the same in all, its heads' maps in place; torchvision has them copied to rows.
    """
    mode, _, head = name.partition(", ")
    batch = 32 if device.type == "cuda" else 1

    def run() -> Times:
        if mode == "inference" and head != ALONE:
            _require(head, "detect", device)
        case, _ = _case(batch, 21, "1-8", False, device)
        model = ssd300_vgg16(21).to(device, memory_format=torch.channels_last)
        images = torch.rand(batch, 3, 300, 300, device=device)
        maps = torch.compile(model.head_maps) if compiled else model.head_maps
        parameters = list(model.parameters())
        loss_of = losses.ssd_fast(case) if head == "ssd_fast" else losses.of_torchvision(case)
        # Random weights find everything everywhere: a trained network's outputs take over.
        make = detectors.ssd_fast if head == "ssd_fast" else detectors.of_torchvision
        detector = make(case)

        def heads() -> tuple[Any, Any]:
            with torch.autocast(device.type, torch.bfloat16):
                deltas, logits = maps(images)
            if head != "torchvision":
                return deltas, logits
            return concatenate_maps(deltas, 4).float(), concatenate_maps(logits, 21).float()

        def train() -> Any:
            deltas, logits = heads()
            if head == ALONE:
                total = [x.float().sum() for x in (*deltas, *logits)]
            else:
                total = list(loss_of.losses(deltas, logits))
            return torch.autograd.grad(total, parameters, allow_unused=True)

        @torch.inference_mode()
        def infer() -> Any:
            outputs = heads()
            if head == ALONE:
                return outputs
            assert detector is not None
            return detector.detect(case.deltas, case.logits)

        return measure([train if mode == "training" else infer] * 2, device, many=30)

    kind = "compiled, bfloat16" if compiled else "bfloat16"
    group = f"SSD300-VGG16, {mode}, {kind}, B={batch}, C=21"
    return make_row(group, head, run, images=batch)
