# SPDX-License-Identifier: BSD-3-Clause
"""CUDA graphs, torch.compile, synchronisation, launches: what only a GPU can show."""

import warnings

import pytest
import torch

from ssd_fast import ops
from ssd_fast.testing import crowded_boxes, seeded

CAPACITY = 64


def step(deltas, logits, *targets, loss=ops.multibox_loss):
    """Losses and gradients."""
    box, classes, positives = loss(deltas, logits, *targets)
    gradients = torch.autograd.grad(box + classes, (deltas, logits))
    return box, classes, positives, *gradients


def padded(batch, device):
    """The batch on the device, with room for CAPACITY objects."""
    deltas, logits, priors, boxes, labels, offsets = batch
    boxes = torch.cat((boxes, torch.full((CAPACITY - len(boxes), 4), torch.nan)))
    labels = torch.cat((labels, torch.full((CAPACITY - len(labels),), -9)))
    heads = [x.to(device).requires_grad_() for x in (deltas, logits)]
    return *heads, *(x.to(device) for x in (priors, boxes, labels, offsets))


def capture(call):
    """The call as a CUDA graph, and where its results will be."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def refill(inputs, others):
    with torch.no_grad():
        for x, y in zip(inputs, others, strict=True):
            x.copy_(y)


def all_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [ops.multibox_loss, ops.focal_loss])
def test_a_training_step_replays_with_new_ground_truth(gpu, make_batch, loss):
    inputs = padded(make_batch(4, 21), gpu)
    graph, results = capture(lambda: step(*inputs, loss=loss))
    for seed, counts in ((10, (1, 8)), (20, (0, 2)), (30, (0, 0))):
        others = padded(make_batch(4, 21, seed, counts), gpu)
        expected = step(*others, loss=loss)
        refill(inputs, others)
        graph.replay()
        all_equal(results, expected)


def test_nms_replays_with_new_boxes(gpu, needs_kernel):
    needs_kernel("nms_padded")
    for n in (900, 9000):
        idxs = torch.arange(n, device=gpu) % 7
        inputs = [x.to(gpu) for x in crowded_boxes("random", n, seeded(0))]
        for classes in (None, idxs):
            graph, results = capture(lambda i=inputs, c=classes: ops.nms_padded(*i, 0.45, c))
            for crowd in ("clustered", "sparse"):
                others = [x.to(gpu) for x in crowded_boxes(crowd, n, seeded(1))]
                expected = ops.nms_padded(*others, 0.45, classes)
                refill(inputs, others)
                graph.replay()
                all_equal(results, expected)


def test_detect_replays_with_new_outputs(gpu, make_batch, needs_kernel):
    needs_kernel("detect")
    inputs = [x.to(gpu) for x in make_batch(4, 21)[:3]]
    graph, results = capture(lambda: ops.detect(*inputs))
    others = [x.to(gpu) for x in make_batch(4, 21, 10)[:3]]
    expected = ops.detect(*others)
    refill(inputs, others)
    graph.replay()
    all_equal(results, expected)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_forward_and_backward(gpu, make_batch, dynamic):
    def loss(deltas, logits, *targets):
        box, classes, _ = ops.multibox_loss(deltas * 1.5, logits, *targets)
        return box + 2 * classes

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic)
    for batch in (4, 6, 3) if dynamic else (4,):
        inputs = padded(make_batch(batch, 21), gpu)
        expected, found = loss(*inputs), compiled(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        for a, b in zip(
            torch.autograd.grad(found, inputs[:2]),
            torch.autograd.grad(expected, inputs[:2]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_postprocessing_compiles(gpu, make_batch, needs_kernel, dynamic):
    needs_kernel("detect")
    compiled = torch.compile(
        lambda d, x, p: ops.detect(d, x, p)[:3], fullgraph=True, dynamic=dynamic
    )
    for batch in (4, 6) if dynamic else (4,):
        inputs = [x.to(gpu) for x in make_batch(batch, 21)[:3]]
        all_equal(compiled(*inputs), ops.detect(*inputs)[:3])


@pytest.fixture
def without_synchronisation(gpu):
    """`with without_synchronisation:` raises where torch would wait for the GPU."""

    class Refuse:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return Refuse()


def test_nothing_synchronises(gpu, make_batch, without_synchronisation):
    inputs = padded(make_batch(4, 21), gpu)
    priors, boxes, offsets = inputs[2], inputs[3], inputs[5]
    loss = torch.rand(4, 8732, device=gpu)
    step(*inputs)  # compiles, which may synchronise
    step(*inputs, loss=ops.focal_loss)
    matched = ops.match(priors, boxes, offsets)
    ops.mine(loss, matched)
    ops.decode(inputs[0], priors, (0.1, 0.2))
    with without_synchronisation:
        step(*inputs)
        step(*inputs, loss=ops.focal_loss)
        ops.mine(loss, ops.match(priors, boxes, offsets))
        ops.decode(inputs[0], priors, (0.1, 0.2))


def test_postprocessing_does_not_synchronise(
    gpu, make_batch, needs_kernel, without_synchronisation
):
    needs_kernel("nms_padded")
    needs_kernel("detect")
    inputs = [x.to(gpu) for x in make_batch(4, 21)[:3]]
    boxes, scores = (x.to(gpu) for x in crowded_boxes("random", 9000, seeded(0)))
    idxs = torch.arange(9000, device=gpu) % 3
    ops.detect(*inputs)
    ops.nms_padded(boxes, scores, 0.5, idxs)
    with without_synchronisation:
        ops.nms_padded(boxes, scores, 0.5)
        ops.nms_padded(boxes, scores, 0.5, idxs)
        ops.detect(*inputs)


def test_detections_as_a_list_wait_once(gpu, make_batch, needs_kernel):
    """For the counts, not for the sizes of the images."""
    needs_kernel("detect")
    detections = ops.detect(*(x.to(gpu) for x in make_batch(4, 21)[:3]))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            detections.to_list([(300, 400)] * 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing CUDA operation" in str(w.message)]
    assert len(waits) == 1


@pytest.mark.parametrize("what", ["multibox_loss", "focal_loss", "detect", "nms_padded"])
def test_launches(gpu, make_batch, needs_kernel, what):
    """Kernels and memsets, counted by the profiler: six at most; of NMS, those besides sorting."""
    needs_kernel(what)
    inputs = padded(make_batch(4, 21), gpu)
    boxes, scores = (x.to(gpu) for x in crowded_boxes("random", 4000, seeded(0)))
    calls = {
        "multibox_loss": lambda: step(*inputs),
        "focal_loss": lambda: step(*inputs, loss=ops.focal_loss),
        "detect": lambda: ops.detect(*inputs[:3]),
        "nms_padded": lambda: ops.nms_padded(boxes, scores, 0.5),
    }
    torch.use_deterministic_algorithms(False)  # which fills new memory, a launch each time
    for _ in range(3):
        calls[what]()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        calls[what]()
        torch.cuda.synchronize()
    launches = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    if not launches:
        pytest.skip("the profiler sees no launches on this machine")
    print(*launches, sep="\n")
    if what == "nms_padded":
        ours = ("prepare_keys", "suppress_segments", "compare_tile", "sweep_tile", "collect_kept")
        launches = [name for name in launches if any(kernel in name for kernel in ours)]
        assert len(launches) == 4
    # box + class loss is one launch more, and so is the ones that its gradient begins with.
    assert len(launches) <= 6 + (2 if what.endswith("loss") else 0)


def test_repeats_are_equal(gpu, make_batch, needs_kernel):
    """Bit for bit."""
    inputs = padded(make_batch(8, 21), gpu)
    all_equal(step(*inputs), step(*inputs))
    boxes, scores = (x.to(gpu) for x in crowded_boxes("random", 20_000, seeded(0)))
    first = ops.nms_padded(boxes, scores, 0.5) if needs_kernel("nms") is None else ()
    for _ in range(5):
        all_equal(ops.nms_padded(boxes, scores, 0.5), first)
