# SPDX-License-Identifier: BSD-3-Clause
"""SSD300 under transformers.Trainer: a model that returns "loss", a collator that names its inputs.

pip install transformers accelerate && python examples/huggingface_trainer.py --steps 200
"""

import argparse
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import ssd_fast
from ssd_fast.data import ShapesDataset


class ForTrainer(nn.Module):
    """What Trainer asks of a model: inputs by name, a dictionary that begins with "loss"."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Losses in training; in evaluation detections, without a loss."""
        result = self.detector(images, targets)
        if not self.training:
            return {"detections": result}
        return {"loss": sum(result.values()), **result}


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Any]:
    """Images in [0, 1] of any sizes, and targets: lists, which Trainer moves to the device."""
    return {
        "images": [image / 255 for image, _ in samples],
        "targets": [target for _, target in samples],
    }


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains and returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args(arguments)
    scenes = ShapesDataset(args.steps * args.batch_size)
    detector = ssd_fast.ssd300_vgg16(len(scenes.class_names) + 1, width=0.125, norm=True)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            ForTrainer(detector),
            TrainingArguments(
                folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch_size,
                learning_rate=2e-3,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,  # or Trainer looks for columns named like arguments
                dataloader_pin_memory=False,
            ),
            train_dataset=scenes,
            data_collator=collate,
        )
        trainer.train()
    return [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    main()
