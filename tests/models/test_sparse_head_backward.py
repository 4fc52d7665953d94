# SPDX-License-Identifier: BSD-3-Clause
"""SSD(sparse_head_backward=True): the gradients of the dense path, or the dense path itself."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.nn.utils import parametrizations

from ssd_fast import multibox
from ssd_fast.models import SSD, ssd300_vgg16
from ssd_fast.multibox import MultiBoxLoss
from ssd_fast.ops import _sparse_convolution
from ssd_fast.targets import Targets
from ssd_fast.testing import assert_close, random_objects, seeded

CLASSES = 4


def make_model(**options) -> SSD:
    """A slim model, the same at every call."""
    torch.manual_seed(0)
    return ssd300_vgg16(CLASSES, width=0.03, **options)


def make_batch(images=2) -> tuple[Tensor, Targets]:
    """Images of the network's size and packed targets."""
    objects = random_objects(images, seeded(1), counts=(1, 3), classes=CLASSES)
    return torch.rand(images, 3, 300, 300, generator=seeded(2)), Targets(*objects)


def gradients(model: SSD, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """The losses, and the gradients of their sum by parameter; those that are frozen have none."""
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    result = {name: loss.detach() for name, loss in losses.items()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            result[name] = parameter.grad.clone()
    return result


def assert_equal_gradients(actual, expected, tolerance=1e-5) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], tolerance=tolerance, what=name)


def dense(model: SSD) -> SSD:
    """The same model with the option off."""
    model = copy.deepcopy(model)
    model.sparse_head_backward = False
    return model


@pytest.fixture(autouse=True)
def _never_small(monkeypatch) -> None:
    """The heads of a slim model are, and would take the dense backward inside the operator."""
    monkeypatch.setattr(_sparse_convolution, "SMALL", 0)


@pytest.fixture
def sparse_calls(monkeypatch) -> list:
    """Gets an entry for each loss that goes through the operator."""
    calls = []
    operator = multibox.heads_loss
    monkeypatch.setattr(
        multibox, "heads_loss", lambda *a, **o: calls.append(1) or operator(*a, **o)
    )
    return calls


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_equal_the_dense_path(sparse_calls, memory_format) -> None:
    model = make_model().to(memory_format=memory_format)
    images, targets = make_batch()
    images = images.to(memory_format=memory_format)
    expected = gradients(dense(model), images, targets)
    assert not sparse_calls
    assert_equal_gradients(gradients(model, images, targets), expected)
    assert sparse_calls
    assert model.config["sparse_head_backward"]
    assert not SSD.from_config(dense(model).config).sparse_head_backward


def test_autocast(sparse_calls) -> None:
    """Features come in bfloat16, gradients of the float32 parameters in float32."""
    model, batch = make_model().to(memory_format=torch.channels_last), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = gradients(model, *batch), gradients(dense(model), *batch)
    assert len(sparse_calls) == 1
    assert all(gradient.dtype == torch.float32 for gradient in actual.values())
    of_heads = [name for name in expected if not name.startswith("backbone")]
    for name in of_heads:
        assert_close(actual[name], expected[name], tolerance=0.02, what=name)
    # Below, every layer rounds to 8 bits what the one above has rounded: as the dense path does.
    float32 = gradients(dense(model), *batch)
    for name in expected.keys() - of_heads:
        error, usual = ((x[name] - float32[name]).norm() for x in (actual, expected))
        assert error <= 1.5 * usual + 0.01 * float32[name].norm(), name


def test_a_level_in_float32_under_autocast() -> None:
    """As a convolution would, the heads cast it."""

    class Backbone(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, x):
            first, *rest = self.backbone(x)
            return [first.float(), *rest]

    model, batch = make_model(), make_batch()
    model.backbone = Backbone(model.backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert model(*batch) == dense(model)(*batch)


def test_gradients_accumulate(sparse_calls) -> None:
    """Two half batches, with the loss summed, are one whole."""
    model = make_model(loss={"normalizer": "none"})
    images, targets = make_batch(2)
    expected = gradients(dense(model), images, targets)
    model.zero_grad()
    for i in range(2):
        begin, end = targets.offsets[i : i + 2].tolist()
        half = Targets(
            targets.boxes[begin:end], targets.labels[begin:end], torch.tensor([0, end - begin])
        )
        sum(model(images[i : i + 1], half).values()).backward()
    assert len(sparse_calls) == 2
    actual = {name: p.grad for name, p in model.named_parameters()}
    expected = {name: expected[name] for name in actual}
    assert_equal_gradients(actual, expected, tolerance=1e-4)


@pytest.mark.parametrize("frozen", ["backbone", "heads", "heads.regression", "weight", "bias"])
def test_frozen_parameters(sparse_calls, frozen) -> None:
    model, batch = make_model(), make_batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name.startswith(frozen) or name.endswith(frozen)))
    assert_equal_gradients(gradients(model, *batch), gradients(dense(model), *batch))
    assert len(sparse_calls) == 1


class ScaledConv2d(nn.Conv2d):
    """A convolution of somebody else's."""

    def forward(self, x):
        return 2 * super().forward(x)


class OtherLoss(MultiBoxLoss):
    """A loss of somebody else's."""

    def forward(self, deltas, logits, targets):
        return {name: 2 * x for name, x in super().forward(deltas, logits, targets).items()}


def replace(model: SSD, convolution: nn.Module) -> None:
    model.heads.classification[1] = convolution


def bypass_forward(model: SSD) -> None:
    first = model.heads.regression[0]
    first.forward = lambda x: 2 * nn.Conv2d.forward(first, x)


def doubled(module, inputs, output):
    return [2 * x for x in output[0]], output[1]


CHANGES = {
    "forward hook": lambda m: m.heads.regression[0].register_forward_hook(lambda *a: 2 * a[2]),
    "forward pre-hook": lambda m: m.heads.classification[5].register_forward_pre_hook(
        lambda module, inputs: (2 * inputs[0],)
    ),
    "backward hook": lambda m: m.heads.regression[1].register_full_backward_hook(
        lambda module, of_inputs, of_outputs: (2 * of_inputs[0],)
    ),
    "backward pre-hook": lambda m: m.heads.regression[1].register_full_backward_pre_hook(
        lambda module, of_outputs: (2 * of_outputs[0],)
    ),
    "hook of the heads": lambda m: m.heads.register_forward_hook(doubled),
    "hook of the loss": lambda m: m.loss.register_forward_hook(
        lambda *a: {name: 2 * x for name, x in a[2].items()}
    ),
    "parametrisation": lambda m: parametrizations.weight_norm(m.heads.classification[0]),
    "forward of an instance": bypass_forward,
    "subclass": lambda m: replace(m, ScaledConv2d(32, 6 * CLASSES, 3, padding=1)),
    "1x1": lambda m: replace(m, nn.Conv2d(32, 6 * CLASSES, 1)),
    "dilation": lambda m: replace(m, nn.Conv2d(32, 6 * CLASSES, 3, padding=2, dilation=2)),
    "groups": lambda m: replace(m, nn.Conv2d(32, 6 * CLASSES, 3, padding=1, groups=2)),
    "padding by word": lambda m: replace(m, nn.Conv2d(32, 6 * CLASSES, 3, padding="same")),
    "reflection": lambda m: replace(
        m, nn.Conv2d(32, 6 * CLASSES, 3, padding=1, padding_mode="reflect")
    ),
    "depthwise": lambda m: replace(
        m,
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 6 * CLASSES, 1)),
    ),
    "loss of another class": lambda m: setattr(m, "loss", OtherLoss(m.priors)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_plain_takes_the_dense_path(sparse_calls, change) -> None:
    """Silently, and what was changed takes effect."""
    model, batch = make_model(), make_batch()
    plain = gradients(model, *batch)
    assert len(sparse_calls) == 1
    torch.manual_seed(1)
    CHANGES[change](model)
    actual = gradients(model, *batch)
    model.sparse_head_backward = False
    assert_equal_gradients(actual, gradients(model, *batch), tolerance=0)
    assert len(sparse_calls) == 1
    assert actual.keys() != plain.keys() or any(
        not torch.equal(actual[name], plain[name]) for name in plain
    )


def test_a_convolution_replaced_for_all_is_called(sparse_calls, monkeypatch) -> None:
    """As tools for tracing and quantisation do, on the class."""
    model, batch = make_model(), make_batch()
    convolve = nn.Conv2d._conv_forward
    called = []
    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda self, *a: called.append(self) or convolve(self, *a)
    )
    gradients(model, *batch)
    assert set(model.heads.regression) <= set(called)
    assert not sparse_calls


def test_heads_of_several_dtypes_are_called(sparse_calls) -> None:
    """And say themselves that they do not fit."""
    model, batch = make_model(), make_batch()
    model.heads.regression[0].double()
    with pytest.raises(RuntimeError, match="type"):
        gradients(model, *batch)
    assert not sparse_calls


def test_global_hooks_see_the_heads(sparse_calls) -> None:
    """Profilers and counters hang on to every module."""
    model, batch = make_model(), make_batch()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        gradients(model, *batch)
    finally:
        handle.remove()
    assert model.heads.classification[5] in seen
    assert not sparse_calls


def test_convolutions_without_bias(sparse_calls) -> None:
    model, batch = make_model(), make_batch()
    replace(model, nn.Conv2d(32, 6 * CLASSES, 3, padding=1, bias=False))
    assert_equal_gradients(gradients(model, *batch), gradients(dense(model), *batch))
    assert len(sparse_calls) == 1


def test_compiles_whole() -> None:
    """One graph with the operator in it, and a backward that runs."""
    torch.compiler.reset()
    model, batch = make_model(), make_batch()
    backend = EagerAndRecordGraphs()
    losses = torch.compile(model, fullgraph=True, backend=backend)(*batch)
    torch.testing.assert_close(losses, model(*batch), rtol=1e-6, atol=0)
    (graph,) = backend.graphs
    assert "heads_loss" in graph.print_readable(print_output=False)


def test_two_processes_equal_one(tmp_path) -> None:
    """DistributedDataParallel with the loss normalised over both, sparse, against one, dense."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    images, targets = make_batch(4)
    expected = gradients(dense(make_model()), images, targets)
    for rank in range(2):
        actual = torch.load(tmp_path / f"{rank}.pt")
        expected_of_parameters = {name: expected[name] for name in actual}
        assert_equal_gradients(actual, expected_of_parameters, tolerance=1e-4)


def one_process(folder: str, rank: int) -> None:
    """One of the two processes of the test above."""
    _sparse_convolution.SMALL = 0
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, (boxes, labels, offsets, _) = make_batch(4)
    begin, middle, end = offsets[2 * rank : 2 * rank + 3].tolist()
    mine = Targets(
        boxes[begin:end], labels[begin:end], torch.tensor([0, middle - begin, end - begin])
    )
    model = make_model(loss={"normalizer": "world"})
    parallel = nn.parallel.DistributedDataParallel(model)
    sum(parallel(images[2 * rank : 2 * rank + 2], mine).values()).backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    one_process(sys.argv[1], int(sys.argv[2]))
