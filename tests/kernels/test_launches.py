# SPDX-License-Identifier: BSD-3-Clause
"""How often the launchers launch, and what the kernels read and write: from recorded launches."""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.kernels.detect import launch_detect
from ssd_fast.kernels.levels import count_blocks, level_views
from ssd_fast.suppression import NMS
from ssd_fast.testing_kernels import (
    Launch,
    detect,
    focal_step,
    heads_and_targets,
    kernel_names,
    launchers,
    recorded_launches,
    training_step,
)

P = 8732
# Constants of the kernels that choose between forms of them.
FORMS = {
    "INNER": (0, 1),
    "SIGMOID": (False, True),
    "GAUSSIAN": (False, True),
    "DISTANCE": (False, True),
    "BOX_LOSS": (0, 3),
    "NORMALIZER": (0, 1),
}


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    """What is launched from here on, instead of running it."""
    with recorded_launches() as launches:
        yield launches


@pytest.mark.parametrize(("assign", "expected"), [(0, 6), (1, 7), (2, 5)])
def test_training_step_launches(launches, assign, expected) -> None:
    """Forward and backward: at most six launches, one more for bipartite claims."""
    inputs = heads_and_targets()
    for step in (training_step, focal_step):
        with _count_fills() as fills:
            step(inputs, assign)
        assert len(launches) == expected
        assert fills == []
        launches.clear()


def test_given_matches_save_a_launch(launches) -> None:
    """One kernel looks at them in the place of two."""
    training_step(heads_and_targets(), given=torch.zeros(2, P, dtype=torch.int32))
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
    training_step(heads_and_targets(C=C, B=B))
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
    inputs = heads_and_targets(B=B, layout=layout)
    bounds = torch.zeros(B, 4) if clip else None
    with _count_fills() as fills:
        detect(inputs, bounds, nms)
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
    detect(heads_and_targets(), scores="sigmoid")
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
    deltas, logits = (torch.empty(x.shape, device="meta") for x in (deltas, logits))
    levels, inner = level_views([deltas], [logits])
    assert inner == 0
    assert levels[0].logit_image == 8732 * 1204
    assert 300 * count_blocks(levels, 32) < 2**31
    logits = torch.empty(1, 2**21, 1204, device="meta")
    with pytest.raises(ValueError, match=r"logits: .* fewer than 2\*\*31 .* \(1, 2097152, 1204\)"):
        level_views([logits[..., :4]], [logits])


def test_an_image_that_cannot_be_counted_is_refused() -> None:
    """Candidates are counted in 32 bits; the CPU takes more."""
    heads = [[torch.empty(1, device="meta").expand(1, 2**20, k)] for k in (4, 2**11)]
    priors = torch.empty(2**20, 4, device="meta")
    with pytest.raises(ValueError, match=r"logits: .* fewer than 2\*\*31 .* got 2147483648"):
        launch_detect(*heads, priors, 0.01, 9, 0.5, 9, (0.1, 0.2), 0, None, None, 4.0)


def test_small_kernels_are_all(launches) -> None:
    """tests/cuda/small_kernels.py, which compute-sanitizer runs, launches every Triton kernel."""
    path = Path(__file__).parents[1] / "cuda/small_kernels.py"
    spec = importlib.util.spec_from_file_location("small_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    small_kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_kernels)
    with _as_on_a_gpu():
        small_kernels.train(torch.device("cpu"))
        small_kernels.postprocess(torch.device("cpu"))
    assert {launch.kernel.__name__ for launch in launches} == kernel_names()
    # Both branches where the kernels differ most, and each dtype.
    forms = {key for launch in launches for key in launch.arguments.items() if key[0] in FORMS}
    assert forms >= {(name, value) for name, values in FORMS.items() for value in values}


class _as_on_a_gpu(torch.utils._python_dispatch.TorchDispatchMode):
    """Hands to the launchers, too, what the operators are called with."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        launcher = launchers().get(function._schema.name.removeprefix("ssd_fast::"))
        if launcher is not None:
            launcher(*args, *(x.default_value for x in function._schema.arguments[len(args) :]))
        return function(*args, **(kwargs or {}))


class _count_fills(torch.utils._python_dispatch.TorchDispatchMode):
    """Operators that would launch kernels of their own; memory that is only taken launches none."""

    SILENT = frozenset({"empty", "new_empty", "empty_like", "view"})

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
