# SPDX-License-Identifier: BSD-3-Clause
"""COCODataset: what it reads, and what it leaves out and names."""

import json
import math
import pickle
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.data import BrokenSample, COCODataset

from .coco_folder import COCOFolder, box, image

Image = pytest.importorskip("PIL.Image", reason="needs the extra: pip install 'ssd_fast[train]'")


_NESTED = json.loads("[" * 500 + "]" * 500)


def test_reads_images_boxes_labels_and_ids(coco: COCOFolder) -> None:
    dataset = coco.open()
    assert len(dataset) == 2
    assert dataset.problems == ()
    assert dataset.class_names == ("traffic light", "dog")
    assert dataset.category_ids == (3, 90)
    assert dataset.image_ids == (7, 5)
    assert [path.name for path in dataset.paths] == ["a.jpg", "b.jpg"]
    pixels, target = dataset[1]
    assert pixels.shape == (3, 40, 60)
    assert pixels.dtype == torch.uint8
    assert target["boxes"].tolist() == [[10, 20, 40, 30], [1.5, 2, 4.5, 6]]
    assert target["labels"].tolist() == [2, 1]
    assert target["area"].tolist() == [150.5, 12]
    assert target["ignore"].tolist() == target["difficult"].tolist() == [False, False]
    dtypes = [target[name].dtype for name in ("boxes", "labels", "ignore")]
    assert dtypes == [torch.float32, torch.int64, torch.bool]
    target["boxes"].zero_()
    assert dataset[-1][1]["boxes"].sum() > 0
    with pytest.raises(IndexError):
        dataset[2]


def test_is_what_pycocotools_reads(coco: COCOFolder) -> None:
    peer = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    dataset = coco.open()
    api = peer.COCO(str(coco.file))
    assert sorted(dataset.image_ids) == sorted(api.getImgIds())
    assert list(dataset.category_ids) == api.getCatIds()
    for i, number in enumerate(dataset.image_ids):
        rows = api.loadAnns(api.getAnnIds(number))
        _, target = dataset[i]
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        boxes = torch.cat([target["boxes"][:, :2], sides], dim=1)
        assert boxes.tolist() == [row["bbox"] for row in rows]
        labels = [dataset.category_ids[label - 1] for label in target["labels"]]
        assert labels == [row["category_id"] for row in rows]
        assert target["ignore"].tolist() == [bool(row.get("iscrowd")) for row in rows]


def test_crowds_are_marked_or_left_out(coco: COCOFolder) -> None:
    target = coco.open()[0][1]
    assert target["ignore"].tolist() == target["difficult"].tolist() == [True]
    assert coco.open(crowd="drop")[0][1]["boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match="crowd: expected ignore or drop, got 'x'"):
        coco.open(crowd="x")


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (box(9, 5, 5, 5, 0, 20), "the box has no area: x 5, y 5, width 0, height 20, in b.jpg"),
        (box(9, 5, 9, 5, 1e-9, 20), "the box has no area in float32: x 9, y 5, width 1e-09"),
        (box(9, 5, 9, 5, 4, 5, iscrowd="0"), "iscrowd: expected 0 or 1, got '0', in b.jpg"),
        (box(9, 5, 9, 5, 4, 5, iscrowd=2), "iscrowd: expected 0 or 1, got 2, in b.jpg"),
        (box(9, 5, 9, 5, 4, 5, iscrowd=_NESTED), "expected 0 or 1, got [[[[[[[...]]]]]]], in"),
        (box(9, 5, 9, 5, 4, 5, iscrowd=[1]), "iscrowd: expected 0 or 1, got [1], in b.jpg"),
        (box(9, 5, 9, 5, -4, 20), "the box is inverted: x 9, y 5, width -4, height 20, in b.jpg"),
        (box(9, 5, 70, 5, 8, 8), "the box lies outside the image of 60 x 40 pixels: x 70, y 5, "),
        (box(9, 5, 5, 5, float("nan"), 8), "the box has no four numbers: bbox [5, 5, nan, 8]"),
        (box(9, 5, math.inf, 5, 8, 8), "the box has no four numbers: bbox [inf, 5, 8, 8]"),
        (box(9, 5, 5, 5, 10**400, 8), "the box has no four numbers: bbox [5, 5, 1000"),
        (box(9, 5, 5, 5, 8), "the box has no four numbers: bbox [5, 5, 8]"),
        (box(9, 5, 1, 1, 2, 2, category_id=4), "its category_id 4 is none of the file's"),
        (box(9, 5, 1, 1, 2, 2, category_id=[4]), "its category_id [4] is none of the file's"),
        (box(9, 5, 1, 1, 2, 2, category_id=_NESTED), "category_id [[[[[[[...]]]]]]] is none of"),
        (box(9, 5, 1, 1, 2, 2, category_id=math.inf), "its category_id inf is none of the file's"),
        (box(9, 6, 1, 1, 2, 2), "there is no image with its image_id 6"),
        (box(9, 5, 1, 1, 2, 2, image_id=_NESTED), "with its image_id [[[[[[[...]]]]]]]"),
        (box(9, 5, 1, 1, 2, 2, image_id=math.inf), "there is no image with its image_id inf"),
        (box(9, 5, 1, 1, 2, 2, image_id=None), "there is no image with its image_id None"),
        (box(1, 5, 1, 1, 2, 2), "its id belongs to an object before it"),
        ("x", "number 4: expected an object of JSON"),
    ],
)
def test_a_broken_object_is_left_out_and_named(coco: COCOFolder, broken: Any, fault: str) -> None:
    coco.annotations.append(broken)
    dataset = coco.open()
    assert [len(dataset[i][1]["boxes"]) for i in range(2)] == [1, 2]
    (problem,) = dataset.problems
    assert fault in str(problem)
    assert problem.file == coco.file
    if isinstance(broken, dict):
        assert problem.object == broken["id"]
    with pytest.raises(ValueError, match="object"):
        coco.open(invalid="raise")


def test_any_spelling_of_a_crowd_and_an_area(coco: COCOFolder) -> None:
    flags = [1, True, 1.0, 0, False, 0.0, None]
    areas = [7.5, 0, -3, None, "7", 1e300, 1e-300]
    coco.annotations = [
        box(i, 5, 1, 1, 4, 5, iscrowd=flag, area=area)
        for i, (flag, area) in enumerate(zip(flags, areas, strict=True))
    ]
    dataset = coco.open()
    assert dataset.problems == ()
    target = dataset[1][1]
    assert target["ignore"].tolist() == [True] * 3 + [False] * 4
    assert target["area"].tolist() == [7.5] + [20] * 6


def test_a_mark_of_the_byte_order_is_no_error(coco: COCOFolder) -> None:
    coco.write()
    coco.file.write_bytes(b"\xef\xbb\xbf" + coco.file.read_bytes())
    assert len(COCODataset(coco.root)) == 2


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (image(5, "c.jpg"), "image number 3, c.jpg: its id 5 belongs to one before it"),
        (image(6, "a.jpg"), "image number 3, a.jpg: one before it is of this file; merge both"),
        (image(8, "c.jpg"), "c.jpg: the image is missing"),
        (image(8, "../secret.jpg"), "the file name '../secret.jpg' leads out of "),
        (image(8, "d/../../../secret.jpg"), "leads out of "),
        (image(8, "..\\secret.jpg"), "the file name '../secret.jpg' leads out of "),
        (image(8, "/etc/secret.jpg"), "the file name '/etc/secret.jpg' leads out of "),
        (image(8, "C:\\secret.jpg"), "the file name 'C:/secret.jpg' leads out of "),
        (image(math.inf, "c.jpg"), "image number 3: expected an id and a file_name"),
        (image(8, ""), "image number 3: expected an id and a file_name"),
        ({"file_name": "c.jpg"}, "image number 3: expected an id and a file_name"),
        (None, "image number 3: expected an id and a file_name"),
    ],
)
def test_a_broken_image_is_left_out_and_named(coco: COCOFolder, broken: Any, fault: str) -> None:
    shutil.copy(coco.picture("a.jpg"), coco.root / "secret.jpg")
    coco.images.append(broken)
    dataset = coco.open()
    assert [path.name for path in dataset.paths] == ["a.jpg", "b.jpg"]
    (problem,) = dataset.problems
    assert fault in str(problem)
    assert problem.object is None


def test_boxes_are_clipped_to_the_image(coco: COCOFolder) -> None:
    coco.annotations.append(box(9, 7, -5, 30.5, 20, 70))
    assert coco.open()[0][1]["boxes"].tolist()[1] == [0, 30.5, 15, 40]


def test_an_image_without_objects_stays(coco: COCOFolder) -> None:
    coco.picture("c.jpg")
    coco.images.append(image(8, "c.jpg"))
    target = coco.open()[2][1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["ignore"].shape == (0,)
    coco.annotations.clear()
    assert [len(coco.open()[i][1]["labels"]) for i in range(3)] == [0, 0, 0]


def test_an_image_of_infinite_size_has_the_size_of_its_file(coco: COCOFolder) -> None:
    coco.images[1] = image(5, "b.jpg", (math.inf, math.nan))
    assert coco.open().problems == ()
    assert coco.open()[1][1]["boxes"].shape == (2, 4)


def test_images_in_subfolders_and_without_a_stated_size(coco: COCOFolder) -> None:
    coco.picture("deep/c.jpg", (30, 20))
    coco.images.append(image(8, "deep\\c.jpg", None))
    coco.annotations.append(box(9, 8, 10, 10, 90, 90))
    assert coco.open()[2][1]["boxes"].tolist() == [[10, 10, 30, 20]]


def test_a_file_that_is_torn_or_of_another_size_is_named(coco: COCOFolder) -> None:
    coco.images[0] = image(7, "a.jpg", (40, 30))
    torn = coco.root / "train2017" / "b.jpg"
    torn.write_bytes(torn.read_bytes()[:500])
    with pytest.raises(ValueError, match="no image can be used") as refused:
        coco.open()
    for fault in ("a.jpg: the image is 60 x 40 pixels", "b.jpg: the image does not decode"):
        assert fault in str(refused.value)
    dataset = coco.open(verify=False)
    with pytest.raises(BrokenSample, match=r"a.jpg: the image is 60 x 40 pixels, its annotation"):
        dataset[0]
    with pytest.raises(BrokenSample, match="the image does not decode") as caught:
        dataset[1]
    assert caught.value.path == torn


def test_exif_orientation_follows_the_annotated_size(coco: COCOFolder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image lies on its side
    for name in ("a.jpg", "b.jpg"):
        coco.picture(name, exif=exif)
    coco.images = [image(7, "a.jpg", (40, 60)), image(5, "b.jpg", (60, 40))]
    dataset = coco.open()
    assert [dataset[i][0].shape for i in range(2)] == [(3, 60, 40), (3, 40, 60)]


def test_a_category_that_only_groups_others_is_no_class(coco: COCOFolder) -> None:
    coco.categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 3, "name": "traffic light", "supercategory": "things"},
        {"id": 90, "name": "dog", "supercategory": "dog"},
    ]
    assert coco.open().category_ids == (3, 90)
    coco.annotations[2]["category_id"] = 0
    assert coco.open().class_names == ("things", "traffic light", "dog")


def test_class_names_can_be_given(coco: COCOFolder) -> None:
    dataset = coco.open(class_names=["dog", "bird"])
    assert dataset.category_ids == (90, -1)
    assert dataset[1][1]["labels"].tolist() == [1]
    assert "the class 'traffic light' is none of bird, dog" in str(dataset.problems[0])
    for names in ([], ["dog", "dog"]):
        with pytest.raises(ValueError, match="class_names: expected one or more different"):
            coco.open(class_names=names)


@pytest.mark.parametrize("count", [1, 1000])
def test_any_number_of_classes(coco: COCOFolder, count: int) -> None:
    coco.categories = [{"id": 2 * i, "name": f"class {i}"} for i in range(count, 0, -1)]
    coco.annotations = [box(1, 5, 1, 1, 5, 5, category_id=2 * count)]
    dataset = coco.open()
    assert dataset.class_names == tuple(f"class {i}" for i in range(1, count + 1))
    assert dataset[1][1]["labels"].tolist() == [count]


_PATHS = ["../a.jpg", "a.jpg/b", "n" * 300, "nul\0", "\ud800", ""]
_ANYTHING = [None, True, -1, 2, 10**400, math.nan, math.inf, [], [1, 2, 3, 4], {}, "dog", *_PATHS]
_HEALTHY: dict[str, list[Any]] = {
    "id": [0, 1, 2, 3],
    "file_name": ["a.jpg"],
    "width": [60],
    "height": [40],
    "image_id": [0, 1, 2, 3],
    "category_id": [0, 1, 2, 3],
    "bbox": [[1, 2, 3, 4], [-9.0, 30, 80, 2.5], [1, 1, 0, 2]],
    "area": [4],
    "iscrowd": [0, 1],
    "name": ["dog", "cat", "bird"],
    "supercategory": ["animal", "cat"],
}


@st.composite
def _entries(draw: st.DrawFn, *keys: str) -> list[Any]:
    """Healthy entries, in some of which one thing is anything."""
    entries: list[Any] = []
    for _ in range(draw(st.integers(0, 4))):
        entry = {key: draw(st.sampled_from(_HEALTHY[key])) for key in keys}
        if draw(st.booleans()):
            entry[draw(st.sampled_from(keys))] = draw(st.sampled_from(_ANYTHING))
        entries.append(entry if draw(st.integers(0, 9)) else draw(st.sampled_from(_ANYTHING)))
    return entries


@given(
    images=_entries("id", "file_name", "width", "height"),
    annotations=_entries("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    categories=_entries("id", "name", "supercategory"),
)
def test_any_file_is_a_dataset_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, images: Any, annotations: Any, categories: Any
) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        root.mkdir()
        Image.new("RGB", (60, 40)).save(root / "a.jpg")
    file = root / "_annotations.coco.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    refusals = []
    dataset = None
    try:
        dataset = COCODataset(root, "all")
    except ValueError as error:
        refusals.append(str(error))
    assert all(refusal.startswith(str(root)) for refusal in refusals)
    for i in range(len(dataset or ())):
        boxes = dataset[i][1]["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert ((boxes >= 0) & (boxes <= torch.tensor([60, 40, 60, 40]))).all()
    for problem in dataset.problems if dataset else ():
        assert str(problem).encode()  # it can be printed


def test_it_travels_to_worker_processes(coco: COCOFolder) -> None:
    dataset = pickle.loads(pickle.dumps(coco.open()))
    assert dataset[1][1]["labels"].tolist() == [2, 1]
