# SPDX-License-Identifier: BSD-3-Clause
"""What the dispatcher does on a GPU, as far as it can be told without one."""

import inspect
import sys

import pytest
import torch

import ssd_fast.kernels
from ssd_fast.ops import _library

OPERATORS = [
    "decode",
    "detect",
    "encode",
    "focal_loss",
    "focal_loss_backward",
    "match",
    "mine",
    "multibox_loss",
    "multibox_loss_backward",
]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_gpu_kernels(name) -> None:
    """Registered without importing Triton."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ssd_fast::{name}", "CUDA")


def test_launchers_take_the_arguments_of_their_operators() -> None:
    """In the order of the schema; what a launcher takes besides has a default."""
    pytest.importorskip("triton", reason="needs Triton")
    from ssd_fast.testing_kernels import launchers

    assert sorted(launchers()) == OPERATORS
    for name, launcher in launchers().items():
        schema = getattr(torch.ops.ssd_fast, name).default._schema
        parameters = inspect.signature(launcher).parameters.values()
        taken = [parameter.name for parameter in parameters]
        expected = [argument.name for argument in schema.arguments]
        assert taken[: len(expected)] == expected
        assert all(x.default is not x.empty for x in list(parameters)[len(expected) :])


def test_no_triton_is_one_clear_error(monkeypatch) -> None:
    """It names the operator and the remedy."""
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("ssd_fast.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in vars(ssd_fast.kernels).copy():
        if f"ssd_fast.kernels.{name}" in sys.modules:
            monkeypatch.delattr(ssd_fast.kernels, name)
    _library._load_launcher.cache_clear()
    with pytest.raises(RuntimeError, match=r"ssd_fast::mine: .*need Triton.*pip install triton"):
        _library._load_launcher("mine", "mine.launch_mine")


def test_an_old_gpu_is_one_clear_error(monkeypatch) -> None:
    """It names the GPU and what is expected."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(RuntimeError, match=r"capability 8\.0 or later .* Tesla T4 of 7\.5"):
        _library._check_gpu("mine", torch.device("cuda", 7))
