# SPDX-License-Identifier: BSD-3-Clause
"""SSD300 as a LightningModule: losses in the training step, average precision in validation.

pip install lightning && python examples/lightning_module.py --steps 200
"""

import argparse
from collections.abc import Sequence

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import ssd_fast
from ssd_fast.data import ShapesDataset, collate
from ssd_fast.engine.average_precision import average_precision

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Detector(lightning.LightningModule):
    """Any model with torchvision's contract goes here: (images, targets) to a dict of losses."""

    def __init__(self, num_classes: int, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = ssd_fast.ssd300_vgg16(num_classes, width=0.125, norm=True)
        self.history: list[float] = []
        self.found: list[dict[str, Tensor]] = []
        self.expected: list[dict[str, Tensor]] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The sum of both losses, each logged by its name."""
        images, targets = batch
        losses = self.model([image / 255 for image in images], targets)
        self.log_dict(losses, batch_size=len(images))
        loss = sum(losses.values())
        self.history.append(loss.item())
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collects what is found and what is there."""
        images, targets = batch
        self.found += self.model([image / 255 for image in images])
        self.expected += targets

    def on_validation_epoch_end(self) -> None:
        """Average precision at an overlap of 0.5."""
        classes = self.hparams["num_classes"]
        precision = average_precision(self.found, self.expected, num_classes=classes)
        self.log("map_50", precision.mean, prog_bar=True)
        self.found, self.expected = [], []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One rate for all parameters."""
        return torch.optim.AdamW(self.parameters(), self.hparams["lr"])


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains, validates, and returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args(arguments)
    train = ShapesDataset(args.steps * args.batch_size)
    held_out = ShapesDataset(args.batch_size, seed=1)
    detector = Detector(len(train.class_names) + 1)
    trainer = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    loaders = [DataLoader(x, args.batch_size, collate_fn=collate) for x in (train, held_out)]
    trainer.fit(detector, *loaders)
    print(f"mAP@0.5 {float(trainer.callback_metrics['map_50']):.3f}")
    return detector.history


if __name__ == "__main__":
    main()
