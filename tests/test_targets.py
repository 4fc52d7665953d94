# SPDX-License-Identifier: BSD-3-Clause
"""Targets: packing, padding, and one clear error for whatever no detector can learn from."""

import pickle
import re

import pytest
import torch

from ssd_fast.targets import Targets, _has_area, _is_class

GOOD = [
    {"boxes": torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 9]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[-4.0, 2, 400, 4]]), "labels": torch.tensor([2])},
]


def image(box=(0.0, 0.0, 4.0, 4.0), label=1):
    return {"boxes": torch.tensor([box]), "labels": torch.tensor([label])}


def test_packs_ragged_rows():
    packed = Targets.pack(GOOD, num_classes=3)
    assert packed.boxes.tolist() == [[0, 0, 10, 20], [5, 5, 9, 9], [-4, 2, 400, 4]]
    assert packed.labels.tolist() == [1, 2, 2]
    assert packed.offsets.tolist() == [0, 2, 2, 3]
    assert (packed.dropped, packed.num_images) == (0, 3)
    assert [t.dtype for t in packed[:3]] == [torch.float32, torch.int64, torch.int64]


@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
@pytest.mark.parametrize("invalid", ["raise", "drop"])
def test_marked_objects_become_regions_to_ignore(key, dtype, invalid):
    marked = GOOD[0] | {key: torch.tensor([0, 1], dtype=dtype)}
    marked["labels"] = torch.tensor([1, 99], dtype=torch.uint8)
    packed = Targets.pack([marked, *GOOD[1:]], num_classes=3, invalid=invalid)
    assert packed.labels.tolist() == [1, -1, 2]
    assert packed.offsets.tolist() == [0, 2, 2, 3]
    assert packed.dropped == 0
    assert marked["labels"].tolist() == [1, 99]


def test_both_marks_and_marks_already_packed():
    marks = {"ignore": torch.tensor([True, False]), "iscrowd": torch.tensor([0, 1])}
    assert Targets.pack([GOOD[0] | marks]).labels.tolist() == [-1, -1]
    again = {"boxes": GOOD[0]["boxes"], "labels": torch.tensor([-1, -1])}
    assert Targets.pack([again | marks]).labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match=r"\['labels'\]\[0\] is -1: .*mark .* in 'ignore'"):
        Targets.pack([again])


def test_a_region_to_ignore_needs_an_area():
    broken = image((3.0, 0, 1, 4)) | {"ignore": torch.tensor([True])}
    assert Targets.pack([broken], invalid="drop").dropped == 1
    with pytest.raises(ValueError, match=r"\['boxes'\]\[0\] is .* expected finite corners"):
        Targets.pack([broken])


@pytest.mark.parametrize(
    ("marks", "error", "message"),
    [
        ([True], TypeError, r"targets\[0\]\['ignore'\]: expected a tensor, got list"),
        (torch.tensor([True, True]), ValueError, r"\['ignore'\]: expected shape \(1,\)"),
        (torch.tensor([0.5]), TypeError, r"\['ignore'\]: expected bool or integers"),
    ],
)
def test_wrong_marks_are_named(marks, error, message):
    with pytest.raises(error, match=message):
        Targets.pack([image() | {"ignore": marks}])


def test_arguments_are_left_alone():
    before = pickle.dumps(GOOD)
    packed = Targets.pack(GOOD[:1], capacity=4)
    packed.boxes.fill_(7)
    assert pickle.dumps(GOOD) == before


@pytest.mark.parametrize("capacity", [3, 4, 100])
def test_capacity_fixes_the_number_of_rows(capacity):
    packed = Targets.pack(GOOD, capacity=capacity)
    assert packed.boxes.shape == (capacity, 4)
    assert packed.labels.shape == (capacity,)
    assert packed.offsets.tolist() == [0, 2, 2, 3]
    assert not packed.boxes[3:].any()
    assert not packed.labels[3:].any()


def test_capacity_must_hold_every_object():
    with pytest.raises(ValueError, match="capacity: the batch has 3 objects, more than 2"):
        Targets.pack(GOOD, capacity=2)


@pytest.mark.parametrize("targets", [[], GOOD[1:2], GOOD[1:2] * 3])
@pytest.mark.parametrize("capacity", [None, 5])
def test_no_objects_or_no_images(targets, capacity):
    packed = Targets.pack(targets, capacity=capacity)
    assert packed.boxes.shape == (capacity or 0, 4)
    assert packed.offsets.tolist() == [0] * (len(targets) + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.int32])
def test_boxes_become_float32(dtype):
    packed = Targets.pack([{"boxes": GOOD[0]["boxes"].to(dtype), "labels": torch.tensor([1, 2])}])
    assert packed.boxes.dtype == torch.float32
    assert torch.equal(packed.boxes, GOOD[0]["boxes"])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_become_int64(dtype):
    packed = Targets.pack(
        [{"boxes": GOOD[0]["boxes"], "labels": torch.tensor([1, 2], dtype=dtype)}]
    )
    assert packed.labels.dtype == torch.int64
    assert packed.labels.tolist() == [1, 2]


def test_an_image_without_objects_may_have_float_labels():
    assert Targets.pack([{"boxes": torch.zeros(0, 4), "labels": torch.tensor([])}]).num_images == 1


BROKEN_BOXES = [
    (1.0, 1.0, 1.0, 4.0),  # no width
    (1.0, 4.0, 3.0, 4.0),  # no height
    (4.0, 1.0, 1.0, 3.0),  # inverted in x
    (4.0, 4.0, 1.0, 1.0),  # inverted in both, area positive
    (float("nan"), 0.0, 1.0, 1.0),
    (0.0, 0.0, float("inf"), 1.0),
    (float("-inf"), 0.0, 1.0, 1.0),
    (0.0, 0.0, 1e-30, 1e-30),  # the float32 area is 0
    (0.0, 0.0, 3e30, 3e30),  # the float32 area is infinite
]


@pytest.mark.parametrize("box", BROKEN_BOXES)
def test_broken_box_is_named(box):
    with pytest.raises(ValueError, match=r"targets\[1\]\['boxes'\]\[0\] is \(.*invalid='drop'"):
        Targets.pack([image(), image(box), image()])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0, r"targets\[2\]\['labels'\]\[0\] is 0, the background"),
        (-1, r"targets\[2\]\['labels'\]\[0\] is -1: expected at least 0 and less than .* = 21"),
        (21, r"targets\[2\]\['labels'\]\[0\] is 21: expected at least 0 and less than"),
    ],
)
def test_broken_label_is_named(label, message):
    with pytest.raises(ValueError, match=message):
        Targets.pack([*GOOD[:2], image(label=label)], num_classes=21)


@pytest.mark.parametrize("background_index", [0, 2, 9, None])
def test_what_extremes_tell_is_what_every_object_tells(background_index):
    corners = torch.tensor([0.0, 0.5, 1.0, 1.5, 1e-30, 2e-30, 3e38, -3e38, float("inf")])
    corners = torch.cat([corners, corners[:4], torch.tensor([float("nan")])])
    generator = torch.Generator().manual_seed(0)
    refusals = 0
    for _ in range(200):
        n = int(torch.randint(1, 4, (), generator=generator))
        # In order, for boxes that are inverted are refused whatever else they are.
        ordered = corners[torch.randint(len(corners), (n, 4), generator=generator)].sort(1).values
        boxes = ordered[:, [0, 2, 1, 3]]
        labels = torch.randint(-1, 4, (n,), generator=generator)
        good = bool((_is_class(labels, 3, background_index) & _has_area(boxes)).all())
        refusals += not good
        target = {"boxes": boxes, "labels": labels}
        if good:
            Targets.pack([target], num_classes=3, background_index=background_index)
        else:
            with pytest.raises(ValueError, match=r"targets\[0\]"):
                Targets.pack([target], num_classes=3, background_index=background_index)
    assert 0 < refusals < 200


def test_labels_are_not_bounded_without_num_classes():
    assert Targets.pack([image(label=10**6)]).labels.tolist() == [10**6]


def test_background_may_be_another_class():
    assert Targets.pack([image(label=0)], background_index=20, num_classes=21).labels.tolist() == [
        0
    ]
    with pytest.raises(ValueError, match="is 20, the background"):
        Targets.pack([image(label=20)], background_index=20, num_classes=21)


def test_drop_leaves_broken_objects_out_and_counts_them():
    boxes = torch.tensor([(0.0, 0.0, 2.0, 2.0), *BROKEN_BOXES, (0.0, 0.0, 3.0, 3.0)])
    broken = {"boxes": boxes, "labels": torch.tensor([1] * 10 + [9])}
    packed = Targets.pack([broken, image(), broken, GOOD[1]], num_classes=3, invalid="drop")
    assert packed.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 4, 4], [0, 0, 2, 2]]
    assert packed.offsets.tolist() == [0, 1, 2, 3, 3]
    assert packed.dropped == 20


def test_the_error_counts_the_others():
    with pytest.raises(ValueError, match=r"\(2 more like it\)"):
        Targets.pack([image(BROKEN_BOXES[0]), image(), image(label=0), image(label=0)])


def test_validate_false_looks_at_no_value():
    packed = Targets.pack([image(BROKEN_BOXES[4], label=99)], num_classes=3, validate=False)
    assert packed.labels.tolist() == [99]


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ({"boxes": torch.zeros(0), "labels": torch.zeros(0)}, ValueError, r"\(n, 4\), got \(0,\)"),
        ({"boxes": torch.zeros(2, 5), "labels": torch.ones(2)}, ValueError, r"got \(2, 5\)"),
        ({"boxes": torch.ones(2, 4), "labels": torch.ones(3)}, ValueError, r"\(2,\).*got \(3,\)"),
        ({"boxes": torch.ones(2, 4), "labels": torch.ones(2, 1)}, ValueError, r"got \(2, 1\)"),
        ({"boxes": torch.ones(2, 4), "labels": torch.ones(2)}, TypeError, "integers, got torch.fl"),
        ({"boxes": torch.ones(1, 4).bool(), "labels": torch.ones(1)}, TypeError, "got torch.bool"),
        ({"boxes": [[0, 0, 1, 1]], "labels": torch.ones(1)}, TypeError, "tensor, got list"),
        ({"boxes": torch.ones(1, 4)}, ValueError, "no 'labels' among its keys"),
        ((torch.ones(1, 4), torch.ones(1)), TypeError, "expected a dictionary"),
    ],
)
def test_wrong_types_and_shapes_are_named(target, error, message, validate):
    with pytest.raises(error, match=r"targets\[1\].*" + message):
        Targets.pack([GOOD[0], target], validate=validate)


def test_unknown_word():
    with pytest.raises(ValueError, match="invalid: expected 'raise' or 'drop', got 'skip'"):
        Targets.pack(GOOD, invalid="skip")


def test_devices():
    mixed = [GOOD[0], {name: tensor.to("meta") for name, tensor in GOOD[2].items()}]
    with pytest.raises(ValueError, match=re.escape("several devices (cpu, meta)")):
        Targets.pack(mixed)
    packed = Targets.pack(mixed, device="meta", validate=False)
    assert {tensor.device.type for tensor in packed[:3]} == {"meta"}
    assert {tensor.device.type for tensor in Targets.pack(GOOD).to("meta")[:3]} == {"meta"}


def test_dropped_survives_a_move_and_a_pickle():
    packed = Targets.pack([image(BROKEN_BOXES[0])], invalid="drop")
    assert packed.to("cpu").dropped == 1
    assert pickle.loads(pickle.dumps(packed)).dropped == 1


def test_compiles_without_recompiling_when_objects_differ():
    torch.compiler.reset()
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    @torch.compile(fullgraph=True, backend=backend)
    def total(targets):
        return targets.boxes.sum() + targets.labels.sum() + targets.offsets.sum()

    for batch in (GOOD, [GOOD[2], image(BROKEN_BOXES[0]), GOOD[0]], GOOD[:1] * 3):
        packed = Targets.pack(batch, capacity=8, invalid="drop")
        assert total(packed).item() == sum(t.sum() for t in packed[:3])
    assert len(graphs) == 1
