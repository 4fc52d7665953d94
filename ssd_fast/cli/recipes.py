# SPDX-License-Identifier: BSD-3-Clause
"""Recipes: options of `ssd-fast train` that belong together, by the name of their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

__all__ = ["RECIPES", "recipe_options"]

_IMAGENET = "VGG16_Weights.IMAGENET1K_FEATURES"
# The SSD300 of the paper, from VGG16 trained on ImageNet, by plain SGD.
_PAPER: dict[str, Any] = {
    "width": 1.0,
    "norm": False,
    "backbone_weights": _IMAGENET,
    "batch_size": 32,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "gamma": 0.1,
    "clip_norm": float("inf"),
    "average": 0.0,
    "augment": "ssd",
}
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Liu et al., 2016 (arXiv:1512.02325v5), section 3.1, for VOC 2007 + 2012: batches of 32,
        # 1e-3 for 40k steps, 1e-4 for 10k, 1e-5 for 10k, momentum 0.9, decay 0.0005.
        "paper-voc": {
            **_PAPER,
            "priors": "voc",
            "steps": 60_000,
            "learning_rate": 1e-3,
            "warmup": 0,
            "milestones": (2 / 3, 5 / 6),
        },
        # torchvision, references/detection/README.md, "SSD300 VGG16": 8 GPUs with 4 images each,
        # --epochs 120 --lr-steps 80 110 --lr 0.002 --weight-decay 0.0005; its train.py warms up
        # for 1000 steps. Of a backbone with weights, its ssd300_vgg16 trains 4 of the 5 stages
        # (trainable_backbone_layers); of one without, all.
        "torchvision-coco": {
            **_PAPER,
            "priors": "torchvision",
            "freeze": 1,
            "augment": "torchvision",
            "epochs": 120.0,
            "learning_rate": 2e-3,
            "warmup": 1000,
            "milestones": (80 / 120, 110 / 120),
        },
        # Ours: from a detector's backbone, named by --backbone-weights; the first two stages stay,
        # as in torchvision's ssd300_vgg16 by default but one more, for data that is scarce.
        "finetune": {
            "epochs": 30.0,
            "learning_rate": 5e-4,
            "warmup": 100,
            "schedule": "cosine",
            "freeze": 2,
            "average": 0.99,
            "augment": "ssd",
        },
    }
)


def recipe_options(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of the recipe that a command line names, which its own options go on top of.

    Args:
        arguments: of `ssd-fast train`.

    Returns:
        Fields of `Train`; none without `--recipe`, or for a name that the parser will refuse.
    """
    typed = [argument.partition("=")[0] for argument in arguments]
    value = _typed(arguments, "--recipe")
    if value not in RECIPES:
        return {}
    options = {"recipe": value, **RECIPES[value]}
    if "backbone_weights" in options and _typed(arguments, "--backbone-weights") == "none":
        options.pop("freeze", None)  # the source freezes trained stages, and no others
    if "--epochs" in typed:
        options.pop("steps", None)  # which would go before the epochs that were asked for
    return options


def _typed(arguments: Sequence[str], option: str) -> str:
    """The value that follows an option; "" without it."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else "".join(arguments[i + 1 : i + 2])
    return ""
