# SPDX-License-Identifier: BSD-3-Clause
"""Tests that need a GPU; `make gpu` runs them."""

import pytest
import torch

from ssd_fast.priors import ssd300
from ssd_fast.testing import decided_objects, seeded, trained_outputs


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(B, C, seed=0, counts=(1, 8))`: SSD300's inputs of the loss, on the CPU."""

    def make(batch: int, classes: int, seed: int = 0, counts: tuple[int, int] = (1, 8)):
        priors = ssd300("voc")
        objects = decided_objects(batch, priors, seeded(seed), counts=counts, classes=classes)
        deltas, logits = trained_outputs(objects, priors, seeded(seed + 1), classes=classes)
        return deltas, logits, priors, *objects

    return make


@pytest.fixture(scope="session")
def needs_kernel():
    """`needs_kernel(operator)` skips the test where the reference would stand in for the kernel."""

    def check(operator: str) -> None:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"ssd_fast::{operator}", "CUDA"):
            pytest.skip(f"{operator} has no CUDA kernel in this build")

    return check
