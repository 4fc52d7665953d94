# SPDX-License-Identifier: BSD-3-Clause
"""Items of somebody's own dataset: taken in any real dtype, refused by name and value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast.engine.dataset_items import read_item, read_truth

IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)
BOXES = torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]])
TARGET = {"boxes": BOXES, "labels": torch.tensor([1, 2])}
NAN, INF = float("nan"), float("inf")


class Items:
    """Two images, of which the second is given."""

    class_names = ("cat", "dog")

    def __init__(self, item: Any) -> None:
        self.items = [(IMAGE, TARGET), item]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.items[index]


@pytest.mark.parametrize("read", [read_item, read_truth])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        (IMAGE, r"an image and a dict of its objects, got \(3, 8, 8\)"),
        ((IMAGE.float(), TARGET), r"an image \(3, H, W\) uint8, .*float32"),
        ((IMAGE.numpy(), TARGET), r"an image \(3, H, W\) uint8, got ndarray"),
        ((IMAGE[:, :0], TARGET), r"an image .* uint8, got \(3, 0, 8\)"),
        ((IMAGE, {"boxes": BOXES}), r"labels \(2,\) .* got NoneType"),
    ],
)
def test_an_item_that_is_none_is_named(read: Callable, item: object, message: str):
    with pytest.raises(ValueError, match=r"^dataset\[1\]: expected " + message):
        read(Items(item), 1)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "boxes",
            torch.zeros(0),
            r"boxes \(n, 4\) .*; an image without .* has torch.zeros\(0, 4\)",
        ),
        ("boxes", BOXES.bool(), r"boxes \(n, 4\) float32, corners in pixels, got .*bool"),
        ("boxes", BOXES.cfloat(), r"boxes \(n, 4\) float32, corners in pixels, got .*complex"),
        ("labels", torch.tensor([1]), r"labels \(2,\) int64, one for each box, got \(1,\)"),
        ("labels", torch.ones(2), r"labels \(2,\) int64, one for each box, got .*float32"),
        ("labels", torch.ones(2).bool(), r"labels \(2,\) int64, one for each box, got .*bool"),
        *(
            (mark, value, rf"{mark} \(2,\) bool, one for each box, got {got}")
            for mark in ("difficult", "ignore", "iscrowd")
            for value, got in (
                ([0, 1], r"list \[0, 1\]"),
                (None, "NoneType"),
                (torch.ones(2), ".*float32"),
                (torch.ones(1).bool(), r"\(1,\)"),
            )
        ),
        ("area", [16.0, 36.0], r"area \(2,\) float64, one for each box, got list"),
        ("area", torch.ones(2, 1), r"area \(2,\) float64, one for each box, got \(2, 1\)"),
        ("area", torch.ones(2).bool(), r"area \(2,\) float64, one for each box, got .*bool"),
    ],
)
def test_a_column_that_does_not_fit_is_named(column: str, value: object, message: str):
    with pytest.raises(ValueError, match=r"^dataset\[1\]: expected " + message):
        read_item(Items((IMAGE, TARGET | {column: value})), 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bfloat16, torch.float64])
def test_any_real_dtype_is_taken(dtype: torch.dtype):
    more = {"boxes": BOXES.to(dtype), "area": torch.ones(2).to(dtype), "id": "a.jpg"}
    more["labels"] = torch.tensor([1, 2], dtype=torch.uint8)
    _, target = read_item(Items((IMAGE, more)), 1)
    torch.testing.assert_close(target["boxes"], BOXES)
    torch.testing.assert_close(target["area"], torch.ones(2).double())
    torch.testing.assert_close(target["labels"], TARGET["labels"])
    assert target["ignore"].tolist() == [False, False]
    assert target["id"] == "a.jpg"


def test_an_empty_list_has_the_dtype_of_a_tensor_of_it():
    empty = {"boxes": torch.zeros(0, 4)} | {
        column: torch.tensor([]) for column in ("labels", "difficult", "iscrowd", "area")
    }
    _, target = read_truth(Items((IMAGE, empty)), 1)
    assert (target["labels"].dtype, target["ignore"].dtype) == (torch.int64, torch.bool)


def test_both_marks_are_regions():
    marks = {"ignore": torch.tensor([True, False]), "iscrowd": torch.tensor([0, 1])}
    _, target = read_item(Items((IMAGE, TARGET | marks)), 1)
    assert target["ignore"].tolist() == [True, True]


@pytest.mark.parametrize("label", [0, 3, -1])
def test_a_label_of_no_class_is_no_truth(label: int):
    items = Items((IMAGE, TARGET | {"labels": torch.tensor([1, label])}))
    message = (
        rf"^dataset\[1\]: labels\[1\] is {label}: expected from 1 to 2, .*; correct it or leave"
    )
    with pytest.raises(ValueError, match=message):
        read_truth(items, 1)
    read_item(items, 1)  # training leaves it out, and counts it


@pytest.mark.parametrize(
    "box", [(NAN, 0, 4, 4), (0, 0, INF, 4), (0, -INF, 4, 4), (4, 0, 0, 4), (0, 4, 4, 0)]
)
def test_a_broken_box_is_no_truth(box: tuple[float, ...]):
    target = TARGET | {"boxes": torch.tensor([[0, 0, 4, 4], box])}
    message = (
        r"^dataset\[1\]: boxes\[1\] is \(.*\): expected finite .*; correct it, or leave it out"
    )
    for mark in ("difficult", "ignore"):
        with pytest.raises(ValueError, match=message):
            read_truth(Items((IMAGE, target | {mark: torch.tensor([0, 1])})), 1)


@pytest.mark.parametrize("area", [NAN, INF, -1.0])
def test_an_area_that_is_none_is_no_truth(area: float):
    items = Items((IMAGE, TARGET | {"area": torch.tensor([0.0, area])}))
    with pytest.raises(ValueError, match=rf"^dataset\[1\]: area\[1\] is {area}: expected 0 or"):
        read_truth(items, 1)


def test_a_box_without_area_is_truth():
    read_truth(Items((IMAGE, TARGET | {"boxes": torch.tensor([[0, 0, 4, 4], [2, 2, 2, 2]])})), 1)
