# SPDX-License-Identifier: BSD-3-Clause
"""Where COCODataset finds annotations and images, and files that are no annotations."""

import shutil
from pathlib import Path

import pytest

from ssd_fast.data import COCODataset

from .coco_folder import CATEGORIES, COCOFolder, image


@pytest.mark.parametrize(
    ("name", "folder", "asked"),
    [
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_val2017.json", "images/val2017", "val2017"),
        ("annotations/instances_val.json", "images", "val"),
        ("annotations/instances_default.json", "images", "all"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("_annotations.coco.json", ".", "trainval"),
        ("result.json", "images", "all"),
        ("val.json", "val", "val"),
    ],
)
def test_layouts(tmp_path: Path, coco: COCOFolder, name: str, folder: str, asked: str) -> None:
    coco.write()
    root = tmp_path / "other"
    (root / name).parent.mkdir(parents=True)
    shutil.copy(coco.file, root / name)
    shutil.copytree(coco.root / "train2017", root / folder, dirs_exist_ok=True)
    dataset = COCODataset(root, asked)
    assert dataset.annotations == root / name
    assert [path.parent for path in dataset.paths] == [root / folder] * 2
    assert len(COCODataset(root / folder, annotations=root / name)) == 2


def test_of_two_years_the_one_with_images_is_meant(coco: COCOFolder) -> None:
    coco.write()
    older = coco.file.with_name("instances_train2014.json")
    shutil.copy(coco.file, older)
    assert COCODataset(coco.root, "train").annotations == coco.file
    shutil.copytree(coco.root / "train2017", coco.root / "train2014")
    with pytest.raises(ValueError, match=r"'train' fits several .*: train2014, train2017; say"):
        COCODataset(coco.root, "train")
    assert COCODataset(coco.root, "train2014").annotations == older


def test_one_file_is_split(coco: COCOFolder) -> None:
    coco.file = coco.root / "annotations.json"
    coco.images = [image(i, f"{i}.jpg") for i in (9, 8, 7, 6, 5)]
    for i in range(5, 10):
        coco.picture(f"{i}.jpg")
    shutil.move(coco.root / "train2017", coco.root / "images")
    sets = {name: coco.open(image_set=name).image_ids for name in ("train", "val", "test", "all")}
    assert sets == {"train": (8, 7, 6, 5), "val": (9,), "test": (9,), "all": (9, 8, 7, 6, 5)}
    with pytest.raises(ValueError, match=r"image_set: expected one of train, val, .* got 'x'"):
        coco.open(image_set="x")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the file does not parse as JSON"),
        ("[" * 100_000, "the file does not parse as JSON"),
        ("[]", "found no list of images"),
        ('{"images": {}}', "found no list of images"),
        ('{"images": [], "annotations": 3}', "annotations: expected a list, got int"),
        ('{"images": []}', "no image can be used. None is listed"),
        ('{"images": [], "categories": [3]}', "category number 1: expected an object of JSON"),
        ('{"images": [], "categories": [{"id": "a"}]}', "id: expected an integer, got 'a'"),
        ('{"images": [], "categories": [{"id": 1, "name": " "}]}', "name: expected a name"),
    ],
)
def test_a_file_that_is_no_annotation_is_an_error(
    coco: COCOFolder, content: str, fault: str
) -> None:
    coco.file.write_text(content)
    with pytest.raises(ValueError, match=r"instances_train2017\.json") as caught:
        COCODataset(coco.root)
    assert fault in str(caught.value)


def test_categories_that_cannot_be_told_apart_are_an_error(coco: COCOFolder) -> None:
    coco.categories = [*CATEGORIES, {"id": 91, "name": "dog"}]
    with pytest.raises(ValueError, match="the categories 90 and 91 are both named 'dog'"):
        coco.open()
    coco.categories = [*CATEGORIES, {"id": 90, "name": "cat"}]
    with pytest.raises(ValueError, match="number 3: the id 90 belongs to 'dog' before it"):
        coco.open()
    coco.categories = []
    coco.annotations = []
    with pytest.raises(ValueError, match="it names no class; pass class_names"):
        coco.open()


def test_a_folder_of_another_layout_is_an_error(tmp_path: Path, coco: COCOFolder) -> None:
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        COCODataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found no annotations in COCO's format"):
        COCODataset(tmp_path)
    with pytest.raises(ValueError, match="has no set 'val', only train2017"):
        coco.open(image_set="val")
    with pytest.raises(ValueError, match=r"none\.json: there is no such file"):
        COCODataset(coco.root, annotations=tmp_path / "none.json")
    with pytest.raises(ValueError, match="the file cannot be read"):
        COCODataset(coco.root, annotations=tmp_path)
