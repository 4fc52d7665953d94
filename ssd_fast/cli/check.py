# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast check`: every broken file and box of a folder, before training meets them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd_fast.cli.console import Console
    from ssd_fast.cli.datasets import Folders
    from ssd_fast.data.inspection import FolderDataset, Inspection
    from ssd_fast.data.problems import Problem

__all__ = ["Check"]

_BROKEN = 1
_SIDE = 300  # SSD300's
_SMALLEST_BOX = 30  # the smallest default box of SSD300 on VOC
_SHOWN_SIZES = 5


@dataclass(frozen=True)
class Check:
    """Decodes every image, lists each broken file and box, and counts classes and sizes.

    The exit status is 1 if something is broken.
    """

    data: str
    """Folder in VOC or COCO layout, or several in VOC layout with commas between."""
    workers: int = 0
    """Threads that decode; 0 is one for each processor."""

    def run(self) -> int:
        """Reads, counts and prints."""
        from ssd_fast.cli.extras import require

        require("checking data", "rich", "PIL", "defusedxml")
        from rich.progress import track

        from ssd_fast.cli.console import Console
        from ssd_fast.cli.datasets import find_folders
        from ssd_fast.data.inspection import inspect

        if self.workers < 0:
            raise ValueError(f"--workers: expected 0 or more, got {self.workers}")
        console = Console()
        folders = find_folders(self.data)
        if folders is None:
            raise ValueError("--data: generated scenes need no check; name a folder")
        datasets, listed, notes = _open(folders)
        shown = iter(
            track(
                range(sum(map(len, datasets.values()))),
                "decoding",
                console=console.rich,
                transient=True,
                disable=not console.rich.is_terminal,
            )
        )
        found = inspect(datasets, workers=self.workers or None, on_image=lambda: next(shown, None))
        next(shown, None)  # ends the bar
        where = ", ".join(map(str, folders.roots))
        console.say(f"{where}: {folders.layout.upper()} layout")
        _tell_counts(found, console)
        for note in notes:
            console.say(note)
        return _tell_broken([*listed, *found.problems], console)


def _open(folders: Folders) -> tuple[Mapping[str, FolderDataset], list[Problem], list[str]]:
    """Every set of a folder, what its lists name in vain, and what is odd but not broken."""
    if folders.layout == "coco":
        return _open_coco(folders)
    from ssd_fast.data.problems import EmptyDatasetError, Problem
    from ssd_fast.data.voc import VOCDataset
    from ssd_fast.data.voc_folder import find_voc_folders

    problems: list[Problem] = []
    notes: list[str] = []
    for year in find_voc_folders(folders.roots):
        names = {name: year.names(name) for name in year.sets if name in _VOC_SETS}
        for image_set, listed in names.items():
            missing = [name for name in listed if name not in year.annotated]
            message = f"the annotation is missing, and the set {image_set} lists it"
            problems += [Problem(year.annotation_path(name), None, message) for name in missing]
        sets = ", ".join(f"{name} {len(listed)}" for name, listed in names.items())
        sets = sets or "none, so every fifth image, or the last of fewer, is held out"
        notes.append(f"Sets of {year.root}: {sets}")
        held_out = {name: names.get(name, []) for name in ("train", "val", "test")}
        notes += _shared({name: set(listed) for name, listed in held_out.items()})
        stems = Counter(path.stem for path in set(year.images.values()))
        twins = sorted(stem for stem, count in stems.items() if count > 1)
        if twins:
            notes.append(f"Several images of {year.root} have one name: {', '.join(twins)}")
        spare = {path.stem for path in year.images.values()} - year.annotated
        if spare:
            notes.append(f"{len(spare)} images of {year.root} have no annotation and are not used")
    try:
        return {"all": VOCDataset(folders.roots, "all")}, problems, notes
    except EmptyDatasetError as error:
        return {}, [*problems, *error.problems], notes


_VOC_SETS = ("train", "val", "trainval", "test")


def _open_coco(folders: Folders) -> tuple[Mapping[str, FolderDataset], list[Problem], list[str]]:
    from ssd_fast.data.coco import COCODataset
    from ssd_fast.data.coco_layout import find_sets
    from ssd_fast.data.problems import EmptyDatasetError, Problem

    root = folders.roots[0]
    datasets: dict[str, COCODataset] = {}
    problems: list[Problem] = []
    sets = find_sets(root)
    if not sets:
        raise ValueError(f"{root}: found no annotations in COCO's format")
    for name, place in sets.items():
        try:
            # Every image is decoded later, so none is opened twice.
            datasets[name or "all"] = COCODataset(root, name or "all", verify=False)
        except EmptyDatasetError as error:
            nothing = [Problem(place.annotations, None, "it lists no image")]
            problems += error.problems or nothing
        except ValueError as error:
            reason = str(error).removeprefix(f"{place.annotations}: ")
            problems.append(Problem(place.annotations, None, reason))
    notes = [*_shared({name: set(dataset.paths) for name, dataset in datasets.items()})]
    first = next(iter(datasets), "")
    for name in datasets:
        known = datasets[first].class_names
        new = [c for c in datasets[name].class_names if c not in known]
        if new:
            notes.append(f"{name} has classes that {first} lacks: {', '.join(new)}")
    return datasets, problems, notes


def _shared(sets: Mapping[str, set[Any]]) -> Iterator[str]:
    """A line for each two sets with images in common."""
    names = list(sets)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            common = len(sets[name] & sets[other])
            if common:
                yield f"{common} images are in {name} and in {other}: results would not be honest"


def _tell_counts(found: Inspection, console: Console) -> None:
    """Classes, images and sizes."""
    from rich.table import Table

    for name, images in found.images.items():
        console.say(f"{name}: {images} images that decode, {found.objects[name]} objects")
    if found.empty:
        console.say(f"{found.empty} images have no object; train --min-negatives 3 uses them")
    table = Table("class", title=f"{len(found.classes)} classes", title_justify="left")
    for heading in ("images", "objects", "difficult or crowd"):
        table.add_column(heading, justify="right")
    for count in found.classes:
        numbers = (count.images, count.objects, count.difficult)
        table.add_row(console.cell(count.name), *map(str, numbers))
    console.rich.print(table)
    console.say(f"Images: {_sizes(found.sizes)}")
    if len(found.sides):
        shorter = found.sides.amin(1).mul(_SIDE).sort().values
        low, middle, high = (
            float(shorter[int(share * (len(shorter) - 1))]) for share in (0.0, 0.5, 1.0)
        )
        below = int((shorter < _SMALLEST_BOX).sum())
        console.say(
            f"Shorter side of objects once an image is {_SIDE} x {_SIDE}: {low:.0f} to {high:.0f}"
            f" pixels, median {middle:.0f}; {below} of {len(shorter)} below {_SMALLEST_BOX}, the"
            " smallest default box"
        )


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    most = ", ".join(f"{w} x {h} ({n})" for (w, h), n in sizes.most_common(_SHOWN_SIZES))
    more = len(sizes) - _SHOWN_SIZES
    return f"{most} and {more} other sizes" if more > 0 else most or "none"


def _tell_broken(problems: list[Problem], console: Console) -> int:
    """Lists what is broken; the exit status."""
    if not problems:
        console.say("Nothing is broken.")
        return 0
    objects = sum(problem.object is not None for problem in problems)
    console.say(f"Broken: {len(problems) - objects} files, {objects} objects")
    for problem in problems:
        console.say(f"  {problem}")
    return _BROKEN
