# SPDX-License-Identifier: BSD-3-Clause
"""Predictions in the formats of other tools are what those read, under the ids that they know."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ssd_fast.data import VOCDataset
from ssd_fast.engine.prediction_formats import COCOIds, coco_results, voc_xml

DESCRIBED = {
    "file": "shots/000000000139.jpg",
    "width": 100,
    "height": 80,
    "detections": [
        {"box": [0.0, 0.4, 10.2, 20.6], "score": 0.9, "label": 1, "class": "a & b"},
        {"box": [99.7, 79.9, 100.0, 80.0], "score": 0.8, "label": 2, "class": "c"},
    ],
}


def test_voc_annotations_are_read_as_they_were_found(tmp_path: Path):
    from PIL import Image

    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).mkdir()
    (tmp_path / "Annotations" / "000000000139.xml").write_text(voc_xml(DESCRIBED))
    Image.new("RGB", (100, 80)).save(tmp_path / "JPEGImages" / "000000000139.jpg")
    dataset = VOCDataset(tmp_path, "all")
    assert dataset.problems == ()
    assert dataset.class_names == ("a & b", "c")
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 10, 21], [98, 78, 100, 80]]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a\u200cb", "a\u200cb"),  # the joiners of Persian and of Hindi are letters of a name
        ("a\xa0\u3000b", "a\xa0\u3000b"),
        ("two\n\tlines", "two\n\tlines"),
        ("a\x01b\r\ud800", "a?b??"),
    ],
)
def test_voc_annotations_keep_what_xml_can_hold(name: str, read: str):
    detection = DESCRIBED["detections"][0] | {"class": name}
    text = voc_xml(DESCRIBED | {"detections": [detection]}).encode()
    assert ElementTree.fromstring(text).findtext("object/name") == read


def test_coco_results_are_read_by_pycocotools():
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    results = json.loads(coco_results([DESCRIBED], COCOIds()))
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 139}], "annotations": [], "categories": [{"id": 1}]}
    truth.createIndex()
    assert [row["image_id"] for row in results] == [139, 139]
    assert results[0]["bbox"] == [0.0, 0.4, 10.2, 20.2]
    assert len(truth.loadRes(results).anns) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"images": [{"id": 1e999, "file_name": "a"}]}', "cannot convert float infinity"),
        ('{"images": [], "categories": [{"id": -Infinity, "name": "a"}]}', "float infinity"),
        ('{"images": [{"id": NaN, "file_name": "a"}]}', "cannot convert float NaN"),
        ('{"images": [{"id": [1], "file_name": "a"}]}', "TypeError"),
        ('{"images": []}', "KeyError.'categories'"),
        ('{"images": ' + "[" * 10**6, "maximum recursion depth"),
        ('{"images": ' + "[" * 10**6 + "]" * 10**6 + "}", "maximum recursion depth"),
    ],
    ids=["infinity", "category", "nan", "list", "missing", "torn", "nested"],
)
def test_coco_ids_that_are_none_are_one_error(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(
        ValueError, match=rf"instances.json is no COCO annotation file .*: .*{reason}"
    ):
        COCOIds.read(path, ["a"])
