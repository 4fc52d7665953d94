# SPDX-License-Identifier: BSD-3-Clause
"""The examples in docstrings run and give what they show; help names what a user imports."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import ssd_fast

PACKAGE = Path(__file__).resolve().parents[1] / "ssd_fast"
# The one of convert/checkpoints.py loads a file that is not here.
EXAMPLES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text() and path.name != "checkpoints.py"
)


def test_there_are_examples():
    assert {"ssd_fast.multibox", "ssd_fast.priors"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str):
    """What they do not make themselves, a batch of a detector, is made here."""
    target = {"boxes": torch.tensor([[0.1, 0.1, 0.5, 0.5]]), "labels": torch.tensor([3])}
    batch = {
        "deltas": torch.randn(2, 8732, 4, requires_grad=True),
        "logits": torch.randn(2, 8732, 21, requires_grad=True),
        "targets": [target, target],
    }
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"ssd_fast": ssd_fast, "torch": torch} | batch)
    assert result.attempted > 0
    assert result.failed == 0


def test_help_names_what_a_user_imports():
    public = [name for name in ssd_fast.__all__ if not name.startswith("_")]
    public += [name for name in ssd_fast.ops.__all__ if not name.endswith("_reference")]
    assert ssd_fast.__doc__ is not None
    assert not [name for name in public if name not in ssd_fast.__doc__]
