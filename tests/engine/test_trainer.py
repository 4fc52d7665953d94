# SPDX-License-Identifier: BSD-3-Clause
"""Trainer: a resumed run is the uninterrupted one bit for bit, and NaN does no harm."""

import copy
import io
import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.batches import batches
from ssd_fast.engine.distributed import World
from ssd_fast.engine.precision import Precision, choose_precision
from ssd_fast.engine.trainer import Diverged, Trainer, TrainingOptions
from ssd_fast.models import SSD, ssd300_vgg16

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
    steps = 12  # of four or fewer the average is the last weights
    whole, first = trainer(steps=steps), trainer(steps=steps)
    list(whole.run())
    for report in first.run():
        if report.step == 2:
            break
    # Through a file's bytes, so that nothing is shared between the two.
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = trainer(steps=steps)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.step == 2
    assert second.seconds_waiting == first.seconds_waiting > 0
    reports = list(second.run())
    assert [report.step for report in reports] == list(range(3, steps + 1))
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


def test_those_before_a_checkpoint_count(trainer: Callable[..., Trainer]):
    first, second = trainer(steps=9, max_skipped=3), trainer(steps=9, max_skipped=3)
    for run in (first, second):
        _poison(run, {0, 1, 2, 3})
    next(run := first.run())
    next(run)
    second.load_state_dict(first.state_dict())
    with pytest.raises(Diverged, match="up to step 3"):
        list(second.run())


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
        ("optimizer", "adam"),
        ("momentum", 1.0),
        ("schedule", "linear"),
        ("milestones", (0.5, 1.5)),
        ("gamma", 0.0),
        ("freeze", -1),
        ("compile", "yes"),
    ],
)
def test_options_out_of_range_are_named(name: str, value: object):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {re.escape(repr(value))}$"):
        TrainingOptions(**{"steps": 1, name: value})


def test_batch_norm_and_one_image_are_refused(trainer: Callable[..., Trainer]):
    with pytest.raises(ValueError, match="batch_size: batch norm cannot learn from one image"):
        trainer(batch_size=1)


@pytest.mark.parametrize(("steps", "decay"), [(2, 0.0), (8, 0.5), (8000, 0.99)])
def test_the_average_forgets_the_start_of_a_short_run(
    trainer: Callable[..., Trainer], steps: int, decay: float
):
    """Of running statistics as of weights."""
    run = trainer(steps=steps)
    expected: list[Tensor] = []
    for report in run.run():
        now = _weights_and_statistics(run.model)
        pairs = zip(expected, now, strict=True)
        expected = [old.lerp(new, 1 - decay) for old, new in pairs] if expected else now
        if report.step == 8:
            break
    torch.testing.assert_close(_weights_and_statistics(run.averaged_model), expected)


def _weights_and_statistics(model: SSD) -> list[Tensor]:
    tensors = model.state_dict().values()
    return [tensor.clone() for tensor in tensors if tensor.is_floating_point()]


@pytest.mark.parametrize(("clip_norm", "length"), [(0.5, 0.5), (math.inf, None)])
def test_the_gradient_is_cut_to_its_limit(
    trainer: Callable[..., Trainer], clip_norm: float, length: float | None
):
    """Of SGD's first step, which is the learning rate times it; the example's own is longer."""
    options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}
    run = trainer(clip_norm=clip_norm, warmup=0, **options)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    next(run.run())
    change = [x.detach() - y for x, y in zip(run.model.parameters(), before, strict=True)]
    norm = float(torch.cat([x.flatten() for x in change]).norm())
    assert norm > 1 if length is None else norm == pytest.approx(length, rel=1e-3)


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


def test_the_offending_image_is_named(small_detector: Callable[[], SSD]):
    class Named(ShapesDataset):
        paths = tuple(f"folder/{i}.jpg" for i in range(6))

    options = TrainingOptions(steps=3, batch_size=4, warmup=1)
    run = Trainer(small_detector(), Named(6, size=64), options, precision=FLOAT32)
    forward, marked, shown = run.model.forward, [], []

    def poisoned(images, targets):
        if len(shown) == 1 and not marked:
            marked.append(images[2])  # the whole batch, first
        bad = [any(torch.equal(image, m) for m in marked) for image in images]
        factor = torch.where(torch.tensor(bad), math.nan, 1.0)
        return forward(images.float() * factor[:, None, None, None] / 255, targets)

    run.model.forward = poisoned
    for report in run.run():
        shown.append(report)
    assert [report.skipped for report in shown][1]
    assert [report.offender == "" for report in shown] == [not r.skipped for r in shown]
    assert shown[1].offender.startswith("folder/")
    index = int(shown[1].offender.removeprefix("folder/").removesuffix(".jpg"))
    expected = batches(run._samples, batch_size=4, seed=0, start=1, stop=2)
    assert next(iter(expected)).indices[2] == index


def test_an_image_is_looked_at_without_the_other_processes(
    small_detector: Callable[[], SSD], monkeypatch: pytest.MonkeyPatch
):
    """They may have fewer images, and statistics of theirs would carry the NaN over."""

    def waits(*_: object) -> None:
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", waits)
    options = TrainingOptions(steps=1, batch_size=2)
    run, other = (
        Trainer(small_detector(), ShapesDataset(2, size=64), options, precision=FLOAT32)
        for _ in range(2)
    )
    nn.SyncBatchNorm.convert_sync_batchnorm(run.model)
    (batch,) = batches(run._samples, batch_size=2, seed=0, start=0, stop=1)
    found, expected = (t._losses_alone(batch.images, batch.targets) for t in (run, other))
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
    with pytest.raises(TimeoutError):  # as before
        run.model(batch.images, batch.targets)


def test_weights_that_are_nan_are_no_images_fault(trainer: Callable[..., Trainer]):
    run = trainer(steps=2)
    next(run.run())
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    report = next(run.run())
    assert report.skipped
    assert report.offender == ""


def test_random_numbers_of_the_model_are_resumed(trainer: Callable[..., Trainer]):
    def with_dropout() -> Trainer:
        run = trainer(steps=4)
        run.model.backbone.coarse.append(nn.Dropout(0.5))
        return run

    whole, first, second = with_dropout(), with_dropout(), with_dropout()
    before = torch.get_rng_state()
    list(whole.run())
    assert torch.equal(torch.get_rng_state(), before)
    for report in first.run():
        if report.step == 2:
            break
    torch.rand(7)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    list(second.run())
    expected = whole.model.state_dict()
    for name, tensor in second.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_every_process_and_every_step_draws_its_own_random_numbers(trainer: Callable[..., Trainer]):
    run, draws = trainer(), set()
    for rank, step in itertools.product(range(2), range(2)):
        run.world, run.step = World(run.device, rank=rank, size=2), step
        with run._random_numbers():
            draws.add(torch.rand(()).item())
    assert len(draws) == 4


def test_a_model_of_other_classes_is_refused():
    """Its loss would pass by the labels that it does not know."""
    options, dataset = TrainingOptions(steps=1), ShapesDataset(4, size=64)
    with pytest.raises(ValueError, match=r"num_classes=4, the background and the dataset's 3 .* 3"):
        Trainer(ssd300_vgg16(3, width=0.03), dataset, options, precision=FLOAT32)
    last = ssd300_vgg16(4, width=0.03, loss={"background_index": -1})
    with pytest.raises(ValueError, match=r"background as class 0, .* got background_index=3"):
        Trainer(last, dataset, options, precision=FLOAT32)


def test_training_on_the_cpu_leaves_the_gpus_generators_alone(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    run = trainer(steps=1)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    list(run.run())
    assert seeded == []


def test_float16_finds_its_scale(small_detector: Callable[[], SSD]):
    # The command refuses float16 on a CPU, where it is slow; the scaler is the GPU's.
    options = TrainingOptions(steps=6, batch_size=2, warmup=1, max_skipped=2)
    half = Precision(torch.float16, "tested")
    run = Trainer(small_detector(), ShapesDataset(6, size=64), options, precision=half)
    state = run.state_dict()
    state["scaler"]["scale"] = 2.0**40
    state["scaler"]["backoff_factor"] = 2.0**-12
    run.load_state_dict(state)
    reports = list(run.run())
    skipped = [report.skipped for report in reports]
    assert skipped[0]
    assert not skipped[-1]
    assert run.skipped == 0  # no fault of the data, so it does not count
    assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())
    assert run.state_dict()["scaler"]["scale"] < 2.0**40


def test_frozen_stages_keep_everything():
    torch.manual_seed(0)
    model = ssd300_vgg16(4, width=0.03, norm=True)
    before = copy.deepcopy(model.state_dict())
    options = TrainingOptions(steps=1, batch_size=2, warmup=0, freeze=2)
    list(Trainer(model, ShapesDataset(2), options, precision=FLOAT32).run())
    frozen = ("backbone.conv1", "backbone.conv2")
    after = model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(frozen) for name in changed)
    assert {"backbone.conv3.0.conv.weight", "backbone.conv3.0.norm.running_mean"} <= changed


def test_what_cannot_be_frozen_is_refused(trainer: Callable[..., Trainer]):
    with pytest.raises(ValueError, match="freeze: Maps has no stages to freeze; take 0"):
        trainer(freeze=1)
    model = ssd300_vgg16(4, width=0.03)
    options = TrainingOptions(steps=1, freeze=6)
    with pytest.raises(ValueError, match="freeze: expected 0 to 5 stages, got 6"):
        Trainer(model, ShapesDataset(4, size=64), options, precision=FLOAT32)


def test_compiling_changes_no_result(trainer: Callable[..., Trainer], monkeypatch):
    # Inductor takes half a minute; what is asked of it is a graph without breaks.
    compiled = []
    compile_module = nn.Module.compile

    def traced(self: nn.Module, **options: object) -> None:
        compiled.append(options)
        compile_module(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", traced)
    plain, fast = trainer(), trainer(compile="default")
    assert compiled == [{"mode": None}]
    for mine, theirs in zip(plain.run(), fast.run(), strict=True):
        assert mine.box_loss == pytest.approx(theirs.box_loss, rel=1e-5)
        assert mine.class_loss == pytest.approx(theirs.class_loss, rel=1e-5)


def test_cuda_graphs_need_a_gpu(trainer: Callable[..., Trainer]):
    with pytest.raises(ValueError, match="compile: CUDA graphs need a GPU, not cpu"):
        trainer(compile="cuda-graphs")
