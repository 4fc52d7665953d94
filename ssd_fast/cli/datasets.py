# SPDX-License-Identifier: BSD-3-Clause
"""What `--data` means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_fast.cli.console import Console

if TYPE_CHECKING:
    from ssd_fast.data import Problem
    from ssd_fast.engine.batches import DetectionDataset

__all__ = ["check_class_names", "open_dataset", "pick_image_set", "tell_problems"]

SHAPES_TRAINING, SHAPES_HELD_OUT = 4000, 200
_SHOWN = 20


def open_dataset(
    data: str, image_set: str, class_names: Sequence[str] | None = None
) -> tuple[DetectionDataset, tuple[Problem, ...]]:
    """Opens a dataset.

    Args:
        data: "voc:PATH", or "shapes" for generated scenes.
        image_set: of a VOC folder; of the scenes, "train" or any other name for the held-out ones.
        class_names: the classes a model knows; None takes those of the data.

    Returns:
        The dataset, and what was left out of it.

    Raises:
        ValueError: `data` is neither, or the folder is not in VOC layout.
    """
    from ssd_fast.data import ShapesDataset, VOCDataset

    kind, _, path = data.partition(":")
    if kind == "voc" and path:
        dataset = VOCDataset(Path(path).expanduser(), image_set, class_names=class_names)
        return dataset, dataset.problems
    if data == "shapes":
        training = image_set == "train"
        length = SHAPES_TRAINING if training else SHAPES_HELD_OUT
        return ShapesDataset(length, seed=0 if training else 1), ()
    if not data:
        raise ValueError("--data is missing: voc:PATH for a folder in VOC layout, or shapes")
    raise ValueError(f"--data: expected voc:PATH or shapes, got {data!r}")


def pick_image_set(data: str, wanted: str, *, among: Sequence[str]) -> str:
    """The set to evaluate on.

    Args:
        data: as for `open_dataset`.
        wanted: a set by name, or "" for the first of `among` that the folder has.
        among: names in order of preference.

    Returns:
        A name.
    """
    lists = Path(data.partition(":")[2]).expanduser() / "ImageSets" / "Main"
    if wanted or not data.startswith("voc:") or not lists.is_dir():
        return wanted or among[0]
    return next((name for name in among if (lists / f"{name}.txt").is_file()), among[0])


def check_class_names(known: Sequence[str], data: Sequence[str], weights: str) -> None:
    """Stops if the data has classes that the weights do not know.

    Args:
        known: the classes of the weights.
        data: the classes of the data.
        weights: the file, for the message.

    Raises:
        ValueError: naming both.
    """
    if not set(data) <= set(known):
        raise ValueError(
            f"{weights} knows {len(known)} classes ({', '.join(known)}), the data has {len(data)}"
            f" ({', '.join(data)}); take the weights that were trained for this data, or train anew"
        )


def tell_problems(problems: Sequence[Problem], image_set: str, console: Console) -> None:
    """Names what was left out of a dataset.

    Args:
        problems: from `open_dataset`.
        image_set: the set's name.
        console: where.
    """
    if not problems:
        return
    objects = sum(problem.object is not None for problem in problems)
    counts = [_count(objects, "object"), _count(len(problems) - objects, "image")]
    console.say(f"Left out of {image_set}, because broken: {' and '.join(filter(None, counts))}")
    for problem in problems[:_SHOWN]:
        console.say(f"  {problem}")
    if len(problems) > _SHOWN:
        console.say(f"  and {len(problems) - _SHOWN} more")


def _count(number: int, noun: str) -> str:
    """A number with its noun, and nothing for none."""
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""
