# SPDX-License-Identifier: BSD-3-Clause
"""Times calls on a device: with CUDA events on a GPU, with a clock elsewhere (to rehearse).

Each call has copies of its inputs, at most 24, and takes them in turn: what it reads has left the
caches since, but where all copies of small inputs fit into them, as those of NMS mostly do. Calls
follow each other without synchronisation, so that the host's part counts where it is longer than
the device's, as in training. A call in a CUDA graph has no host's part; there 96 MiB are written
between two calls, untimed, so that every one finds its inputs out of the caches. Elsewhere that
would give the host a lead, and hide its part.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

SLOW = 0.05
"""Seconds: calls beyond it are timed five times, beyond twenty times that once."""
MANY, FEW = 100, 5
CACHE_BYTES = 96 * 2**20
"""Of inputs in turn: more than the caches of a GPU (50 MB on an H100) or of a CPU's core."""
MAX_COPIES = 24


@dataclass(frozen=True)
class Times:
    """Seconds of one call, and what it took of the device's memory beyond its inputs."""

    median: float
    p20: float
    p80: float
    count: int
    peak_bytes: int | None

    def row(self) -> dict[str, Any]:
        """As it stands in the report."""
        return asdict(self)


def copies_for(inputs: int) -> int:
    """How many copies of `inputs` bytes do not fit into the caches, as far as `MAX_COPIES` go."""
    return max(2, min(MAX_COPIES, CACHE_BYTES // max(inputs, 1) + 1))


def measure(
    calls: Sequence[Callable[[], Any]],
    device: torch.device,
    many: int | None = None,
    *,
    flush: bool = False,
) -> Times:
    """Times the calls in turn, all of which do the same with inputs of their own.

    Args:
        calls: one for each copy of the inputs.
        device: where they run.
        many: how often to time a quick call; `MANY` times if None.
        flush: a GPU's caches before each call: for calls without a host's part.
    """
    many = MANY if many is None else many
    gpu = device.type == "cuda"
    calls[0]()
    peak = _peak(calls[-1], device) if gpu else None
    _synchronize(device)
    start = time.perf_counter()
    calls[0]()
    _synchronize(device)
    once = time.perf_counter() - start
    count = many if once < SLOW else min(many, FEW if once < 20 * SLOW else 1)
    if once < SLOW:
        for call in calls:
            call()
    flushed = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device) if gpu and flush else None
    seconds = _by_events(calls, count, flushed) if gpu else _by_clock(calls, count)
    deciles = statistics.quantiles(seconds, n=5) if count > 1 else seconds * 4
    return Times(statistics.median(seconds), deciles[0], deciles[3], count, peak)


def capture(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph, to replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written each second by a copy too large for the caches."""
    size = 2**30 if device.type == "cuda" else 2**26
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    times = measure([lambda: target.copy_(source)] * 2, device, many=20)
    return 2 * size / times.median


def _by_events(
    calls: Sequence[Callable[[], Any]], count: int, flushed: torch.Tensor | None
) -> list[float]:
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]
    for i, (start, end) in enumerate(events):
        if flushed is not None:
            flushed.zero_()
        start.record()
        calls[i % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def _by_clock(calls: Sequence[Callable[[], Any]], count: int) -> list[float]:
    seconds = []
    for i in range(count):
        start = time.perf_counter()
        calls[i % len(calls)]()
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
