# SPDX-License-Identifier: BSD-3-Clause
"""A detector on a GPU: its losses, gradients and detections are the CPU's, and it trains."""

import math

import pytest
import torch
from torch import nn

import ssd_fast
from ssd_fast.data import ShapesDataset
from ssd_fast.engine.initialisation import quiet_heads
from ssd_fast.engine.precision import choose_precision
from ssd_fast.engine.trainer import Trainer, TrainingOptions
from ssd_fast.models import ssd300_vgg16
from ssd_fast.models.ssd import SSD
from ssd_fast.priors import PriorBoxes


@pytest.fixture
def exact_convolutions():
    """Convolutions in float32, not in TF32, which keeps ten bits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def scenes():
    """Four images and their targets."""
    dataset = ShapesDataset(4)
    images, targets = zip(*(dataset[i] for i in range(4)), strict=True)
    return [image.float() / 255 for image in images], list(targets)


def _detector(**options):
    torch.manual_seed(0)
    return ssd300_vgg16(4, width=0.125, norm=True, **options)


def _on(device, images, targets):
    return (
        [image.to(device) for image in images],
        [{name: x.to(device) for name, x in target.items()} for target in targets],
    )


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_losses_and_gradients_of_a_model(gpu, exact_convolutions, scenes, classification):
    losses, gradients = [], []
    for device in ("cpu", gpu):
        model = _detector(classification=classification).to(device).train()
        found = model(*_on(device, *scenes))
        sum(found.values()).backward()
        losses.append(
            [float(found[name].detach()) for name in ("bbox_regression", "classification")]
        )
        heads = (p for name, p in model.named_parameters() if name.startswith("heads"))
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in heads]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert bool(gradients[1].isfinite().all())
    # Rows that are mined in each other's place, of nearly equal keys, leave a little.
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-2


def test_detections_of_a_model(gpu, exact_convolutions, scenes):
    found = []
    for device in ("cpu", gpu):
        model = _detector(score_threshold=0.3).to(device).eval()
        with torch.inference_mode():
            found.append(model(_on(device, *scenes)[0]))
    for mine, theirs in zip(*found, strict=True):
        scores = [d["scores"].cpu()[:20] for d in (theirs, mine)]
        torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-4)
        assert theirs["boxes"].device == gpu


def test_a_targets_pack_of_the_gpu(gpu, scenes):
    """Boxes and labels that are on the GPU already."""
    targets = [{name: t[name].to(gpu) for name in ("boxes", "labels")} for t in scenes[1]]
    packed = ssd_fast.Targets.pack(targets, num_classes=4, capacity=32)
    assert {x.device for x in packed[:3]} == {gpu}
    assert int(packed.offsets[-1]) == sum(len(t["labels"]) for t in targets)


def test_targets_of_the_host_make_a_step_wait_for_nothing(gpu, scenes):
    """The losses of images on the GPU, forward and backward."""
    model = _detector().to(gpu).train()
    images, targets = [image.to(gpu) for image in scenes[0]], scenes[1]
    sum(model(images, targets).values()).backward()  # compiles, which may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(images, targets).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Maps(nn.Module):
    """A backbone of two maps: compiled in seconds."""

    out_channels = (8, 8)

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


@pytest.mark.parametrize(
    ("compiled", "precision"),
    [
        ("no", "float32"),
        ("no", "bfloat16"),
        ("no", "float16"),
        ("default", "bfloat16"),
        ("cuda-graphs", "bfloat16"),
    ],
)
def test_a_trainer_trains(gpu, compiled, precision):
    """Eager, compiled, and in CUDA graphs: the loss falls."""
    torch.manual_seed(0)
    grid = PriorBoxes(64, (8, 4), (12, 24), (20, 40), ((2,), (2,)))
    cells = grid.boxes_per_cell
    model = SSD(Maps(), 4, priors=grid(), boxes_per_cell=cells, image_size=64)
    quiet_heads(model)
    options = TrainingOptions(
        steps=40, batch_size=4, warmup=5, learning_rate=0.01, augment="none", compile=compiled
    )
    arithmetic = choose_precision(gpu, precision)
    trainer = Trainer(model.to(gpu), ShapesDataset(8, size=64), options, precision=arithmetic)
    losses = [report.box_loss + report.class_loss for report in trainer.run() if not report.skipped]
    assert len(losses) > 30
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
