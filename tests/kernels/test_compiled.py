# SPDX-License-Identifier: BSD-3-Clause
"""Every kernel compiles ahead of time, as its launcher launches it, for each architecture.

The launchers run on CPU tensors with launches recorded instead of made: signatures, options and
counts are those of the real code. What the compiled code computes is tested elsewhere.
"""

import itertools
import math
import os
import re
import subprocess
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

import triton

from ssd_fast.kernels.decode import launch_decode, launch_encode
from ssd_fast.kernels.detect import launch_detect
from ssd_fast.kernels.focal_loss import launch_focal_loss
from ssd_fast.kernels.focal_loss_backward import launch_focal_loss_backward
from ssd_fast.kernels.given_matches import launch_given_matches
from ssd_fast.kernels.match import launch_match
from ssd_fast.kernels.mine import launch_mine
from ssd_fast.kernels.multibox_loss import launch_multibox_loss
from ssd_fast.kernels.multibox_loss_backward import launch_multibox_loss_backward
from ssd_fast.ops.detect import SCORES
from ssd_fast.suppression import NMS

ARCHITECTURES = (80, 90, 100)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPE_LABELS = ("float32", "float16", "bfloat16")
# Kernels whose decisions are equal on every device for equal keys: one rounding an operation.
EXACT = {
    "_claim_kernel",
    "_bipartite_kernel",
    "_match_kernel",
    "_given_matches_kernel",
    "_mine_kernel",
    "_decode_kernel",
    "_candidates_kernel",
    "_detect_kernel",
    "_soft_detect_kernel",
}
SSD300 = [(4, 38, 38), (6, 19, 19), (6, 10, 10), (6, 5, 5), (4, 3, 3), (4, 1, 1)]
P = 8732
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """One launch as recorded."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    programs: int


@pytest.fixture
def launches(monkeypatch) -> list[Launch]:
    """What is launched from here on, instead of running it."""
    recorded: list[Launch] = []

    def run(kernel, *arguments, grid, warmup, **options):
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        named |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        recorded.append(Launch(kernel, named, options, math.prod(grid)))

    monkeypatch.setattr(triton.runtime.JITFunction, "run", run)
    return recorded


def _inputs(dtype=torch.float32, C=21, B=2, N=8, layout=torch.channels_last) -> tuple[Any, ...]:
    """Deltas, logits and targets of SSD300's six levels."""
    maps = [
        [torch.zeros(B, a * k, h, w, dtype=dtype).contiguous(memory_format=layout)
         for a, h, w in SSD300]
        for k in (4, C)
    ]  # fmt: skip
    labels, offsets = torch.zeros(N, dtype=torch.int64), torch.zeros(B + 1, dtype=torch.int64)
    return *maps, torch.zeros(P, 4), torch.zeros(N, 4), labels, offsets


def _step(inputs: tuple[Any, ...], assign: int = 0, options: bool = False, given=None) -> None:
    """A training step: match, loss, gradients; with the options that ask most of the kernels."""
    weights = torch.zeros(21) if options else None
    box_loss, smoothing = (3, 0.1) if options else (0, 0.0)
    matching = (0.5, None, False, assign, 0.5, 3.0, 0)
    rest = (box_loss, 1.0, (0.1, 0.1, 0.2, 0.2), smoothing, 0, 0)
    *losses, positives, code = launch_multibox_loss(*inputs, given, weights, *matching, *rest)
    launch_multibox_loss_backward(*losses, *inputs, code, positives, weights, *rest)


def _focal_step(
    inputs: tuple[Any, ...], assign: int = 0, box_loss: int = 0, gamma: float = 2.0
) -> None:
    """A training step of the focal loss: match, loss, gradients."""
    rest = (box_loss, 1.0, (0.1, 0.1, 0.2, 0.2), 0.25, gamma, 0, 0)
    *losses, positives, code = launch_focal_loss(
        *inputs, None, 0.5, None, False, assign, 0.5, *rest
    )
    launch_focal_loss_backward(*losses, *inputs, code, positives, *rest)


def _detect(
    inputs: tuple[Any, ...], clip: Tensor | None = None, nms: str = "hard", scores: str = "softmax"
) -> tuple[Tensor, ...]:
    """Detections with torchvision's defaults."""
    background = -1 if scores == "sigmoid" else 0
    options = (0.01, 400, 0.45, 200, (0.1, 0.2), background, None, clip, 4.0, NMS[nms], 0.5)
    return launch_detect(*inputs[:3], *options, SCORES[scores])


def _all_launches(launches: list[Launch]) -> list[tuple[str, Launch]]:
    """Each kernel once for every dtype that it is compiled for."""
    found = {}

    def keep(label: str) -> None:
        for launch in launches:
            found.setdefault((launch.kernel.__name__, label), launch)
        launches.clear()

    _, _, priors, boxes, labels, offsets = _inputs()
    launch_match(priors, boxes, offsets, 0.5, None, False, 1, labels, 21, 0, 0.5)
    loss = torch.zeros(2, P)
    launch_mine(loss, loss.int(), 3.0, 0)
    launch_given_matches(loss.long(), priors, boxes, labels, offsets, 21, 0, 0.5)
    keep("float32")
    launch_mine(torch.zeros(2, 24564), torch.zeros(2, 24564).int(), 3.0, 0)
    keep("streamed")
    launch_encode(torch.zeros(2, P, 4), torch.zeros(P, 4), (0.1, 0.2))
    for dtype in DTYPES:
        launch_decode(torch.zeros(2, P, 4, dtype=dtype), torch.zeros(P, 4), (0.1, 0.2), 4.0)
        keep(str(dtype).removeprefix("torch."))
        _step(_inputs(dtype))
        _focal_step(_inputs(dtype))
        _detect(_inputs(dtype))
        levels = [launch for launch in launches if "levels" in launch.arguments]
        launches[:] = levels if dtype != torch.float32 else launches
        keep(str(dtype).removeprefix("torch."))
    for nms in ("soft-linear", "soft-gaussian", "diou"):
        _detect(_inputs(), nms=nms)
        launches[:] = launches[1:]  # the candidates are those of "hard"
        keep(nms)
    _detect(_inputs(C=80), scores="sigmoid")
    keep("sigmoid")
    _step(_inputs(layout=torch.contiguous_format, C=81))
    _detect(_inputs(layout=torch.contiguous_format, C=81), torch.zeros(2, 4))
    launches[:] = [launch for launch in launches if "levels" in launch.arguments]
    keep("contiguous")
    _step(_inputs(), options=True)
    _focal_step(_inputs(layout=torch.contiguous_format, C=81), box_loss=3, gamma=1.5)
    launches[:] = [x for x in launches if {"class_weights_ptr", "POWER"} & set(x.arguments)]
    keep("options")
    return [(label, launch) for (_, label), launch in found.items()]


def test_every_kernel_compiles_without_spills(launches) -> None:
    """No spills, at most 99 KiB of shared memory; prints what each needs."""
    warnings.simplefilter("ignore")
    jobs = [
        (architecture, label, launch)
        for label, launch in _all_launches(launches)
        for architecture in ARCHITECTURES
        if architecture == 90 or label in DTYPE_LABELS
    ]
    assert {launch.kernel.__name__ for _, _, launch in jobs} == _kernels()
    started = time.perf_counter()
    with ProcessPoolExecutor(
        min(2, os.cpu_count() or 1), initializer=os.nice, initargs=(5,)
    ) as pool:
        reports = list(pool.map(_compile_job, [_as_job(*job) for job in jobs]))
    print(f"\n{len(jobs)} compiled in {time.perf_counter() - started:.0f} s")
    too_much = []
    print(f"{'kernel':22}{'':12}{'sm':>4}{'registers':>11}{'spills':>8}{'shared':>8}")
    for (architecture, label, launch), (report, ptx) in zip(jobs, reports, strict=True):
        name = launch.kernel.__name__
        registers, stack, shared, local = report
        print(f"{name:22}{label:12}{architecture:4}{registers:11}{stack + local:8}{shared:8}")
        if stack + local > 0 or shared > 99 * 1024:
            too_much.append(f"{name} {label} on sm_{architecture}")
        if name in EXACT:
            inexact = re.findall(r"\b(fma\.\S+|div\.full\S*|\S+\.approx\S*|\S+\.ftz\S*f32)", ptx)
            assert not inexact, f"{name} on sm_{architecture}: {inexact}"
    assert not too_much


@pytest.mark.parametrize(("assign", "expected"), [(0, 6), (1, 7), (2, 5)])
def test_training_step_launches(launches, assign, expected) -> None:
    """Forward and backward: at most six launches, one more for bipartite claims."""
    inputs = _inputs()
    for step in (_step, _focal_step):
        with _count_fills() as fills:
            step(inputs, assign)
        assert len(launches) == expected
        assert fills == []
        launches.clear()


def test_given_matches_save_a_launch(launches) -> None:
    """One kernel looks at them in the place of two."""
    _step(_inputs(), given=torch.zeros(2, P, dtype=torch.int32))
    assert [launch.kernel.__name__ for launch in launches] == [
        "_given_matches_kernel",
        "_rows_kernel",
        "_select_kernel",
        "_sum_kernel",
        "_backward_kernel",
    ]


@pytest.mark.parametrize("C", [21, 81])
def test_training_step_bytes(launches, C) -> None:
    """What the kernels are given is the inputs, the gradients, and 12 bytes a prior at most."""
    B = 4
    _step(_inputs(C=C, B=B))
    tensors = {
        tensor.data_ptr(): tensor
        for launch in launches
        for tensor in _tensors(launch.arguments.values())
    }
    sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in tensors.items()}
    heads = 4 * B * P * (C + 4)
    targets = 16 * P + 8 * (16 + 8) + 8 * (B + 1)
    assert sum(sizes.values()) <= 2 * heads + targets + 12 * B * P
    passes = [
        sum(
            tensor.numel() * tensor.element_size() for tensor in _tensors(launch.arguments.values())
        )
        for launch in launches
    ]
    print(f"C={C}: {sum(passes) / heads:.2f} times the heads' outputs")
    # The forward names deltas and logits, the backward those and the gradients.
    assert sum(passes) <= 3.1 * heads + 30 * B * P + 8 * targets


@pytest.mark.parametrize("B", [1, 32])
@pytest.mark.parametrize(
    ("layout", "clip"), [(torch.channels_last, False), (torch.contiguous_format, True)]
)
@pytest.mark.parametrize("nms", NMS)
def test_detect_launches(launches, B, layout, clip, nms) -> None:
    """Two kernels and one clearing, at any batch size: at most six launches."""
    inputs = _inputs(B=B, layout=layout)
    bounds = torch.zeros(B, 4) if clip else None
    with _count_fills() as fills:
        _detect(inputs, bounds, nms)
    assert [launch.kernel.__name__ for launch in launches] == [
        "_candidates_kernel",
        "_soft_detect_kernel" if nms.startswith("soft") else "_detect_kernel",
    ]
    assert fills == ["new_zeros"]
    assert launches[1].programs == B


@pytest.mark.parametrize(
    ("C", "priors", "top_k", "dtype"),
    [
        (81, 8732, 400, torch.float32),
        (21, 8732, 400, torch.bfloat16),
        (2, 1, 1, torch.float32),
        (2, 7, 1, torch.float16),
        (1204, 3, 1, torch.float32),
        (2, 10**6, 400, torch.float16),
    ],
)
def test_detect_bytes(launches, C, priors, top_k, dtype) -> None:
    """Scratch is at most 16 bytes x B (P + C top_k); the logits are the only thing read in full."""
    B, K = 2, 200
    deltas, logits = (torch.empty(B, priors, k, dtype=dtype) for k in (4, C))
    results = launch_detect(
        [deltas], [logits], torch.empty(priors, 4),
        0.01, top_k, 0.45, K, (0.1, 0.2), 0, None, None, 4.0,
    )  # fmt: skip
    tensors = {
        tensor.data_ptr(): tensor
        for launch in launches
        for tensor in _tensors(launch.arguments.values())
    }
    inputs = deltas.nbytes + logits.nbytes + 16 * priors
    scratch = sum(x.nbytes for x in tensors.values()) - inputs - sum(x.nbytes for x in results)
    assert 0 < scratch <= 16 * B * (priors + C * top_k)
    first = sum(x.nbytes for x in _tensors(launches[0].arguments.values())) - deltas.nbytes
    print(f"C={C}, P={priors}: {first / logits.nbytes:.2f} times the logits, scratch {scratch}")
    # A row's sum and best score, and the lists, beside the logits.
    lists = 8 * B * launches[0].arguments["CAPACITY"] + 4 * B
    assert first == logits.nbytes + 8 * B * priors + lists


def test_detect_of_sigmoids_keeps_no_sums(launches) -> None:
    """The same launches, and 4 bytes a prior less: a sigmoid needs no sum of its row."""
    _detect(_inputs(), scores="sigmoid")
    assert [launch.kernel.__name__ for launch in launches] == [
        "_candidates_kernel",
        "_detect_kernel",
    ]
    assert all(launch.arguments["total_ptr"].nbytes == 0 for launch in launches)


def test_large_offsets_are_64_bit(launches) -> None:
    """A batch beyond 2^31 logits: strides over images are 64-bit arguments, and few programs."""
    deltas = torch.empty(1, device="meta").expand(300, 8732, 4)
    logits = torch.empty(1, device="meta").expand(300, 8732, 1204)
    assert logits.numel() > 2**31
    from ssd_fast.kernels.levels import count_blocks, level_views

    deltas, logits = (torch.empty(x.shape, device="meta") for x in (deltas, logits))
    levels, inner = level_views([deltas], [logits])
    assert inner == 0
    assert levels[0].logit_image == 8732 * 1204
    assert 300 * count_blocks(levels, 32) < 2**31


class _count_fills(torch.utils._python_dispatch.TorchDispatchMode):
    """Operators that would launch kernels of their own; memory that is only taken launches none."""

    SILENT = {"empty", "new_empty", "empty_like", "view"}  # noqa: RUF012

    def __enter__(self):
        super().__enter__()
        self.calls: list[str] = []
        return self.calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in self.SILENT:
            self.calls.append(name)
        return function(*args, **(kwargs or {}))


def _tensors(values) -> itertools.chain:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _kernels() -> set[str]:
    """All kernels of the package, by the name that kernels have."""
    text = "".join(path.read_text() for path in Path(triton_kernels()).glob("*.py"))
    return set(re.findall(r"^@triton\.jit\ndef (_\w+_kernel)\(", text, re.MULTILINE))


def triton_kernels() -> str:
    import ssd_fast.kernels

    return ssd_fast.kernels.__path__[0]


def _as_job(architecture: int, label: str, launch: Launch) -> tuple[Any, ...]:
    """What a process needs to compile: names and plain values, no tensors."""
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    signature = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[(i,)] = value
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = _signature(value, (i,), constants, attributes)
    module, name = launch.kernel.fn.__module__, launch.kernel.__name__
    return module, name, signature, constants, attributes, architecture, launch.options


def _signature(value: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    """Triton's type of an argument, specialised as a launch would: 1 and None are constants."""
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, tuple):
        items = [_signature(v, (*path, i), constants, attributes) for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
        attributes[path] = [["tt.divisibility", 16]]
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    assert isinstance(value, float)
    return "fp32"


def _compile_job(job: tuple[Any, ...]) -> tuple[tuple[int, ...], str]:
    """Registers, stack, shared and local memory of the cubin; the PTX."""
    import importlib
    import tempfile

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    warnings.simplefilter("ignore")
    module, name, signature, constants, attributes, architecture, options = job
    kernel = getattr(importlib.import_module(module), name)
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=dict(options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert usage is not None, text
    registers, stack, static, local = map(int, usage.groups())
    shared = max(static, compiled.metadata.shared)
    return (registers, stack, shared, local), compiled.asm["ptx"]
