# SPDX-License-Identifier: BSD-3-Clause
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssd_fast.data import BrokenSample, Problem
from ssd_fast.data.inspection import ClassCount, inspect


class Folder:
    """Images of 40 x 20 pixels with a dog each, the first a difficult one; some do not decode."""

    class_names = ("cat", "dog")
    problems = (Problem(Path("known.xml"), 3, "no area"),)

    def __init__(self, length: int, broken: tuple[int, ...] = ()) -> None:
        self.length, self.broken = length, broken
        self.reads = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(Path(f"{i}.jpg") for i in range(self.length))

    def __len__(self) -> int:
        return self.length

    def target(self, index: int) -> dict[str, Tensor]:
        return {
            "boxes": torch.tensor([[0.0, 0, 10, 10]]),
            "labels": torch.tensor([2]),
            "difficult": torch.tensor([index == 0]),
        }

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.reads += 1
        if index in self.broken:
            raise BrokenSample(f"{index}.jpg", "torn")
        return torch.zeros(3, 20, 40, dtype=torch.uint8), self.target(index)


@pytest.mark.parametrize("workers", [None, 1, 5])
def test_counts(workers: int | None) -> None:
    seen: list[None] = []
    datasets = {"train": Folder(6, broken=(4, 2)), "val": Folder(1)}
    found = inspect(datasets, workers=workers, on_image=lambda: seen.append(None))
    assert found.images == {"train": 4, "val": 1}
    assert found.objects == {"train": 4, "val": 1}
    assert found.classes == (ClassCount("cat", 0, 0, 0), ClassCount("dog", 5, 5, 2))
    assert found.sizes == {(40, 20): 5}
    assert found.sides.tolist() == [[0.25, 0.5]] * 5
    assert found.empty == 0
    known = "known.xml, object 3: no area"
    assert list(map(str, found.problems)) == [known, known, "2.jpg: torn", "4.jpg: torn"]
    assert len(seen) == 7


def test_nothing_to_count() -> None:
    found = inspect({})
    assert found.sides.shape == (0, 2)
    assert (found.images, found.classes, found.problems) == ({}, (), ())
    with pytest.raises(ValueError, match="workers: expected 1 or more, got 0"):
        inspect({}, workers=0)


def test_an_interruption_waits_for_no_other_image() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    folder = Folder(20_000)
    with pytest.raises(KeyboardInterrupt):
        inspect({"train": folder}, workers=1, on_image=interrupt)
    assert folder.reads < 20_000
