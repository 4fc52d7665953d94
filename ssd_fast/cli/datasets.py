# SPDX-License-Identifier: BSD-3-Clause
"""What `--data` means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ssd_fast.cli.console import Console
from ssd_fast.cli.home import expand_home

if TYPE_CHECKING:
    from ssd_fast.data import Problem
    from ssd_fast.engine.dataset_items import DetectionDataset

__all__ = [
    "Folders",
    "Validation",
    "check_class_names",
    "describe",
    "find_folders",
    "open_dataset",
    "open_validation",
    "pick_image_set",
    "tell_problems",
]

SHAPES_TRAINING, SHAPES_HELD_OUT = 4000, 200
_SHOWN = 20
_FORMS = "a folder in VOC or COCO layout, several in VOC layout with commas between, or shapes"


class Folders(NamedTuple):
    """Where the images are.

    Attributes:
        layout: "voc" or "coco".
        roots: the folders, one for "coco".
    """

    layout: Literal["voc", "coco"]
    roots: tuple[Path, ...]


class Validation(NamedTuple):
    """What a training run is measured on.

    Attributes:
        name: of the set.
        dataset: its images.
        problems: what was left out of it.
        shared: how many of its images are training images.
    """

    name: str
    dataset: DetectionDataset
    problems: tuple[Problem, ...]
    shared: int


def find_folders(data: str | Sequence[str]) -> Folders | None:
    """The folders that an argument names.

    Args:
        data: a folder, "voc:FOLDER" or "coco:FOLDER" to say which layout, several folders in VOC
            layout with commas between or as a sequence, or "shapes".

    Returns:
        The folders; None for "shapes", the generated scenes.

    Raises:
        ValueError: a folder is missing, or its layout is unknown.
    """
    from ssd_fast.data.layout import find_layout

    parts = [data] if isinstance(data, str) else list(data)
    if parts == ["shapes"]:
        return None
    if not any(parts):
        raise ValueError(f"--data is missing: {_FORMS}")
    layout: Literal["voc", "coco"] | None = None
    if parts[0].startswith("voc:"):
        layout, parts[0] = "voc", parts[0].removeprefix("voc:")
    elif parts[0].startswith("coco:"):
        layout, parts[0] = "coco", parts[0].removeprefix("coco:")
    roots = tuple(folder for part in parts for folder in _split(part))
    if not roots:
        after = f" after {layout}:" if layout else ""
        raise ValueError(f"--data: expected a folder{after}, got {data!r}")
    missing = next((root for root in roots if not root.is_dir()), None)
    if missing is not None:
        raise ValueError(f"--data: {missing}: there is no such folder; expected {_FORMS}")
    layout = layout or find_layout(roots)
    if layout == "coco" and len(roots) > 1:
        raise ValueError(f"--data: expected one folder in COCO layout, got {len(roots)}")
    return Folders(layout, roots)


def describe(data: str | Sequence[str]) -> str:
    """What an argument means, in a line.

    Args:
        data: as for `find_folders`.

    Returns:
        The layout and the folders.

    Raises:
        ValueError: as `find_folders`.
    """
    from ssd_fast.data.voc_folder import find_voc_folders

    folders = find_folders(data)
    if folders is None:
        return "generated scenes"
    roots = folders.roots
    if folders.layout == "voc":
        roots = tuple(year.root for year in find_voc_folders(roots))
    return f"{folders.layout.upper()} layout in {', '.join(map(str, roots))}"


def open_dataset(
    data: str | Sequence[str],
    image_set: str,
    class_names: Sequence[str] | None = None,
    *,
    difficult: Literal["use", "ignore", "drop"] = "use",
) -> tuple[DetectionDataset, tuple[Problem, ...]]:
    """Opens a dataset.

    Args:
        data: as for `find_folders`.
        image_set: of a folder; of the scenes, "train" or any other name for the held-out ones.
        class_names: the classes a model knows; None takes those of the data.
        difficult: what becomes of objects that VOC marks so: objects like others, regions that
            training ignores, or nothing. Evaluation needs "use". COCO's crowds are ignored anyway.

    Returns:
        The dataset, and what was left out of it.

    Raises:
        ValueError: `data` names no folder in a known layout, or the folder has no such set.
    """
    from ssd_fast.data import COCODataset, ShapesDataset, VOCDataset

    folders = find_folders(data)
    if folders is None:
        training = image_set == "train"
        length = SHAPES_TRAINING if training else SHAPES_HELD_OUT
        return ShapesDataset(length, seed=0 if training else 1), ()
    if folders.layout == "coco":
        coco = COCODataset(folders.roots[0], image_set, class_names=class_names)
        return coco, coco.problems
    voc = VOCDataset(
        folders.roots,
        image_set,
        class_names=class_names,
        keep_difficult=difficult != "drop",
        ignore_difficult=difficult == "ignore",
    )
    return voc, voc.problems


def pick_image_set(data: str | Sequence[str], wanted: str, *, among: Sequence[str]) -> str:
    """The set to evaluate on.

    Args:
        data: as for `find_folders`.
        wanted: a set by name, or "" for the first of `among` that the folder has.
        among: names in order of preference.

    Returns:
        A name.

    Raises:
        ValueError: as `find_folders`.
    """
    return (_image_sets(data, among) if not wanted else [wanted])[0]


def open_validation(
    data: str | Sequence[str],
    wanted: str,
    training: DetectionDataset,
    train_set: str,
) -> Validation:
    """Opens what a training run is measured on: images that it does not train on, if there are any.

    Args:
        data: as for `find_folders`.
        wanted: a set by name, or "" for the first of val and test without training images. Where
            there is none, the first of the two that the folder has, or else the training set.
        training: the images to train on, whose classes count.
        train_set: their set.

    Returns:
        The set, and how many of its images are training images.

    Raises:
        ValueError: as `open_dataset`.
    """
    names = [wanted] if wanted else _image_sets(data, ("val", "test", train_set))
    first: Validation | None = None
    for name in names:
        try:
            dataset, problems = open_dataset(data, name, training.class_names)
        except ValueError:
            if first is None:
                raise
            continue  # no way out of the first one's overlap: as a test set without annotations
        found = Validation(name, dataset, problems, _count_shared(dataset, training))
        if not found.shared:
            return found
        first = first or found
    assert first is not None  # there is a name, and the first one opens or raises
    return first


def _image_sets(data: str | Sequence[str], among: Sequence[str]) -> list[str]:
    """Those of the names whose sets the data has; the first name where it has none of them."""
    from ssd_fast.data.coco_layout import find_sets, pick_sets
    from ssd_fast.data.voc_folder import find_voc_folders

    folders = find_folders(data)
    if folders is None:
        return [among[0]]
    if folders.layout == "coco":
        sets = find_sets(folders.roots[0])
        found = [name for name in among if pick_sets(sets, name)]
    else:
        years = find_voc_folders(folders.roots)
        found = [name for name in among if any(year.has(name) for year in years)]
    return found or [among[0]]


def _count_shared(dataset: DetectionDataset, training: DetectionDataset) -> int:
    """How many images of a dataset are images of another."""
    known = set(_identities(training))
    return sum(image in known for image in _identities(dataset))


def _identities(dataset: DetectionDataset) -> Sequence[object]:
    """What tells images apart: their files, or the seed and the number of a generated scene."""
    from ssd_fast.data import COCODataset, ShapesDataset, VOCDataset

    if isinstance(dataset, ShapesDataset):
        return [(dataset.seed, i) for i in range(len(dataset))]
    return dataset.paths if isinstance(dataset, VOCDataset | COCODataset) else ()


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
        console.say(f"  and {len(problems) - _SHOWN} more; ssd-fast check lists all")


def _split(text: str) -> list[Path]:
    """The folders of a list with commas between, unless there is one folder of that very name."""
    whole = expand_home(text, "--data")
    if not text or whole.is_dir():
        return [whole] if text else []
    return [expand_home(part, "--data") for part in text.split(",") if part]


def _count(number: int, noun: str) -> str:
    """A number with its noun, and nothing for none."""
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""
