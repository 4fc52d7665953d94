# SPDX-License-Identifier: BSD-3-Clause
"""Trainer: a resumed run is the uninterrupted one bit for bit, and NaN does no harm."""

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.optimizer import cosine_schedule, make_optimizer
from ssd_fast.engine.precision import Precision, choose_precision
from ssd_fast.engine.trainer import Diverged, Trainer, TrainingOptions
from ssd_fast.models.ssd import SSD

FLOAT32 = choose_precision(torch.device("cpu"), "float32")


@pytest.fixture
def trainer(small_detector: Callable[[], SSD]) -> Callable[..., Trainer]:
    """Makes a trainer of the small detector."""

    def make(precision: Precision = FLOAT32, **options: object) -> Trainer:
        defaults = {"steps": 4, "batch_size": 2, "warmup": 1}
        chosen = TrainingOptions(**{**defaults, **options})
        scenes = ShapesDataset(6, size=64)
        return Trainer(small_detector(), scenes, chosen, precision=precision)

    return make


def test_a_resumed_run_equals_the_uninterrupted_one(trainer: Callable[..., Trainer]):
    whole, first = trainer(), trainer()
    list(whole.run())
    for report in first.run():
        if report.step == 2:
            break
    # Through a file's bytes, so that nothing is shared between the two.
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = trainer()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.step == 2
    reports = list(second.run())
    assert [report.step for report in reports] == [3, 4]
    for mine, theirs in (
        (whole.model, second.model),
        (whole.averaged_model, second.averaged_model),
    ):
        expected = mine.state_dict()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_the_loss_falls(trainer: Callable[..., Trainer]):
    run = trainer(steps=60, batch_size=4, warmup=5, learning_rate=0.01, augment="none")
    losses = [report.box_loss + report.class_loss for report in run.run()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_bfloat16_trains_float32_weights(trainer: Callable[..., Trainer]):
    run = trainer(choose_precision(torch.device("cpu"), "bfloat16"), steps=1)
    before = copy.deepcopy(run.model.state_dict())
    (report,) = run.run()
    assert not report.skipped
    after = run.model.state_dict()
    assert all(tensor.dtype != torch.bfloat16 for tensor in after.values())
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


def _poison(run: Trainer, steps: set[int]) -> None:
    """Makes the losses of some steps NaN, and their activations with them."""
    forward = run.model.forward

    def poisoned(images, targets):
        if run.step in steps:
            images = images.float() * math.nan
        return forward(images, targets)

    run.model.forward = poisoned


def test_a_step_without_a_finite_loss_changes_nothing(trainer: Callable[..., Trainer]):
    run = trainer()
    _poison(run, {1})
    states = []
    for report in run.run():
        states.append(copy.deepcopy(run.model.state_dict()))
        assert report.skipped == (report.step == 2)
    assert run.skipped == 1
    counters = [name for name in states[0] if name.endswith("num_batches_tracked")]
    for name, tensor in states[1].items():
        if name not in counters:
            assert torch.equal(tensor, states[0][name]), name
    for tensor in run.averaged_model.state_dict().values():
        assert tensor.isfinite().all()


def test_many_in_a_row_end_the_run(trainer: Callable[..., Trainer]):
    run = trainer(steps=9, max_skipped=3)
    _poison(run, {0, 2, 3, 4})
    reports = []
    with pytest.raises(
        Diverged, match=r"not finite in 3 steps in a row, up to step 5.*learning rate"
    ):
        reports.extend(run.run())
    assert run.skipped == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", math.nan),
        ("learning_rate", 0.0),
        ("average", 1.0),
        ("clip_norm", 0.0),
        ("workers", -1),
        ("augment", "mosaic"),
    ],
)
def test_options_out_of_range_are_named(name: str, value: object):
    with pytest.raises(ValueError, match=f"{name}: .* is out of range"):
        TrainingOptions(**{"steps": 1, name: value})


def test_batch_norm_and_one_image_are_refused(trainer: Callable[..., Trainer]):
    with pytest.raises(ValueError, match="batch_size: batch norm cannot learn from one image"):
        trainer(batch_size=1)


def test_broken_boxes_are_counted(small_detector: Callable[[], SSD]):
    class Broken(ShapesDataset):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            target["boxes"][0, 2] = target["boxes"][0, 0]
            return image, target

    options = TrainingOptions(steps=2, batch_size=3)
    run = Trainer(small_detector(), Broken(6, size=64), options, precision=FLOAT32)
    list(run.run())
    assert run.dropped_boxes == 6


def test_quiet_heads_predict_background(small_detector: Callable[[], SSD]):
    # In training, where batch norm keeps the features at the size that they will have.
    deltas, logits = small_detector().head_outputs(torch.rand(8, 3, 64, 64))
    assert logits.softmax(-1)[..., 0].median() > 0.97
    assert deltas.abs().median() < 0.2


def test_the_schedule_rises_and_falls():
    factors = [cosine_schedule(step, steps=100, warmup=10) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b > 0 for a, b in pairwise(factors[10:]))


def test_only_weights_decay(small_detector: Callable[[], SSD]):
    optimizer = make_optimizer(small_detector(), learning_rate=1.0, weight_decay=0.1)
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert {p.ndim for p in decayed["params"]} == {4}
    assert kept["weight_decay"] == 0.0
    assert {p.ndim for p in kept["params"]} == {1}
