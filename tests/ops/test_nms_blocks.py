# SPDX-License-Identifier: BSD-3-Clause
"""The blocks that NMS on a GPU is made of, run on the host: the same functions, thread by thread.

What a GPU adds to them (the launches, the order of threads) is tested by test_nms.py on a GPU.
"""

import ctypes
import math
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssd_fast.ops.nms import batched_nms, batched_nms_reference, nms, nms_reference
from ssd_fast.testing import CROWDS, SCENES, crowded_boxes, seeded

ROOT = Path(__file__).resolve().parents[2]
Suppress = Callable[..., tuple[Tensor, int]]


@pytest.fixture(scope="session")
def suppress(tmp_path_factory: pytest.TempPathFactory) -> Suppress:
    """`suppress(boxes, scores, threshold, idxs=None, tile=0, stride=1)`: kept boxes, launches."""
    library = tmp_path_factory.mktemp("nms_blocks") / "nms_blocks.so"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Werror"]
    source = [str(Path(__file__).with_name("nms_blocks.cpp")), "-I", str(ROOT / "csrc")]
    subprocess.run([*compiler, *flags, *source, "-o", str(library)], check=True)
    blocks = ctypes.CDLL(str(library))
    blocks.suppress.restype = ctypes.c_int64

    def run(boxes, scores, threshold, idxs=None, tile=0, stride=1):
        n = scores.numel()
        keys = torch.full((n,), math.nan)
        kept, removed = (torch.full(((n + 63) // 64,), -1) for _ in range(2))
        words = _pointer(kept), _pointer(removed)
        boxes = boxes.contiguous()
        blocks.prepare_keys(_pointer(boxes), _pointer(scores), _pointer(keys), *words, n)
        keys, order = keys.sort(descending=True, stable=True)
        classes = ranks = None
        if idxs is not None:
            classes, ranks = idxs[order].sort(stable=True)
        keep, count = torch.full((n,), -7), torch.full((), -7)
        launches = blocks.suppress(
            _pointer(boxes),
            _pointer(keys),
            _pointer(order),
            _pointer(ranks),
            _pointer(classes),
            n,
            ctypes.c_double(threshold),
            tile,
            stride,
            *words,
            _pointer(keep),
            _pointer(count),
        )
        assert bool((keep[int(count) :] == -1).all())
        return keep[: int(count)], launches

    return run


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("threshold", [0.0, 1 / 3, 0.45, 1.0, -0.5, -math.inf])
def test_equal_the_reference(suppress, scene, threshold, full_count):
    """Small tiles: classes that end in the middle of one, boxes suppressed from tile to tile."""
    for seed in range(full_count(4, 200)):
        generator = seeded(seed)
        n = (1, 63, 64, 300, 700)[seed % 5]
        boxes = SCENES[scene](n, generator).float()
        scores = torch.randint(-3, 20, (n,), generator=generator).float() * (seed % 3 - 1)
        scores[scores == 17] = math.inf
        idxs = torch.randint(-2, 2 + 40 * (seed % 2), (n,), generator=generator)
        expected = nms_reference(boxes, scores, threshold)
        for tile, stride in ((0, 1), (256, 7), (512, 77)):
            keep, launches = suppress(boxes, scores, threshold, tile=tile, stride=stride)
            assert torch.equal(keep, expected)
            assert launches == 1 + 2 * math.ceil(n / (tile or n))
        expected = batched_nms_reference(boxes, scores, idxs, threshold)
        keep, launches = suppress(boxes, scores, threshold, idxs, stride=2 * seed + 1)
        assert torch.equal(keep, expected)
        assert launches == 2


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("n", [4250, 9000])
def test_long_segments(suppress, crowd, n):
    """Beyond a block's limit: in tiles, alone and among segments of other lengths."""
    boxes, scores = crowded_boxes(crowd, n, seeded(n))
    for tile in (0, 2048):
        keep, _ = suppress(boxes, scores, 0.45, tile=tile, stride=3)
        assert torch.equal(keep, nms(boxes, scores, 0.45))
    for lengths in ((n - 1, 1), (100, 4000, n - 4100), (1, 2049, 2048, n - 4098), (n // 7,) * 6):
        rest = n - sum(lengths)
        sizes = torch.tensor([*lengths, *[1] * rest])
        idxs = torch.arange(len(sizes)).sub(3).repeat_interleave(sizes)
        idxs = idxs[torch.randperm(n, generator=seeded(1))]
        expected = batched_nms(boxes, scores, idxs, 0.45)
        for tile in (0, 2048) if n < 5000 else (0,):
            keep, launches = suppress(boxes, scores, 0.45, idxs, tile=tile, stride=5)
            assert torch.equal(keep, expected)
            assert launches == 1 + 2 * math.ceil(n / (tile or 8192))


@pytest.mark.parametrize("length", [2048, 2049, 4095, 4096, 4097])
def test_every_segment_is_suppressed_by_one_side(suppress, length):
    """Blocks and tiles share segments by where they lie: none is left out, none done twice."""
    for before in (0, 1, 100, 2047, 2048, 2049):
        n = before + length + 2100
        boxes = torch.tensor([0.0, 0, 1, 1]).repeat(n, 1)
        idxs = torch.cat((torch.arange(before), torch.full((length,), 10**6)))
        idxs = torch.cat((idxs, torch.arange(2100) + 2 * 10**6))
        keep, _ = suppress(boxes, torch.arange(n, 0.0, -1.0), 0.5, idxs)
        expected = [*range(before + 1), *range(before + length, n)]
        assert keep.tolist() == expected


def test_a_long_chain(suppress):
    """Each box overlaps the next: every second one is kept, decided one after the other."""
    n = 3000
    left = torch.arange(n) * 0.5
    boxes = torch.stack((left, torch.zeros(n), left + 1, torch.ones(n)), dim=1)
    for idxs in (None, torch.zeros(n, dtype=torch.int64)):
        keep, _ = suppress(boxes, torch.arange(n, 0.0, -1.0), 0.3, idxs)
        assert keep.tolist() == list(range(0, n, 2))


def test_thousands_of_segments_take_two_launches(suppress):
    """80 classes of 50 boxes and one of 96, in any order."""
    boxes, scores = crowded_boxes("random", 4096, seeded(0))
    idxs = torch.arange(4096) % 80 * 2**40 + 2**62
    keep, launches = suppress(boxes, scores, 0.45, idxs)
    assert torch.equal(keep, batched_nms(boxes, scores, idxs, 0.45))
    assert launches == 2
