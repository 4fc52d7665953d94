# SPDX-License-Identifier: BSD-3-Clause
"""MultiBoxLoss: the operator as a module, its own checks, and the normalizer "world"."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ssd_fast.multibox import MultiBoxLoss
from ssd_fast.ops import match, multibox_loss
from ssd_fast.priors import PriorBoxes
from ssd_fast.targets import Targets

PRIORS = PriorBoxes(64, (8, 4), (8, 16), (16, 32), ((2,), (2,)))()
CLASSES = 5


def batch(images=4, dtype=torch.float32):
    """Deltas, logits and targets; image 1 has no object."""
    generator = torch.Generator().manual_seed(3)
    deltas = torch.randn(images, len(PRIORS), 4, generator=generator).to(dtype)
    logits = torch.randn(images, len(PRIORS), CLASSES, generator=generator).to(dtype)
    targets = []
    for i in range(images):
        corner = torch.rand(0 if i == 1 else 2 * i + 1, 2, generator=generator) * 0.6
        boxes = torch.cat([corner, corner + 0.1 + 0.05 * i], dim=1)
        labels = torch.randint(1, CLASSES, (len(boxes),), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return deltas.requires_grad_(), logits.requires_grad_(), targets


@pytest.mark.parametrize(
    "options",
    [{}, {"normalizer": "image", "assign": "bipartite"}, {"min_negatives": 2, "beta": 0.5}],
)
@pytest.mark.parametrize("packed", [True, False])
def test_is_the_operator(options, packed):
    deltas, logits, targets = batch()
    rows = Targets.pack(targets)
    losses = MultiBoxLoss(PRIORS, **options)(deltas, logits, rows if packed else targets)
    expected = multibox_loss(deltas, logits, PRIORS, *rows[:3], **options)
    assert losses["bbox_regression"].equal(expected[0])
    assert losses["classification"].equal(expected[1])
    ours = torch.autograd.grad(sum(losses.values()), [deltas, logits])
    theirs = torch.autograd.grad(expected[0] + expected[1], [deltas, logits])
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


NEW = {"box_loss": "ciou", "label_smoothing": 0.1, "class_weights": [0.5, 1.0, 2.0, 0.0, 1.0]}


@pytest.mark.parametrize("options", [{}, NEW])
def test_channels_first_and_given_matches(options):
    deltas, logits, targets = batch()
    expected = MultiBoxLoss(PRIORS, **options)(deltas, logits, targets)
    loss = MultiBoxLoss(PRIORS, channels_first=True, **options)
    rows = Targets.pack(targets)
    matches = match(PRIORS, rows.boxes, rows.offsets)
    transposed = [x.transpose(1, 2).contiguous() for x in (deltas, logits)]
    for given in (None, matches):
        losses = loss(*transposed, targets, given)
        assert losses["bbox_regression"].equal(expected["bbox_regression"])
        assert losses["classification"].equal(expected["classification"])
    wrong = loss(*transposed, targets, matches.fill_(-2))
    assert wrong["classification"] == 0


def test_class_weights_are_a_buffer_of_their_own():
    weights = torch.tensor(NEW["class_weights"])
    loss = MultiBoxLoss(PRIORS, **(NEW | {"class_weights": weights})).half()
    weights.fill_(7)
    assert loss.class_weights.tolist() == NEW["class_weights"]
    assert loss.class_weights.dtype == torch.float32
    assert not loss.state_dict()
    assert loss.config["class_weights"] == NEW["class_weights"]
    assert "box_loss='ciou'" in repr(loss)


def test_regions_to_ignore_take_negatives_away():
    deltas, logits, targets = batch()
    everywhere = torch.tensor([[-1.0, -1, 9, 9]])
    for target in targets:
        target["boxes"] = torch.cat([target["boxes"], everywhere])
        target["labels"] = torch.cat([target["labels"], torch.tensor([1])])
        target["ignore"] = torch.arange(len(target["labels"])) == len(target["labels"]) - 1
    losses = {}
    for threshold in (0.5, None):
        loss = MultiBoxLoss(PRIORS, ignore_threshold=threshold, min_negatives=10**6)
        logits.grad = None
        loss(deltas, logits, targets)["classification"].backward()
        losses[threshold] = int(logits.grad.ne(0).any(2).sum())
    positives = int((match(PRIORS, *Targets.pack(batch()[2])[::2]) >= 0).sum())
    assert losses == {0.5: positives, None: 4 * len(PRIORS)}


def test_options_reach_the_operator():
    deltas, logits, targets = batch()
    empty = [targets[1]] * 4
    assert MultiBoxLoss(PRIORS)(deltas, logits, empty)["classification"] == 0
    losses = MultiBoxLoss(PRIORS, min_negatives=3)(deltas, logits, empty)
    assert losses["classification"] > 0
    assert losses["bbox_regression"] == 0


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_priors_stay_float32(change):
    module = nn.Sequential(nn.Linear(2, 2), MultiBoxLoss(PRIORS))
    change(module)
    assert module[0].weight.dtype != torch.float32
    assert module[1].priors.equal(PRIORS)
    assert module.to("meta")[1].priors.is_meta


def test_priors_come_back_from_the_meta_device_unless_they_are_others_by_now():
    module = MultiBoxLoss(PRIORS).to("meta")
    assert module.to_empty(device="cpu").priors.equal(PRIORS)
    module.to("meta").priors = PRIORS[:3].to("meta")
    assert module.to_empty(device="cpu").priors.shape == (3, 4)


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_a_loss_built_under_the_meta_device_keeps_priors_that_have_values(classification):
    weights = torch.arange(1.0, CLASSES + 1) if classification == "softmax" else None
    expected = MultiBoxLoss(PRIORS, class_weights=weights, classification=classification)
    with torch.device("meta"):
        priors = PriorBoxes(64, (8, 4), (8, 16), (16, 32), ((2,), (2,)))()
        numbers = None if weights is None else weights.tolist()
        loss = MultiBoxLoss(priors, class_weights=numbers, classification=classification)
    loss.to_empty(device="cpu")
    assert loss(*batch()) == expected(*batch())


def test_priors_that_the_meta_device_lost_are_an_error_until_they_are_set():
    with torch.device("meta"):
        loss = MultiBoxLoss(torch.empty(PRIORS.shape), class_weights=[2.0] * CLASSES)
    expected = MultiBoxLoss(PRIORS, class_weights=[2.0] * CLASSES)(*batch())
    deltas, logits, targets = batch()
    losses = loss(deltas.to("meta"), logits.to("meta"), Targets.pack(targets).to("meta"))
    assert losses["classification"].is_meta
    lost = copy.deepcopy(loss.to_empty(device="cpu").half())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"priors: made on the meta device, .*Loss\.priors"):
            lost(*batch())
    lost.priors.copy_(PRIORS)
    assert lost(*batch()) == expected
    with pytest.raises(ValueError, match="priors: made on the meta device"):
        loss.values_of("priors")  # not those of its copy
    loss.priors = PRIORS
    assert loss(*batch()) == expected


def test_class_weights_are_known_on_the_meta_device():
    loss = MultiBoxLoss(PRIORS, class_weights=[0.5, 1.0]).to("meta")
    assert loss.config["class_weights"] == [0.5, 1.0]
    assert "class_weights=[0.5, 1.0]" in repr(loss)
    with pytest.raises(ValueError, match=r"class_weights: expected values, got .* meta device"):
        MultiBoxLoss(PRIORS, class_weights=torch.ones(2, device="meta"))


def test_priors_are_not_saved_and_not_shared():
    module = MultiBoxLoss(PRIORS)
    assert not module.state_dict()
    assert module.priors.data_ptr() != PRIORS.data_ptr()


def test_repr_shows_the_options():
    text = repr(MultiBoxLoss(PRIORS, ratio=2.0, normalizer="image"))
    assert f"priors={len(PRIORS)}" in text
    assert "ratio=2.0" in text
    assert "normalizer='image'" in text


def test_a_list_is_checked_against_the_logits():
    deltas, logits, targets = batch()
    targets[2]["labels"][1] = CLASSES
    with pytest.raises(ValueError, match=r"targets\[2\]\['labels'\]\[1\] is 5.*num_classes = 5"):
        MultiBoxLoss(PRIORS)(deltas, logits, targets)
    with pytest.raises(ValueError, match=r"targets: expected one .* each of the 4 images, got 3"):
        MultiBoxLoss(PRIORS)(deltas, logits, targets[:3])


def test_targets_of_another_batch_are_refused():
    deltas, logits, targets = batch()
    with pytest.raises(ValueError, match="offsets"):
        MultiBoxLoss(PRIORS)(deltas, logits, Targets.pack(targets[:3]))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"normalizer: expected .*, got 'mean'"):
        MultiBoxLoss(PRIORS, normalizer="mean")
    with pytest.raises(ValueError, match="priors: expected"):
        MultiBoxLoss(PRIORS[:, :3])
    with pytest.raises(ValueError, match="priors: expected float32"):
        MultiBoxLoss(PRIORS.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_world_counts_in_float32_whatever_the_default_dtype(dtype):
    deltas, logits, targets = batch()
    criterion = MultiBoxLoss(PRIORS, normalizer="world")
    expected = criterion(deltas, logits, targets)
    torch.set_default_dtype(dtype)
    try:
        found = criterion(deltas, logits, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, loss in expected.items():
        assert found[name].dtype == torch.float32
        assert found[name].equal(loss)


def test_class_weights_are_float32_whatever_the_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = MultiBoxLoss(PRIORS, class_weights=[1.0, 0.3]).class_weights
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.equal(torch.tensor([1.0, 0.3]))


def test_without_a_process_group_the_world_is_this_process():
    deltas, logits, targets = batch()
    world = MultiBoxLoss(PRIORS, normalizer="world")(deltas, logits, targets)
    alone = MultiBoxLoss(PRIORS)(deltas, logits, targets)
    torch.testing.assert_close(world, alone, rtol=1e-6, atol=0)
    empty = MultiBoxLoss(PRIORS, normalizer="world")(deltas, logits, [targets[1]] * 4)
    assert sum(empty.values()) == 0


@pytest.fixture
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("normalizer", ["positives", "world"])
def test_compiles_whole(normalizer, world_of_one):
    deltas, logits, targets = batch()
    rows = Targets.pack(targets, capacity=32)
    module = MultiBoxLoss(PRIORS, normalizer=normalizer)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(deltas, logits, rows), module(deltas, logits, rows))


def test_the_average_of_two_processes_equals_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    deltas, logits, targets = batch()
    losses = MultiBoxLoss(PRIORS)(deltas, logits, targets)
    expected = torch.autograd.grad(sum(losses.values()), [deltas, logits])
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert parts[0]["positives"] != parts[1]["positives"]
    for name in losses:
        mean = (parts[0]["losses"][name] + parts[1]["losses"][name]) / 2
        torch.testing.assert_close(mean, losses[name].detach(), rtol=1e-6, atol=0)
    for i, whole in enumerate(expected):
        # A process sees its half of the batch; DistributedDataParallel halves the sum of both.
        halves = torch.cat([part["gradients"][i] for part in parts]) / 2
        torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-8)


def one_process(folder, rank):
    """One of the two processes of the test above: the loss of images 2 * rank and 2 * rank + 1."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    deltas, logits, targets = batch()
    mine = slice(2 * rank, 2 * rank + 2)
    rows = Targets.pack(targets[mine], capacity=32)
    a, b = (x.detach()[mine].clone().requires_grad_() for x in (deltas, logits))
    losses = MultiBoxLoss(PRIORS, normalizer="world")(a, b, rows)
    gradients = torch.autograd.grad(sum(losses.values()), [a, b])
    positives = multibox_loss(a, b, PRIORS, *rows[:3])[2].sum().item()
    losses = {name: loss.detach() for name, loss in losses.items()}
    result = {"losses": losses, "gradients": gradients, "positives": positives}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    one_process(sys.argv[1], int(sys.argv[2]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"assign": "first"}, "assign: expected one of"),
        ({"beta": -1.0}, "beta: expected"),
        ({"variances": (0.1,)}, "variances: expected 2 or 4"),
        ({"background_index": 0.5}, "background_index: expected"),
        ({"box_loss": "iou"}, "box_loss: expected one of"),
        ({"label_smoothing": 2.0}, "label_smoothing: expected"),
        ({"class_weights": [[1.0]]}, r"class_weights: expected \(C,\)"),
        ({"class_weights": [1.0, -2.0]}, "class_weights: expected .* got -2.0 for class 1"),
        ({"class_weights": [1.0, 1.0], "background_index": 2}, "background_index: expected"),
        ({"classification": "sigmoid"}, "classification: expected"),
        ({"low_threshold": 0.7, "normalizer": "world"}, "low_threshold: expected"),
    ],
)
def test_a_wrong_option_fails_at_construction(option, message) -> None:
    """Not at the first step of a training."""
    with pytest.raises(ValueError, match=message):
        MultiBoxLoss(torch.rand(5, 4), **option)
