# SPDX-License-Identifier: BSD-3-Clause
"""SSD: the contract of `forward`, its fast paths, and what it says to wrong input."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ssd_fast.models import ssd300_vgg16
from ssd_fast.ops import detect
from ssd_fast.priors import SSD300, ssd300
from ssd_fast.targets import Targets

CLASSES = 4
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
OTHER_GRID = replace(SSD300["voc"], aspect_ratios=((1.5,),) * 6)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def slim(**options):
    torch.manual_seed(0)
    return ssd300_vgg16(CLASSES, width=0.125, **{"norm": True, **options})


def scene(height=120, width=200):
    """An image and its targets in pixels."""
    generator = torch.Generator().manual_seed(height)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.95]])
    boxes = boxes * torch.tensor([width, height, width, height])
    image = torch.rand(3, height, width, generator=generator)
    return image, {"boxes": boxes, "labels": torch.tensor([1, 3])}


def batch():
    """Two images of the network's size, and packed targets; the second has no object."""
    image, target = scene(300, 300)
    rows = Targets.pack([target, EMPTY], capacity=8)
    return torch.stack([image, image.flip(1)]), rows._replace(boxes=rows.boxes / 300)


def test_training_gives_two_losses_with_gradients():
    model = slim()
    losses = model([scene(120, 200)[0], scene(300, 300)[0]], [scene(120, 200)[1], EMPTY])
    assert set(losses) == {"bbox_regression", "classification"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_evaluation_gives_pixels_of_the_original_images():
    model = slim(score_threshold=0.2).eval()
    pictures = [scene(120, 200)[0], scene(333, 90)[0]]
    found = model(pictures)
    assert [set(result) for result in found] == [{"boxes", "scores", "labels"}] * 2
    for result, picture in zip(found, pictures, strict=True):
        boxes, height, width = result["boxes"], *picture.shape[1:]
        assert len(boxes) == len(result["scores"]) == len(result["labels"]) > 0
        assert boxes.min() >= 0
        assert 0.9 * width < boxes[:, 2].max() <= width  # pixels, not fractions
        assert 0.9 * height < boxes[:, 3].max() <= height
        assert (result["scores"] > 0.2).all()
        assert (result["scores"].diff() <= 0).all()
        assert ((result["labels"] >= 1) & (result["labels"] < CLASSES)).all()


def test_targets_are_in_pixels_of_their_image():
    model = slim(norm=False)
    image, target = scene(120, 200)
    scaled = target["boxes"] / torch.tensor([200, 120, 200, 120])
    rows = Targets.pack([{**target, "boxes": scaled}])
    torch.testing.assert_close(model([image], [target]), model([image], rows))


def test_a_batch_equals_a_list():
    model = slim(norm=False)
    images, rows = batch()
    targets = [scene(300, 300)[1], EMPTY]
    expected = model(list(images), targets)
    torch.testing.assert_close(model(images, targets), expected)
    torch.testing.assert_close(model(images, rows), expected)
    model.eval()
    torch.testing.assert_close(model(images), model(list(images)))


def test_batches_of_another_size_are_resized():
    model = slim().eval()
    image, _ = scene(150, 250)
    torch.testing.assert_close(model([image]), model(image[None]))


def test_uint8_is_a_255th():
    model = slim().eval()
    image = (scene()[0] * 255).to(torch.uint8)
    torch.testing.assert_close(model([image]), model([image.float() / 255]))


def test_images_and_targets_are_left_alone():
    image, target = scene(300, 300)
    before = image.clone(), target["boxes"].clone()
    slim(norm=False)([image], [target])
    assert image.equal(before[0])
    assert target["boxes"].equal(before[1])


def test_normalisation_is_torchvisions():
    batch, sizes = slim().transform([torch.full((3, 30, 40), 0.5)])
    expected = (0.5 - torch.tensor([0.48235, 0.45882, 0.40784])) * 255
    torch.testing.assert_close(batch[0, :, 17, 5], expected)
    assert batch.shape == (1, 3, 300, 300)
    assert sizes == [(30, 40)]


def test_raw_maps_equal_their_rows():
    model = slim(norm=False).to(memory_format=torch.channels_last)
    images, rows = batch()
    with torch.no_grad():
        maps, flat = model.head_maps(images), model.head_outputs(images)
    assert [len(level) for level in maps] == [6, 6]
    assert maps[0][0].is_contiguous(memory_format=torch.channels_last)
    assert [x.shape for x in flat] == [(2, 8732, 4), (2, 8732, CLASSES)]
    torch.testing.assert_close(model.loss(*maps, rows), model.loss(*flat, rows))
    a, b = detect(*maps, model.priors), detect(*flat, model.priors)
    assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    assert (a.counts > 0).all()


def test_detect_padded_is_what_evaluation_lists():
    model = slim(max_detections=50).eval()
    image, _ = scene(150, 250)
    padded = model.detect_padded([image])
    assert padded.boxes.shape == (1, 50, 4)
    (listed,) = model([image])
    count = int(padded.counts)
    scale = torch.tensor([250, 150, 250, 150])
    torch.testing.assert_close(listed["boxes"], padded.boxes[0, :count] * scale)
    assert listed["scores"].equal(padded.scores[0, :count])


@pytest.mark.parametrize("norm", [True, False])
def test_bfloat16_autocast_and_channels_last(norm):
    model = slim(norm=norm)
    images, rows = batch()
    expected = model(images, rows)
    model = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        deltas, logits = model.head_maps(images)
        losses = model(images, rows)
    assert {x.dtype for x in deltas + logits} == {torch.bfloat16}
    assert {x.dtype for x in losses.values()} == {torch.float32}
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert len(model.eval()(images)) == 2


def test_a_bfloat16_model_keeps_its_priors():
    model = slim().bfloat16().eval()
    assert model.priors.equal(ssd300())
    assert model.transform.mean.dtype == torch.float32
    assert model([scene()[0]])[0]["boxes"].dtype == torch.float32


def test_a_model_in_float64_is_refused():
    with pytest.raises(ValueError, match=r"model: expected float32, .* got float64; model.float"):
        slim().double().eval()([scene()[0]])


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_of_the_meta_device_gets_its_weights_and_is_whole(assign):
    model = slim().eval()
    with torch.device("meta"):
        empty = slim().eval()
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict(), assign=assign)
    images = [scene()[0]]
    for found, expected in zip(empty(images), model(images), strict=True):
        assert found["boxes"].shape[0] > 0
        assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_that_was_moved_to_the_meta_device_is_whole_again(assign):
    model = slim(loss={"class_weights": [1.0, 2.0, 3.0, 4.0]}).eval()
    moved = copy.deepcopy(model).to("meta").to("meta")
    assert moved.priors.is_meta
    moved = copy.deepcopy(moved)
    if not assign:
        moved.to_empty(device="cpu")
    moved.load_state_dict(model.state_dict(), assign=assign)
    assert moved.loss.class_weights.equal(model.loss.class_weights)
    images = [scene()[0]]
    for found, expected in zip(moved(images), model(images), strict=True):
        assert found["boxes"].shape[0] > 0
        assert all(found[name].equal(expected[name]) for name in expected)


def test_training_compiles_whole_and_once():
    model = slim(norm=False)
    images, rows = batch()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for targets in (rows._replace(offsets=torch.tensor([0, 1, 2])), rows):
        expected = model(images, targets)
        actual = compiled(images, targets)
        torch.testing.assert_close(actual, expected)
    assert backend.frame_count == 1
    theirs = torch.autograd.grad(sum(expected.values()), list(model.parameters()))
    ours = torch.autograd.grad(sum(actual.values()), list(model.parameters()))
    torch.testing.assert_close(ours, theirs)


def test_detection_compiles_whole():
    model = slim().eval()
    images, _ = batch()
    compiled = torch.compile(model.detect_padded, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model.detect_padded(images))


def test_detection_exports_for_any_batch_size():
    class Detector(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model.detect_padded(images)

    model = slim().eval()
    images, _ = batch()
    size = torch.export.Dim("size", min=1, max=16)
    program = torch.export.export(Detector(model), (images,), dynamic_shapes=({0: size},))
    more = torch.cat([images, images[:1]])
    torch.testing.assert_close(program.module()(more), model.detect_padded(more))


def test_no_images():
    model = slim()
    for images in ([], torch.zeros(0, 3, 300, 300)):
        with pytest.raises(ValueError, match="images: expected at least one image to train on"):
            model.train()(images, [])
        assert model.eval()(images) == []
        assert model.detect_padded(images).counts.shape == (0,)


GOOD = torch.zeros(3, 20, 30)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([GOOD, torch.zeros(1, 20, 30)], ValueError, r"images\[1\]: .*\(3, H, W\), got \(1, 20"),
        ([torch.zeros(20, 30)], ValueError, r"images\[0\]: expected \(3, H, W\), got \(20, 30\)"),
        ([GOOD, torch.zeros(3, 0, 30)], ValueError, r"images\[1\]: .* got \(3, 0, 30\)"),
        (torch.zeros(3, 20, 30), ValueError, r"images: expected \(B, 3, H, W\), got \(3, 20, 30\)"),
        (torch.zeros(2, 4, 20, 30), ValueError, r"images: expected \(B, 3, H, W\), got \(2, 4"),
        ([GOOD.int()], TypeError, r"images\[0\]: expected floats in \[0, 1\] or uint8"),
        ([GOOD.numpy()], TypeError, r"images\[0\]: expected a \(3, H, W\) tensor, got ndarray"),
        ([GOOD.to("meta")], ValueError, r"images\[0\]: on meta, and the model on cpu"),
    ],
)
def test_bad_images_are_named(images, error, message):
    with pytest.raises(error, match=message):
        slim().eval()(images)


def test_batch_norm_trains_on_more_than_one_image():
    model = slim()
    image, target = scene()
    with pytest.raises(ValueError, match="images: batch norm trains on at least two images"):
        model([image], [target])
    model.backbone.eval()
    assert model([image], [target])["classification"] > 0


def target(box, label):
    return {"boxes": torch.tensor([box]), "labels": torch.tensor([label])}


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (None, ValueError, "targets: needed in training"),
        ([EMPTY], ValueError, "targets: expected one dictionary for each of the 2 images, got 1"),
        ([EMPTY, {**EMPTY, "boxes": [1]}], TypeError, r"targets\[1\]\['boxes'\]: .* got list"),
        ([EMPTY, {**EMPTY, "boxes": GOOD}], ValueError, r"targets\[1\]\['boxes'\]: .* \(n, 4\)"),
        (
            [EMPTY, target([9.0, 4, 9, 8], 1)],
            ValueError,
            r"targets\[1\]\['boxes'\]\[0\] is \(9.0, 4.0, 9.0, 8.0\)",
        ),
        ([EMPTY, target([1.0, 4, 9, 8], 4)], ValueError, r"targets\[1\]\['labels'\]\[0\] is 4"),
        (iter([EMPTY, EMPTY]), TypeError, "targets: expected a list of dictionaries, .* got list_"),
        (
            Targets.pack([EMPTY]),
            ValueError,
            "offsets: expected 3 numbers for a batch of 2 images, got 2, which are targets of 1",
        ),
    ],
)
def test_bad_targets_are_named(targets, error, message):
    with pytest.raises(error, match=message):
        slim()([GOOD, GOOD], targets)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"priors": "pascal"}, ValueError, r"ssd300_vgg16 has the presets 'voc', .* got 'pascal'"),
        ({"priors": ssd300()[:9]}, ValueError, r"priors: expected \(8732, 4\) corners .*\(9, 4\)"),
        (
            {"priors": replace(SSD300["voc"], feature_maps=(37, 19, 10, 5, 3, 1))},
            ValueError,
            "priors: expected the feature maps of ssd300_vgg16",
        ),
        ({"image_mean": [0.5]}, ValueError, "image_mean: expected 3 numbers"),
        ({"image_std": [0.5, 0, 1]}, ValueError, "image_std: expected positive numbers"),
        ({"loss": {"normalizer": "mean"}}, ValueError, "normalizer: expected"),
        ({"loss": ["giou"]}, TypeError, "loss: expected a mapping of MultiBoxLoss.s options"),
        ({"nms_thresh": 0.5}, TypeError, "nms_thresh"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        slim(**options)


@pytest.mark.parametrize("num_classes", [1, "21"])
def test_a_number_with_the_background(num_classes):
    with pytest.raises(ValueError, match="num_classes: expected the background and at least one"):
        ssd300_vgg16(num_classes)


def test_loss_options_reach_both_backwards():
    """Background last, an IoU loss, weights, and a region to ignore that changes the classes."""
    loss = {"box_loss": "giou", "class_weights": [1, 2, 0.5, 1], "background_index": -1}
    image, target = scene()
    target["labels"] = target["labels"] - 1
    marked = target | {"ignore": torch.tensor([False, True])}
    results = []
    for sparse in (True, False):
        model = slim(norm=False, loss=loss, sparse_head_backward=sparse)
        assert model.loss.options["background_index"] == CLASSES - 1
        results.append([model([image], [t])["classification"] for t in (target, marked)])
    torch.testing.assert_close(*results)
    assert results[0][0] != results[0][1]


def test_another_grid_changes_the_heads():
    model = slim(priors=OTHER_GRID, norm=False)
    assert len(model.priors) == len(OTHER_GRID) == 4 * (38**2 + 19**2 + 10**2 + 5**2 + 3**2 + 1)
    assert model(*[[x] for x in scene()])["classification"] > 0


DETECT_OPTIONS = ["score_threshold", "iou_threshold", "top_k", "max_detections", "nms", "sigma"]


@pytest.mark.parametrize("option", DETECT_OPTIONS)
def test_a_wrong_option_of_detect_fails_at_construction(option) -> None:
    """Not at the first evaluation, after the training."""
    wrong = math.nan if option.endswith("threshold") else -1
    with pytest.raises(ValueError, match=f"{option}: expected"):
        ssd300_vgg16(3, width=0.125, **{option: wrong})


def test_nms_may_be_changed_after_training():
    """The attribute counts at each call; an untrained model is sure of boxes that overlap."""
    model = slim(max_detections=30).eval()
    images = torch.rand(1, 3, 300, 300)
    hard = model.detect_padded(images)
    model.nms, model.sigma = "soft-gaussian", 0.1
    soft = model.detect_padded(images)
    assert not soft.boxes.equal(hard.boxes)
    expected = detect(*model.head_maps(images), model.priors, clip=(0, 0, 1, 1),
                      max_detections=30, nms="soft-gaussian", sigma=0.1)  # fmt: skip
    for one, other in zip(soft, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_fits_no_ssd_is_refused_before_training():
    with pytest.raises(ValueError, match="expected one for each of the 4 classes, got 2"):
        slim(loss={"class_weights": [1.0, 2.0]})
