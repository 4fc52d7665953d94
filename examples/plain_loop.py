# SPDX-License-Identifier: BSD-3-Clause
"""A detector of your own in plain PyTorch: MultiBoxLoss to train it, ops.detect to use it.

python examples/plain_loop.py --steps 200
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import ssd_fast
from ssd_fast.data import ShapesDataset

SIZE, BATCH = 128, 8
GRID = ssd_fast.priors.PriorBoxes(SIZE, (16, 8), (16, 40), (40, 80), ((2,), (2,)))


def block(before: int, after: int) -> nn.Sequential:
    """Half the size, `after` channels."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()
    )


class Detector(nn.Module):
    """Two maps with four boxes a cell. The heads' raw maps go into the loss as they are."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(block(3, 16), block(16, 32), block(32, 64))
        self.coarse = block(64, 64)
        boxes = GRID.boxes_per_cell
        self.deltas = nn.ModuleList(nn.Conv2d(64, a * 4, 3, padding=1) for a in boxes)
        self.logits = nn.ModuleList(nn.Conv2d(64, a * num_classes, 3, padding=1) for a in boxes)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Two lists of maps, (B, A * 4, H, W) and (B, A * C, H, W)."""
        fine = self.fine(images)
        maps = [fine, self.coarse(fine)]
        return (
            [head(x) for head, x in zip(self.deltas, maps, strict=True)],
            [head(x) for head, x in zip(self.logits, maps, strict=True)],
        )


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains, detects in one scene, and returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args(arguments).steps
    scenes = ShapesDataset(steps * BATCH + 1, size=SIZE, min_objects=0)
    model = Detector(len(scenes.class_names) + 1)
    # Objects in the unit of the priors; images without objects train at least 3 negatives.
    criterion = ssd_fast.MultiBoxLoss(GRID(), min_negatives=3)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    for step in range(steps):
        samples = [scenes[step * BATCH + i] for i in range(BATCH)]
        images = torch.stack([image for image, _ in samples]) / 255
        targets = [{**target, "boxes": target["boxes"] / SIZE} for _, target in samples]
        loss = sum(criterion(*model(images), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    print(f"loss: {history[0]:.3f} at first, {history[-1]:.3f} at last")

    image, target = scenes[steps * BATCH]
    with torch.no_grad():
        found = ssd_fast.ops.detect(*model.eval()(image[None] / 255), criterion.priors)
    for name, values in found.to_list([(SIZE, SIZE)])[0].items():
        print(name, values[: len(target["labels"])].tolist())
    return history


if __name__ == "__main__":
    main()
