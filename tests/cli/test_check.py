# SPDX-License-Identifier: BSD-3-Clause
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import write_voc

Image = pytest.importorskip("PIL.Image", reason="needs the extra: pip install 'ssd_fast[train]'")
pytest.importorskip("tyro", reason="needs the train extra")

_XML = """<annotation><size><width>60</width><height>40</height></size>{objects}</annotation>"""
_BOX = """<object><name>red fox</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>
<ymax>{3}</ymax></bndbox></object>"""
_ENTITY_BOMB = (
    """<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>"""
)


def annotate(root: Path, name: str, *boxes: tuple[int, int, int, int]) -> None:
    objects = "".join(_BOX.format(*box) for box in boxes)
    (root / "Annotations" / f"{name}.xml").write_text(_XML.format(objects=objects))


def write_pixel_bomb(path: Path) -> None:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(chunk) - 4) + chunk + crc
    path.write_bytes(start + struct.pack(">I", 4) + b"IDAT")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of unusual kinds, all of them good: CMYK, 16 bits, turned by EXIF, no object."""
    root = tmp_path / "mixed"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    images = root / "JPEGImages"
    Image.new("CMYK", (60, 40)).save(images / "ink.jpg")
    Image.new("I;16", (60, 40), 0x8000).save(images / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(images / "turned.jpg", exif=exif)
    Image.new("RGB", (60, 40)).save(images / "empty.jpg")
    for name in ("ink", "deep", "turned"):
        annotate(root, name, (1, 1, 30, 20))
    annotate(root, "empty")
    (root / "ImageSets/Main/train.txt").write_text("ink\ndeep\nturned\n")
    (root / "ImageSets/Main/val.txt").write_text("empty\n")
    return root


def test_a_good_folder(ssd_fast: Callable, mixed: Path) -> None:
    result = ssd_fast("check", "--data", mixed)
    assert result.status == 0
    assert f"{mixed}: VOC layout\nall: 4 images that decode, 3 objects\n1 images have" in result.out
    assert "│ red fox │      3 │       3 │" in result.out
    assert "Images: 60 x 40 (4)\n" in result.out
    assert "150 to 150 pixels, median 150; 0 of 3 below 30" in result.out
    assert f"Sets of {mixed}: train 3, val 1\n" in result.out
    assert result.out.endswith("Nothing is broken.\n")


def test_a_broken_folder(ssd_fast: Callable, mixed: Path) -> None:
    images = mixed / "JPEGImages"
    torn = images / "turned.jpg"
    # With an end marker, so that only decoding finds it: opening the dataset does not.
    torn.write_bytes(torn.read_bytes()[:330] + b"\xff\xd9")
    write_pixel_bomb(images / "bomb.png")
    annotate(mixed, "bomb", (1, 1, 30, 20))
    (mixed / "Annotations" / "ink.xml").write_text(_ENTITY_BOMB)
    annotate(mixed, "deep", (5, 5, 5, 9), (9, 9, 5, 20), (70, 5, 90, 9), (1, 1, 30, 20))
    (mixed / "ImageSets/Main/val.txt").write_text("empty\ndeep\nlost\n../outside\n")
    Image.new("RGB", (60, 40)).save(images / "spare.jpg")
    Image.new("RGB", (60, 40)).save(images / "empty.png")
    result = ssd_fast("check", "--data", f"voc:{mixed}", "--workers", 2)
    assert result.status == 1
    _, _, broken = result.out.partition("Broken: 5 files, 3 objects\n")
    faults = [
        "lost.xml: the annotation is missing, and the set val lists it",
        "outside.xml: the annotation is missing, and the set val lists it",
        "ink.xml: the annotation does not parse: EntitiesForbidden",
        "bomb.png: the image does not decode: Image size (3600000000 pixels) exceeds",
        "deep.xml, object 1: the box has no area: xmin 5, ymin 5, xmax 5, ymax 9",
        "deep.xml, object 2: the box is inverted: xmin 9",
        "deep.xml, object 3: the box lies outside the image of 60 x 40 pixels: xmin 70",
        "turned.jpg: the image does not decode: ",
    ]
    lines = broken.splitlines()
    assert len(lines) == len(faults)
    for line, fault in zip(lines, faults, strict=True):
        assert f"/{fault}" in line
    assert f"Several images of {mixed} have one name: empty\n" in result.out
    assert "1 images are in train and in val: results would not be honest" in result.out
    assert f"1 images of {mixed} have no annotation and are not used" in result.out


def test_a_folder_without_one_good_image(ssd_fast: Callable, mixed: Path) -> None:
    for path in (mixed / "JPEGImages").iterdir():
        path.write_bytes(b"")
    result = ssd_fast("check", "--data", mixed)
    assert result.status == 1
    assert "Broken: 4 files, 0 objects" in result.out
    for name in ("ink.jpg", "deep.png", "turned.jpg", "empty.jpg"):
        assert f"{name}: the image does not decode" in result.out


def test_a_coco_folder(ssd_fast: Callable, tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    for name, size, category in (("train", (60, 40), "fox"), ("valid", (50, 40), "hare")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60, 40)).save(tmp_path / name / "a.jpg")
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
            "annotations": [entry, entry | {"bbox": [1, 1, 0, 9], "id": 2}, entry],
            "categories": [{"id": 1, "name": category}],
        }
        (tmp_path / name / "_annotations.coco.json").write_text(json.dumps(content))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "_annotations.coco.json").write_text("{")
    result = ssd_fast("check", "--data", tmp_path)
    assert result.status == 1
    assert "train: 1 images that decode, 1 objects" in result.out
    assert "valid: 0 images that decode, 0 objects" in result.out
    assert "valid has classes that train lacks: hare" in result.out
    assert "Broken: 2 files, 4 objects" in result.out
    for fault in (
        "test/_annotations.coco.json: the file does not parse as JSON: ",
        "train/_annotations.coco.json, object 1: its id belongs to an object before it",
        "train/_annotations.coco.json, object 2: the box has no area: x 1, y 1, width 0, height 9",
        "valid/a.jpg: the image is 60 x 40 pixels, its annotation says 50 x 40",
    ):
        assert str(tmp_path / fault) in result.out


def test_names_from_strangers_are_text(ssd_fast: Callable, tmp_path: Path) -> None:
    names = ["dog [/x]", "cat [seated]", ":cat: [red]", "\udcff"]
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    result = ssd_fast("check", "--data", tmp_path)
    assert result.status == 0, result.err
    for name in ("dog [/x]", "cat [seated]", ":cat: [red]", "\\udcff"):
        assert f"│ {name} " in result.out


def test_coco_annotations_of_no_image(ssd_fast: Callable, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    nothing: dict[str, list[object]] = {"images": [], "annotations": [], "categories": []}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(nothing))
    result = ssd_fast("check", "--data", tmp_path)
    assert result.status == 1
    assert "it lists no image" in result.out.replace("\n", " ")


def test_several_years(ssd_fast: Callable, tmp_path: Path) -> None:
    first = write_voc(tmp_path / "one, two", {"train": 2})
    second = tmp_path / "other"
    shutil.copytree(first, second)
    result = ssd_fast("check", "--data", f"{second},{tmp_path / 'mixed'}")
    assert result.status == 2
    assert "mixed: there is no such folder" in result.err
    shutil.copytree(first, tmp_path / "third")
    result = ssd_fast("check", "--data", f"{second},{tmp_path / 'third'}")
    assert result.status == 1
    assert "all: 4 images that decode" in result.out
    assert ssd_fast("check", "--data", first).out.startswith(f"{first}: VOC layout")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--data", "shapes"], "generated scenes need no check"),
        (["--data", ""], "--data is missing: a folder in VOC or COCO layout"),
        (["--data", "coco:"], "expected a folder after coco:"),
        (["--data", "nowhere"], "nowhere: there is no such folder"),
        (["--data", "empty"], "empty: the folder is empty"),
        (["--data", "coco:empty"], "empty: found no annotations in COCO's format"),
        (["--data", "coco:empty,empty"], "expected one folder in COCO layout, got 2"),
        (["--data", "other"], "Nor are there annotations in COCO's format"),
        (["--data", "other", "--workers", "-1"], "--workers: expected 0 or more, got -1"),
    ],
)
def test_what_cannot_be_checked(
    ssd_fast: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "deeper").mkdir(parents=True)
    result = ssd_fast("check", *arguments)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert fault in line
