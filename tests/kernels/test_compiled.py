# SPDX-License-Identifier: BSD-3-Clause
"""Every kernel compiles ahead of time, as its launcher launches it, for each architecture.

What the compiled code computes is tested elsewhere, how often it is launched in test_launches.py.
"""

import contextlib
import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

import triton

from ssd_fast.kernels.decode import launch_decode, launch_encode
from ssd_fast.kernels.given_matches import launch_given_matches
from ssd_fast.kernels.match import launch_match
from ssd_fast.kernels.mine import launch_mine
from ssd_fast.testing_kernels import (
    Launch,
    detect,
    focal_step,
    heads_and_targets,
    kernel_names,
    recorded_launches,
    training_step,
)

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
P = 8732
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


def _all_launches() -> list[tuple[str, Launch]]:
    """Each kernel once for every dtype, and for every form, that it is compiled for."""
    found = {}

    @contextlib.contextmanager
    def kept(label: str, which: Callable[[Launch], object] = lambda launch: True) -> Iterator[None]:
        with recorded_launches() as launches:
            yield
        for launch in filter(which, launches):
            found.setdefault((launch.kernel.__name__, label), launch)

    def reads_levels(launch: Launch) -> bool:
        return "levels" in launch.arguments

    _, _, priors, boxes, labels, offsets = heads_and_targets()
    with kept("float32"):
        launch_match(priors, boxes, offsets, 0.5, None, False, 1, labels, 21, 0, 0.5)
        loss = torch.zeros(2, P)
        launch_mine(loss, loss.int(), 3.0, 0)
        launch_given_matches(loss.long(), priors, boxes, labels, offsets, 21, 0, 0.5)
        launch_encode(torch.zeros(2, P, 4), torch.zeros(P, 4), (0.1, 0.2))
    with kept("streamed"):
        launch_mine(torch.zeros(2, 24564), torch.zeros(2, 24564).int(), 3.0, 0)
    for dtype in DTYPES:
        label = str(dtype).removeprefix("torch.")
        with kept(label):
            launch_decode(torch.zeros(2, P, 4, dtype=dtype), torch.zeros(P, 4), (0.1, 0.2), 4.0)
        with kept(label, (lambda launch: True) if dtype == torch.float32 else reads_levels):
            training_step(heads_and_targets(dtype))
            focal_step(heads_and_targets(dtype))
            detect(heads_and_targets(dtype))
    for nms in ("soft-linear", "soft-gaussian", "diou"):
        with kept(nms, lambda launch: launch.kernel.__name__ != "_candidates_kernel"):
            detect(heads_and_targets(), nms=nms)  # the candidates are those of "hard"
    for nms in ("hard", "soft-linear"):
        with kept("sigmoid"):
            detect(heads_and_targets(C=80), scores="sigmoid", nms=nms)
    with kept("one prior", lambda launch: launch.kernel.__name__ == "_bipartite_kernel"):
        launch_match(priors[:1], boxes, offsets, 0.5, None, False, 1)
    with kept("one class"):
        detect(heads_and_targets(C=1), scores="sigmoid")
    with kept("contiguous", reads_levels):
        training_step(heads_and_targets(layout=torch.contiguous_format, C=81))
        detect(heads_and_targets(layout=torch.contiguous_format, C=81), torch.zeros(2, 4))
    with kept("options", lambda launch: {"class_weights_ptr", "POWER"} & set(launch.arguments)):
        training_step(heads_and_targets(), options=True)
        maps = heads_and_targets(layout=torch.contiguous_format, C=81)
        focal_step(maps, box_loss=3, gamma=1.5)
    return [(label, launch) for (_, label), launch in found.items()]


def test_every_kernel_compiles_without_spills() -> None:
    """No spills, at most 99 KiB of shared memory; prints what each needs."""
    warnings.simplefilter("ignore")
    jobs = [
        (architecture, label, launch)
        for label, launch in _all_launches()
        for architecture in ARCHITECTURES
        if architecture == 90 or label in DTYPE_LABELS
    ]
    assert {launch.kernel.__name__ for _, _, launch in jobs} == kernel_names()
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
        # Each warp loads on its own: where others write meanwhile, warps would take other branches.
        assert "ld.volatile" not in ptx, f"{name} {label}"
        if name in EXACT:
            inexact = re.findall(r"\b(fma\.\S+|div\.full\S*|\S+\.approx\S*|\S+\.ftz\S*f32)", ptx)
            assert not inexact, f"{name} on sm_{architecture}: {inexact}"
    assert not too_much


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
        elif parameter.do_not_specialize:
            signature[parameter.name] = "i32"
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
