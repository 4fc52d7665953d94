# SPDX-License-Identifier: BSD-3-Clause
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd_fast.data import BrokenSample, VOCDataset

from .conftest import VOCFolder


def only_problem(dataset: VOCDataset) -> str:
    assert len(dataset.problems) == 1
    return str(dataset.problems[0])


def test_reads_images_boxes_and_labels(good: VOCFolder) -> None:
    dataset = VOCDataset(good.root)
    assert len(dataset) == 2
    assert dataset.class_names == ("cat", "dog")
    assert dataset.problems == ()
    assert [path.name for path in dataset.paths] == ["a.jpg", "b.jpg"]
    image, target = dataset[0]
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.uint8
    assert image.float().mean((1, 2)).tolist() == pytest.approx([254, 0, 0], abs=2)
    # Pixels 1 to 10 are the interval from 0 to 10.
    assert target["boxes"].tolist() == [[0, 0, 10, 20], [10, 5, 60, 40]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [2, 1]
    assert target["difficult"].tolist() == [True, False]
    assert torch.equal(dataset[-1][1]["labels"], torch.tensor([2]))
    with pytest.raises(IndexError):
        dataset[2]


def test_a_target_can_be_changed_without_changing_the_dataset(good: VOCFolder) -> None:
    dataset = VOCDataset(good.root)
    dataset[0][1]["boxes"].zero_()
    assert dataset[0][1]["boxes"].sum() > 0


def test_class_names_are_those_of_the_whole_folder(good: VOCFolder) -> None:
    good.image("c.jpg")
    good.xml("c", [("ant", (1, 1, 5, 5))])
    assert VOCDataset(good.root).class_names == ("ant", "cat", "dog")
    assert VOCDataset(good.root)[1][1]["labels"].tolist() == [3]


def test_class_names_can_be_given(good: VOCFolder) -> None:
    dataset = VOCDataset(good.root, class_names=["dog", "cat"])
    assert dataset[0][1]["labels"].tolist() == [1, 2]


def test_an_unknown_class_is_left_out_and_named(good: VOCFolder) -> None:
    dataset = VOCDataset(good.root, class_names=["dog", "bird"])
    assert dataset[0][1]["labels"].tolist() == [1]
    message = only_problem(dataset)
    assert message.endswith("a.xml, object 2: the class 'cat' is none of dog, bird")


def test_difficult_objects_can_be_left_out(good: VOCFolder) -> None:
    dataset = VOCDataset(good.root, keep_difficult=False)
    assert dataset[0][1]["labels"].tolist() == [1]
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((5, 5, 5, 20), "the box has no area: xmin 5, ymin 5, xmax 5, ymax 20"),
        ((5, 7, 5, 7), "the box has no area: xmin 5, ymin 7, xmax 5, ymax 7"),
        ((9, 5, 5, 20), "the box is inverted: xmin 9, ymin 5, xmax 5, ymax 20"),
        ((5, 20, 9, 5), "the box is inverted: xmin 5, ymin 20, xmax 9, ymax 5"),
        ((70, 5, 80, 20), "the box lies outside the image of 60 x 40 pixels: xmin 70, ymin 5, "),
        ((-9, -9, 0, 0), "the box lies outside the image of 60 x 40 pixels: xmin -9, ymin -9, "),
        ((5, "nan", 8, 9), "the box has no four numbers: xmin '5', ymin 'nan', xmax '8', ymax '9'"),
        ((5, 1, "inf", 9), "the box has no four numbers: xmin '5', ymin '1', xmax 'inf', ymax '9'"),
        ((5, "x", 8, 9), "the box has no four numbers: xmin '5', ymin 'x', xmax '8', ymax '9'"),
        (
            (5, 5, None, 9),
            "the box has no four numbers: xmin '5', ymin '5', xmax missing, ymax '9'",
        ),
    ],
)
def test_a_broken_box_is_left_out_and_named(folder: VOCFolder, box: Any, fault: str) -> None:
    folder.image("a.jpg")
    folder.xml("a", [("cat", (1, 1, 9, 9)), ("cat", box), ("cat", (2, 2, 8, 8))])
    folder.listed("train", "a")
    dataset = VOCDataset(folder.root)
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 9, 9], [1, 1, 8, 8]]
    assert f"a.xml, object 2: {fault}" in only_problem(dataset)
    assert dataset.problems[0].object == 2
    assert dataset.problems[0].file == folder.root / "Annotations" / "a.xml"
    with pytest.raises(ValueError, match=r"a\.xml, object 2: the box"):
        VOCDataset(folder.root, invalid="raise")


def test_boxes_are_clipped_to_the_image(folder: VOCFolder) -> None:
    folder.image("a.jpg")
    folder.xml("a", [("cat", (0, -3, 99, 41.5)), ("cat", ("12.5", 3, 20, 30))])
    folder.listed("train", "a")
    dataset = VOCDataset(folder.root)
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 60, 40], [11.5, 2, 20, 30]]
    assert dataset.problems == ()


def test_an_image_without_objects_stays(good: VOCFolder) -> None:
    good.image("c.jpg")
    good.xml("c")
    good.listed("train", "a", "c")
    target = VOCDataset(good.root)[1][1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64
    assert target["difficult"].dtype == torch.bool


BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<annotation><object>", "the annotation does not parse: "),
        ("", "the annotation does not parse: "),
        ("\x00\x01\x02", "the annotation does not parse: "),
        ("<?xml version='1.0' encoding='martian'?><annotation/>", "the annotation does not parse"),
        (BOMB, "the annotation does not parse: EntitiesForbidden"),
        ("<html></html>", "expected the root element <annotation>, got <html>"),
        (None, "the annotation is missing"),
    ],
)
def test_a_broken_annotation_is_left_out_and_named(
    good: VOCFolder, content: str | None, fault: str
) -> None:
    path = good.root / "Annotations" / "a.xml"
    path.unlink() if content is None else path.write_text(content)
    dataset = VOCDataset(good.root)
    assert len(dataset) == 1
    assert only_problem(dataset).startswith(f"{path}: {fault}")
    assert dataset.problems[0].object is None


def test_a_missing_image_is_left_out_and_named(good: VOCFolder) -> None:
    (good.root / "JPEGImages" / "a.jpg").unlink()
    dataset = VOCDataset(good.root)
    assert len(dataset) == 1
    assert only_problem(dataset) == f"{good.root / 'JPEGImages' / 'a.jpg'}: the image is missing"


def test_a_truncated_image_is_left_out_and_named(good: VOCFolder) -> None:
    path = good.image("a.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:700])
    dataset = VOCDataset(good.root)
    assert len(dataset) == 1
    assert only_problem(dataset).startswith(f"{path}: the image does not decode: ")


def test_an_image_that_breaks_later_is_named(good: VOCFolder) -> None:
    dataset = VOCDataset(good.root)
    path = good.root / "JPEGImages" / "a.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(BrokenSample, match=f"{path}: the image does not decode") as caught:
        dataset[0]
    assert caught.value.path == path
    path.unlink()
    with pytest.raises(BrokenSample, match=f"{path}: the image is missing") as caught:
        dataset[0]
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes out of a worker process
    assert (again.path, again.reason) == (path, "the image is missing")
    assert str(again) == str(caught.value)


def test_a_folder_without_one_good_image_is_an_error(good: VOCFolder) -> None:
    shutil.rmtree(good.root / "JPEGImages")
    (good.root / "JPEGImages").mkdir()
    with pytest.raises(ValueError, match=r"no image of the set 'train' can be used\. .*a\.jpg"):
        VOCDataset(good.root)
    good.listed("train")
    with pytest.raises(ValueError, match=r"no image of the set 'train'.* None is listed"):
        VOCDataset(good.root)


def test_a_folder_without_one_object_has_no_classes(folder: VOCFolder) -> None:
    folder.image("a.jpg")
    folder.xml("a")
    folder.listed("train", "a")
    with pytest.raises(ValueError, match=r"no annotation has an object.*class_names"):
        VOCDataset(folder.root)
    assert len(VOCDataset(folder.root, class_names=["cat"])) == 1


def test_a_folder_of_another_layout_is_an_error(tmp_path: Path, good: VOCFolder) -> None:
    with pytest.raises(ValueError, match=r"nowhere: there is no such folder"):
        VOCDataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Annotations and JPEGImages are missing") as caught:
        VOCDataset(tmp_path)
    assert f"Did you mean {good.root}?" in str(caught.value)
    shutil.rmtree(good.root / "Annotations")
    with pytest.raises(ValueError, match=r"but Annotations is missing"):
        VOCDataset(good.root)
    (good.root / "Annotations").mkdir()
    with pytest.raises(ValueError, match=r"Annotations: holds no .xml file"):
        VOCDataset(good.root, "all")


def test_sets_are_those_of_the_folder(good: VOCFolder) -> None:
    good.image("a b.jpg")
    good.xml("a b", [("cat", (1, 1, 9, 9))])
    good.listed("val", "b 1", "", "b -1", "a b")  # the flags of a class, a line twice, a space
    assert [path.name for path in VOCDataset(good.root, "val").paths] == ["b.jpg", "a b.jpg"]
    assert len(VOCDataset(good.root, "all")) == 3
    with pytest.raises(ValueError, match=r"has no set 'test', only train, val, all"):
        VOCDataset(good.root, "test")


@pytest.fixture
def kit(good: VOCFolder) -> Path:
    """A VOCdevkit of two years: `good` with a test set, and a second one without."""
    good.image("t.jpg")
    good.xml("t", [("cat", (1, 1, 9, 9))])
    good.listed("test", "t")
    first = good.root.parent / "VOCdevkit" / "VOC2007"
    shutil.copytree(good.root, first)
    second = VOCFolder(first.parent / "VOC2012")
    second.image("2012_1.jpg", colour="green")
    second.xml("2012_1", [("bird", (1, 1, 9, 9)), ("cat", (1, 1, 1, 9))])
    second.listed("train", "2012_1")
    return first.parent


def test_years_are_joined(kit: Path) -> None:
    for root in (kit, kit.parent, [kit / "VOC2007", kit / "VOC2012"]):
        dataset = VOCDataset(root)
        assert dataset.roots == (kit / "VOC2007", kit / "VOC2012")
        assert dataset.class_names == ("bird", "cat", "dog")
        assert [path.name for path in dataset.paths] == ["a.jpg", "b.jpg", "2012_1.jpg"]
        assert dataset[2][1]["labels"].tolist() == [1]
        assert only_problem(dataset).startswith(f"{kit}/VOC2012/Annotations/2012_1.xml, object 2:")
    assert VOCDataset(kit / "VOC2007").class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="root: expected one folder or more, got none"):
        VOCDataset([])


def test_of_several_years_those_count_that_have_the_set(kit: Path) -> None:
    held_out = VOCDataset(kit, "test")
    assert held_out.roots == (kit / "VOC2007",)
    assert held_out.class_names == ("bird", "cat", "dog")
    with pytest.raises(ValueError, match="VOC2007 has no set 'x', only test, train, all"):
        VOCDataset(kit, "x")


def test_difficult_objects_can_be_ignored(good: VOCFolder) -> None:
    ignored = VOCDataset(good.root, ignore_difficult=True)[0][1]
    assert ignored["ignore"].tolist() == ignored["difficult"].tolist() == [True, False]
    used = VOCDataset(good.root)[0][1]
    assert used["ignore"].tolist() == [False, False]


def test_without_sets_every_fifth_image_is_held_out(folder: VOCFolder) -> None:
    shutil.rmtree(folder.root / "ImageSets")
    for i in range(11):
        folder.image(f"{i:02}.jpg")
        folder.xml(f"{i:02}", [("cat", (1, 1, 9, 9))])
    stems = {
        name: [path.stem for path in VOCDataset(folder.root, name).paths]
        for name in ("train", "val", "test", "trainval", "all")
    }
    assert stems["val"] == stems["test"] == ["04", "09"]
    assert sorted(stems["train"] + stems["val"]) == stems["trainval"] == stems["all"]
    with pytest.raises(ValueError, match="has no set 'x', only train, val, test, trainval, all"):
        VOCDataset(folder.root, "x")


def test_a_list_may_begin_with_a_mark_of_its_encoding(good: VOCFolder) -> None:
    path = good.root / "ImageSets" / "Main" / "train.txt"
    path.write_text("a\r\nb\r\n", encoding="utf-8-sig")  # as Windows' editor saves it
    dataset = VOCDataset(good.root)
    assert dataset.problems == ()
    assert len(dataset) == 2


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_few_images_are_split_as_well(folder: VOCFolder, count: int) -> None:
    shutil.rmtree(folder.root / "ImageSets")
    for i in range(count):
        folder.image(f"{i}.jpg")
        folder.xml(f"{i}", [("cat", (1, 1, 9, 9))])
    train, val, test = (
        [path.stem for path in VOCDataset(folder.root, name).paths]
        for name in ("train", "val", "test")
    )
    assert val == test == [str(count - 1)]
    assert train == ([str(i) for i in range(count - 1)] or val)


def test_images_are_found_by_name_then_by_filename(folder: VOCFolder) -> None:
    folder.image("a.PNG")
    folder.image("renamed.jpeg", colour="blue")
    folder.xml("a", [("cat", (1, 1, 9, 9))], filename="stale.jpg")
    folder.xml("b", [("cat", (1, 1, 9, 9))], filename=r"C:\photos\renamed.jpeg")
    folder.listed("train", "a", "b")
    dataset = VOCDataset(folder.root)
    assert [path.name for path in dataset.paths] == ["a.PNG", "renamed.jpeg"]


def test_no_name_leads_out_of_the_folder(good: VOCFolder) -> None:
    shutil.copy(good.root / "JPEGImages" / "a.jpg", good.root.parent / "secret.jpg")
    good.xml("c", [("cat", (1, 1, 9, 9))], filename="../../secret.jpg")
    shutil.copy(good.root / "Annotations" / "a.xml", good.root / "outside.xml")
    good.listed("train", "a", "c", "../outside")
    dataset = VOCDataset(good.root)
    assert [path.name for path in dataset.paths] == ["a.jpg"]
    messages = [problem.message for problem in dataset.problems]
    assert messages == ["the image set lists a path, not a name", "the image is missing"]


def test_exif_orientation_follows_the_annotated_size(folder: VOCFolder) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image lies on its side
    folder.image("turned.jpg", size=(60, 40), exif=exif)
    folder.image("stored.jpg", size=(60, 40), exif=exif)
    folder.image("silent.jpg", size=(60, 40), exif=exif)
    folder.xml("turned", [("cat", (1, 1, 40, 60))], size=(40, 60))
    folder.xml("stored", [("cat", (1, 1, 60, 40))], size=(60, 40))
    folder.xml("silent", [("cat", (1, 1, 40, 60))], size=None)
    folder.listed("train", "turned", "stored", "silent")
    dataset = VOCDataset(folder.root)
    assert dataset.problems == ()
    for i, (width, height) in enumerate([(40, 60), (60, 40), (40, 60)]):
        image, target = dataset[i]
        assert image.shape == (3, height, width)
        assert target["boxes"].tolist() == [[0, 0, width, height]]


def test_an_image_of_another_size_than_annotated_is_left_out(good: VOCFolder) -> None:
    path = good.image("a.jpg", size=(30, 20))  # made smaller, with the boxes of before
    dataset = VOCDataset(good.root)
    assert [image.name for image in dataset.paths] == ["b.jpg"]
    fault = "the image is 30 x 20 pixels, its annotation says 60 x 40"
    assert [(problem.file, problem.message) for problem in dataset.problems] == [(path, fault)]


@pytest.mark.parametrize(
    ("class_names", "error", "message"),
    [
        ("cat", TypeError, "class_names: expected a list of names, got the string 'cat'"),
        ([], ValueError, "class_names: expected one or more different names"),
        (["cat", "cat"], ValueError, r"class_names: .*\('cat', 'cat'\)"),
    ],
)
def test_rejects_class_names_that_are_none(
    good: VOCFolder, class_names: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VOCDataset(good.root, class_names=class_names)


def test_rejects_an_unknown_way_with_invalid_input(good: VOCFolder) -> None:
    with pytest.raises(ValueError, match=r"invalid: .* got 'ignore'"):
        VOCDataset(good.root, invalid="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["PIL", "defusedxml"])
def test_a_missing_extra_is_named(
    good: VOCFolder, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ssd_fast\[train\]'"):
        VOCDataset(good.root)


def test_photographs(voc_root: Path) -> None:
    dataset = VOCDataset(voc_root, "all")
    for i in range(0, len(dataset), max(len(dataset) // 20, 1)):
        image, target = dataset[i]
        height, width = image.shape[1:]
        boxes = target["boxes"]
        assert image.float().std() > 1
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert ((target["labels"] >= 1) & (target["labels"] <= len(dataset.class_names))).all()
    for problem in dataset.problems:
        assert str(problem.file) in str(problem)
