# SPDX-License-Identifier: BSD-3-Clause
"""Training torchvision's SSDlite as its reference script does; our kernels are one line of it.

python examples/torchvision_reference.py --steps 100
"""

import argparse
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import ssd_fast
from ssd_fast.data import ShapesDataset, collate


def train_one_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable, device: torch.device
) -> list[float]:
    """The loop of torchvision's references/detection/engine.py, without its logger."""
    model.train()
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=50)
    history = []
    for images, targets in loader:
        images = [image.to(device) / 255 for image in images]
        targets = [{k: v.to(device) for k, v in target.items()} for target in targets]
        loss_dict = model(images, targets)
        losses = sum(loss for loss in loss_dict.values())
        if not math.isfinite(losses.item()):
            raise RuntimeError(f"Loss is {losses.item()}, stopping training: {loss_dict}")
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        warm_up.step()
        history.append(losses.item())
    return history


@torch.inference_mode()
def count_detections(model: nn.Module, loader: Iterable, device: torch.device) -> int:
    """Where the reference script hands detections to its evaluator."""
    model.eval()
    detections = [
        found for images, _ in loader for found in model([x.to(device) / 255 for x in images])
    ]
    return sum(int((found["scores"] > 0.5).sum()) for found in detections)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains and returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    train = ShapesDataset(args.steps * args.batch_size, size=320)
    test = ShapesDataset(args.batch_size, size=320, seed=1)
    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(train.class_names) + 1
    )
    model.to(device)
    ssd_fast.accelerate(model)  # <-- the one line that differs; ssd_fast.restore(model) undoes it
    print("on the kernels of ssd_fast:", ssd_fast.accelerated(model))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=4e-5)
    loader = DataLoader(train, args.batch_size, shuffle=True, collate_fn=collate)
    losses = train_one_epoch(model, optimizer, loader, device)
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    found = count_detections(model, DataLoader(test, 4, collate_fn=collate), device)
    print(f"{found} detections of a score above 0.5 in {len(test)} scenes that it has not seen")
    return losses


if __name__ == "__main__":
    main()
