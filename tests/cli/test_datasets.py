# SPDX-License-Identifier: BSD-3-Clause
import json
from pathlib import Path

import pytest

from ssd_fast.cli.datasets import (
    Folders,
    describe,
    find_folders,
    open_dataset,
    open_validation,
    pick_image_set,
)
from ssd_fast.data import COCODataset, ShapesDataset, VOCDataset

from .conftest import write_voc

for _module in ("PIL", "defusedxml", "rich"):
    pytest.importorskip(_module, reason="needs the extra: pip install 'ssd_fast[train]'")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two empty images in a folder in COCO layout."""
    from PIL import Image

    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (root / name).mkdir()
        Image.new("RGB", (20, 20)).save(root / name / "a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
            "annotations": [],
            "categories": [{"id": 7, "name": "fox"}],
        }
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root


def test_one_argument_opens_every_kind(coco: Path, voc: Path) -> None:
    assert isinstance(open_dataset("shapes", "train")[0], ShapesDataset)
    for data in (str(coco), f"coco:{coco}", [str(coco)]):
        dataset, problems = open_dataset(data, "train")
        assert isinstance(dataset, COCODataset)
        assert problems == ()
        assert dataset.class_names == ("fox",)
    for data in (str(voc), f"voc:{voc}", [str(voc)]):
        dataset, problems = open_dataset(data, "train")
        assert isinstance(dataset, VOCDataset)
        assert len(problems) == 1


def test_a_folder_may_have_the_name_of_a_layout(
    coco: Path, voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (coco.parent / "voc").symlink_to(voc)
    monkeypatch.chdir(coco.parent)
    assert find_folders("coco") == find_folders("coco:coco") == Folders("coco", (Path("coco"),))
    assert find_folders("voc") == find_folders("voc:voc") == Folders("voc", (Path("voc"),))


def test_what_becomes_of_difficult_objects(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"train": 1})
    file = root / "Annotations" / "scene0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    flags = {
        name: open_dataset(str(root), "train", difficult=name)[0][0][1]["ignore"].tolist()
        for name in ("use", "ignore", "drop")
    }
    assert set(flags["use"]) == {False}
    assert set(flags["ignore"]) == {True}
    assert flags["drop"] == []


def test_several_folders_are_joined(voc: Path, tmp_path: Path) -> None:
    other = write_voc(tmp_path / "other", {"train": 3})
    for data in (f"{voc},{other}", f"voc:{voc},{other}", [str(voc), str(other)]):
        assert find_folders(data) == Folders("voc", (voc, other))
        assert describe(data) == f"VOC layout in {voc}, {other}"
        assert len(open_dataset(data, "train")[0]) == 7
    assert pick_image_set(f"{voc},{other}", "", among=("val", "train")) == "val"
    assert pick_image_set(str(other), "", among=("val", "train")) == "train"


def test_the_set_to_evaluate_on(coco: Path) -> None:
    assert pick_image_set(str(coco), "", among=("test", "val")) == "val"
    assert pick_image_set(str(coco), "x", among=("test", "val")) == "x"
    assert pick_image_set("shapes", "", among=("test", "val")) == "test"


def test_a_run_is_measured_on_images_that_it_does_not_train_on(voc: Path, tmp_path: Path) -> None:
    def pick(root: Path, train_set: str, wanted: str = "") -> tuple[str, int]:
        training, _ = open_dataset(str(root), train_set)
        found = open_validation(str(root), wanted, training, train_set)
        return found.name, found.shared

    root = write_voc(tmp_path / "both", {"train": 3, "val": 2, "test": 2})
    sets = root / "ImageSets/Main"
    (sets / "trainval.txt").write_text((sets / "train.txt").read_text() + "scene3\n")
    assert pick(root, "train") == ("val", 0)
    assert pick(root, "trainval") == ("test", 0)
    assert pick(root, "trainval", "val") == ("val", 1)
    for stem in ("scene5", "scene6"):  # a test set without annotations is no way out
        (root / f"Annotations/{stem}.xml").unlink()
    assert pick(root, "trainval") == ("val", 1)
    (sets / "test.txt").unlink()
    assert pick(root, "trainval") == ("val", 1)
    (sets / "val.txt").unlink()
    assert pick(root, "train") == ("train", 3)
    assert pick(Path("shapes"), "train") == ("val", 0)
    assert pick(Path("shapes"), "val") == ("val", 200)


def test_two_layouts_in_one_folder_are_not_guessed(coco: Path) -> None:
    for name in ("Annotations", "JPEGImages"):
        (coco / name).mkdir(exist_ok=True)
    if not (coco / "Annotations").samefile(coco / "annotations"):
        with pytest.raises(ValueError, match="of VOC and of COCO; say which to take"):
            find_folders(str(coco))
    assert find_folders(f"coco:{coco}") == Folders("coco", (coco,))
