# SPDX-License-Identifier: BSD-3-Clause
"""accelerate: torchvision's SSDs give the same losses, gradients and detections on our kernels."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import ssd_fast
from ssd_fast.testing import assert_close, random_objects, seeded
from ssd_fast.testing_detections import assert_same_rows_found


class _Backbone(nn.Module):
    """Three small maps: enough of a network to train, cheap enough to run often."""

    out_channels = (16, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 16, 16, 3, stride=4 if i == 0 else 2, padding=1)
            for i in range(3)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for i, step in enumerate(self.steps):
            x = step(x).relu()
            maps[str(i)] = x
        return maps


def _small_ssd(seed: int = 0, **options) -> nn.Module:
    """A torchvision SSD built by hand, 64 x 64, 5 classes."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    torch.manual_seed(seed)
    generator = DefaultBoxGenerator([[2], [2, 3], [2]])
    return SSD(_Backbone(), generator, (64, 64), 5, **options)


def _batch(seed: int, classes: int = 5, size: int = 3) -> tuple[list[Tensor], list[dict]]:
    """Images of three sizes and their objects; the second image has none."""
    generator = seeded(seed)
    sizes = [(80, 100), (64, 64), (120, 70)][:size]
    images = [torch.rand(3, *size, generator=generator) for size in sizes]
    targets = []
    for i, (height, width) in enumerate(sizes):
        counts = (0, 0) if i == 1 else (1, 5)
        objects = random_objects(1, generator, counts=counts, classes=classes, smallest=0.15)
        scale = torch.tensor([width, height, width, height])
        targets.append({"boxes": objects.boxes * scale, "labels": objects.labels})
    return images, targets


def _train(model: nn.Module, images, targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.train()
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, grads


def _assert_same_training(model, original, seed: int, **batch: int) -> None:
    images, targets = _batch(seed, **batch)
    losses, grads = _train(model, images, targets)
    expected_losses, expected_grads = _train(original, images, targets)
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        assert_close(loss, expected_losses[name], what=f"seed {seed}: {name}")
    assert grads.keys() == expected_grads.keys()
    off = _off(grads, expected_grads)
    if off:
        # Where a gradient cancels, torchvision's own rounding may be more: float64 decides.
        _, exact = _train(copy.deepcopy(original).double(), *_as_double(images, targets))
        still = _off({name: grads[name] for name in off}, exact)
        assert not still, f"seed {seed}: off by {off}, and by {still} from float64"


def _off(grads: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The gradients that are not within 1e-4 of the largest element, and by how much."""
    largest = max(float(grad.abs().max()) for grad in expected.values())
    errors = {}
    for name, grad in grads.items():
        # What is left of a gradient that cancels, as before a batch norm, is rounding noise.
        scale = max(float(expected[name].abs().max()), 1e-3 * largest)
        errors[name] = float((grad - expected[name]).abs().max()) / scale
    return {name: error for name, error in errors.items() if not error <= 1e-4}


def _as_double(images: list[Tensor], targets: list[dict]) -> tuple[list[Tensor], list[dict]]:
    doubled = [{**target, "boxes": target["boxes"].double()} for target in targets]
    return [image.double() for image in images], doubled


def _assert_same_detections(model, original, seed: int, **batch: int) -> None:
    images, _ = _batch(seed, **batch)
    with torch.no_grad():
        found, expected = model.eval()(images), original.eval()(images)
    assert sum(len(e["scores"]) for e in expected) > 0
    for image, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_same_rows_found(f, e, what=f"seed {seed}, image {image}")


@pytest.fixture
def pair(torchvision) -> tuple[nn.Module, nn.Module]:
    """An accelerated model and its untouched twin."""
    original = _small_ssd()
    return ssd_fast.accelerate(copy.deepcopy(original)), original


def test_training_and_detections_equal_the_original(pair, full_count) -> None:
    """Losses, gradients of every parameter and detections, on batches that hold an empty image."""
    model, original = pair
    for seed in range(full_count(10, 500)):
        _assert_same_training(model, original, seed)
        _assert_same_detections(model, original, seed)


def test_restore_brings_back_the_original(pair) -> None:
    """The class, and with it everything else."""
    model, original = pair
    assert ssd_fast.accelerated(model)
    assert ssd_fast.restore(model) is model
    assert type(model) is type(original)
    assert ssd_fast.accelerated(model) == {}
    assert model.__dict__.keys() == original.__dict__.keys()
    _assert_same_training(model, original, 0)
    _assert_same_detections(model, original, 0)


@pytest.mark.parametrize(
    ("builder", "classes"), [("ssd300_vgg16", 7), ("ssdlite320_mobilenet_v3_large", 7)]
)
def test_published_models_equal_the_original(torchvision, full_count, builder, classes) -> None:
    """Through the whole network, in training and evaluation, before and after `restore`."""
    build = getattr(torchvision.models.detection, builder)
    torch.manual_seed(0)
    original = build(weights=None, weights_backbone=None, num_classes=classes)
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of a real batch: without them all scores are equal
    original.train()(*_batch(0, classes=classes))
    model = ssd_fast.accelerate(copy.deepcopy(original))
    for seed in range(full_count(1, 10)):
        _assert_same_detections(model, original, seed, size=1)
    for seed in range(full_count(1, 10)):
        _assert_same_training(model, original, seed, classes=classes, size=2)
    assert type(ssd_fast.restore(model)) is type(original)
    _assert_same_detections(model, original, 0, size=1)


def test_attributes_are_read_at_each_call(pair) -> None:
    """Thresholds and limits changed after `accelerate` take effect."""
    model, original = pair
    for each in (model, original):
        each.score_thresh, each.nms_thresh = 0.15, 0.3
        each.topk_candidates, each.detections_per_img = 20, 9
        each.neg_to_pos_ratio = 1.0
        each.box_coder.weights = (8.0, 9.0, 4.0, 5.0)
        each.proposal_matcher.high_threshold = each.proposal_matcher.low_threshold = 0.4
    _assert_same_training(model, original, 3)
    _assert_same_detections(model, original, 3)


def test_state_dict_is_the_original(pair) -> None:
    """Weights move both ways, also after a forward."""
    model, original = pair
    model(*_batch(0))
    assert model.state_dict().keys() == original.state_dict().keys()
    original.load_state_dict(model.state_dict())


def test_copies_and_pickles_stay_accelerated(pair) -> None:
    """Deepcopy and pickle know the class that only `accelerate` makes."""
    model, original = pair
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert ssd_fast.accelerated(twin)
        _assert_same_detections(twin, original, 0)


def test_twice_changes_nothing(pair) -> None:
    """The second call returns the model as it is."""
    model, _ = pair
    kind = type(model)
    assert type(ssd_fast.accelerate(model)) is kind


def test_other_objects_are_left_alone(pair) -> None:
    """No global patching: the twin and torchvision's class stay what they were."""
    from torchvision.models.detection.ssd import SSD

    _, original = pair
    assert type(original) is SSD
    assert SSD.forward.__module__ == "torchvision.models.detection.ssd"


def test_a_head_with_a_hook_is_called(pair) -> None:
    """Users' hooks on the heads still see the outputs."""
    model, original = pair
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    _assert_same_training(model, original, 0)
    assert calls == [1]


def test_anchors_are_built_once(pair) -> None:
    """Two forwards of one size share the anchors; a changed generator does not."""
    model, _ = pair
    calls = []
    model.anchor_generator.register_forward_hook(lambda *_: calls.append(1))
    model(*_batch(0))
    model(*_batch(1))
    assert calls == [1]
    model.anchor_generator.clip = False
    model(*_batch(1))
    assert calls == [1, 1]


def test_evaluation_in_inference_mode_leaves_training_as_it_was(pair) -> None:
    """What is kept between calls takes part in the next backward."""
    model, original = pair
    with torch.inference_mode():
        model.eval()(_batch(0)[0])
    _assert_same_training(model, original, 0)


def test_an_export_leaves_the_model_as_it_was(pair) -> None:
    """Before the first call and after it, nothing of the trace is kept."""
    model, original = pair
    images, _ = _batch(0, size=1)
    for _ in range(2):
        torch.export.export(model.eval(), (images,), strict=False)
        _assert_same_training(model, original, 0)
        _assert_same_detections(model, original, 0)


def test_refuses_what_it_cannot_replace(torchvision) -> None:
    """Not a detector, another detector, or a subclass with its own loss."""
    from torchvision.models.detection.ssd import SSD

    class OwnLoss(SSD):
        def compute_loss(self, *args):
            return {}

    with pytest.raises(TypeError, match=r"model: expected an SSD, .* got torch\..*\.Linear"):
        ssd_fast.accelerate(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"of torchvision\..* got ssd_fast\.models\.ssd\.SSD;"):
        ssd_fast.accelerate(ssd_fast.ssd300_vgg16(3, width=0.03))
    model = _small_ssd()
    model.__class__ = OwnLoss
    with pytest.raises(TypeError, match=r"OwnLoss overrides compute_loss\(\)"):
        ssd_fast.accelerate(model)


@pytest.mark.parametrize("method", ["forward", "compute_loss", "postprocess_detections"])
def test_refuses_methods_set_on_the_object(torchvision, method) -> None:
    """They would be passed by, or pass our kernels by; without them it is accelerated."""
    model = _small_ssd()
    setattr(model, method, getattr(model, method))
    with pytest.raises(TypeError, match=rf"model: {method} is set on this SSD .* remove it"):
        ssd_fast.accelerate(model)
    assert not ssd_fast.accelerated(model)
    delattr(model, method)
    assert ssd_fast.accelerated(ssd_fast.accelerate(model))


def test_refuses_methods_set_on_the_object_later(pair) -> None:
    """Nothing that somebody set is passed by in silence; `restore` brings it into force."""
    model, _ = pair
    images, targets = _batch(0)
    model.train().compute_loss = lambda *_: {"mine": torch.zeros(())}
    with pytest.raises(TypeError, match=r"model: compute_loss is set on this .*ssd_fast.restore"):
        model(images, targets)
    assert ssd_fast.restore(model)(images, targets).keys() == {"mine"}
    del model.compute_loss
    ssd_fast.accelerate(model)
    forward, calls = model.forward, []
    model.forward = lambda *inputs: calls.append(inputs) or forward(*inputs)
    assert "classification" in model(images, targets)
    assert len(calls) == 1


@pytest.mark.parametrize("training", [True, False])
def test_another_number_of_targets_is_named(pair, training) -> None:
    model, _ = pair
    images, targets = _batch(0)
    model.train(training)
    for wrong in (targets[:1], targets * 2, []):
        count = f"each of the {len(images)} images, got {len(wrong)}"
        with pytest.raises(ValueError, match=f"targets: expected one dictionary for {count}"):
            model(images, wrong)
    with pytest.raises(TypeError, match=r"targets: expected a list of dictionaries, .* got dict"):
        model(images, targets[0])


def test_refuses_another_box_coder(pair) -> None:
    """In training and in evaluation, as it does another matcher."""
    from torchvision.models.detection._utils import BoxCoder

    class OwnCoder(BoxCoder):
        pass

    model, _ = pair
    model.box_coder = OwnCoder((10.0, 10.0, 5.0, 5.0))
    images, targets = _batch(0)
    with pytest.raises(TypeError, match=r"box_coder: expected .* BoxCoder, got OwnCoder"):
        model.train()(images, targets)
    with pytest.raises(TypeError, match=r"box_coder: expected .* BoxCoder, got OwnCoder"):
        model.eval()(images)


class _OwnHead(nn.Module):
    """A head that is not torchvision's, though it does the same."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return self.head(x)


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_labels_out_of_range_are_named(pair, own_head, label) -> None:
    """Torchvision's IndexError, of every head; the background is the head's own class."""
    model, _ = pair
    if own_head:
        model.head = _OwnHead(model.head)
    images, targets = _batch(1)
    row = len(targets[2]["labels"]) - 1
    targets[2]["labels"][row] = 0
    model(images, targets)
    targets[2]["labels"][row] = label
    with pytest.raises(
        ValueError, match=rf"targets\[2\]\['labels'\]\[{row}\] is {label}: .* least 0"
    ):
        model(images, targets)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_named(pair, value) -> None:
    """Where torchvision's loss is NaN."""
    model, _ = pair
    images, targets = _batch(0)
    targets[2]["boxes"][0, 2] = value
    with pytest.raises(ValueError, match=r"targets\[2\]\['boxes'\]\[0\] is .*: expected finite"):
        model(images, targets)


def test_bad_targets_get_the_messages_of_torchvision(pair) -> None:
    """Users' error handling keeps working."""
    model, original = pair
    images, targets = _batch(0)
    targets[2]["boxes"][0, 2] = targets[2]["boxes"][0, 0]
    for each in (model, original):
        with pytest.raises(AssertionError, match=r"positive height and width.*index 2"):
            each(images, targets)
        with pytest.raises(AssertionError, match="targets should not be none"):
            each(images)
