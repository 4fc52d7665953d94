# SPDX-License-Identifier: BSD-3-Clause
"""Schedules, and which weights decay."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from ssd_fast.engine.optimizer import (
    cosine_schedule,
    learning_rate_factor,
    make_optimizer,
    multistep_schedule,
)
from ssd_fast.engine.options import TrainingOptions
from ssd_fast.models.ssd import SSD


def test_the_schedule_rises_and_falls():
    factors = [cosine_schedule(step, steps=100, warmup=10) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b > 0 for a, b in pairwise(factors[10:]))


def test_the_multistep_schedule_falls_at_its_milestones():
    options = TrainingOptions(
        steps=60, schedule="multistep", milestones=(2 / 3, 5 / 6), gamma=0.1, warmup=4
    )
    factors = [learning_rate_factor(step, options) for step in range(60)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:40] == [1.0] * 35
    assert factors[40:50] == pytest.approx([0.1] * 10)
    assert factors[50:] == pytest.approx([0.01] * 10)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert multistep_schedule(0, milestones=(), gamma=0.1, warmup=0) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
@pytest.mark.parametrize("steps", [1, 3, 38, 4000])
def test_a_run_reaches_its_peak_however_short(schedule: str, steps: int):
    options = TrainingOptions(steps=steps, schedule=schedule, warmup=1000)
    factors = [learning_rate_factor(step, options) for step in range(steps)]
    assert factors.index(1.0) == steps // 4
    assert max(factors) == 1.0


def test_only_weights_decay(small_detector: Callable[[], SSD]):
    optimizer = make_optimizer(small_detector(), learning_rate=1.0, weight_decay=0.1)
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert {p.ndim for p in decayed["params"]} == {4}
    assert kept["weight_decay"] == 0.0
    assert {p.ndim for p in kept["params"]} == {1}


def test_sgd_has_momentum(small_detector: Callable[[], SSD]):
    model = small_detector()
    model.backbone.fine.requires_grad_(False)
    optimizer = make_optimizer(
        model, learning_rate=0.1, weight_decay=0.1, optimizer="sgd", momentum=0.5
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5]
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert taken == {id(p) for p in model.parameters() if p.requires_grad}
