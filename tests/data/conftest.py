# SPDX-License-Identifier: BSD-3-Clause
"""Folders in VOC and COCO layout to break in one place at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .coco_folder import COCOFolder

Box = tuple[object, object, object, object]


class VOCFolder:
    """Writes a folder in VOC layout into an empty directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / name).mkdir(parents=True)

    def image(
        self, name: str, size: tuple[int, int] = (60, 40), colour: str = "red", **options: Any
    ) -> Path:
        """Writes an image of one colour; `name` has a suffix."""
        from PIL import Image

        path = self.root / "JPEGImages" / name
        Image.new("RGB", size, colour).save(path, **options)
        return path

    def xml(
        self,
        name: str,
        objects: Sequence[tuple[str, Box]] = (),
        *,
        size: tuple[int, int] | None = (60, 40),
        filename: str | None = None,
        difficult: Sequence[int] = (),
    ) -> Path:
        """Writes an annotation; `difficult` numbers its difficult objects from 1."""
        lines = ["<annotation>", f"<filename>{filename or name + '.jpg'}</filename>"]
        if size is not None:
            lines.append(f"<size><width>{size[0]}</width><height>{size[1]}</height></size>")
        for number, (label, box) in enumerate(objects, 1):
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            values = "".join(f"<{k}>{v}</{k}>" for k, v in corners if v is not None)
            hard = int(number in difficult)
            lines.append(f"<object><name>{label}</name><difficult>{hard}</difficult>")
            lines.append(f"<bndbox>{values}</bndbox></object>")
        path = self.root / "Annotations" / f"{name}.xml"
        path.write_text("\n".join([*lines, "</annotation>"]))
        return path

    def listed(self, image_set: str, *names: str) -> None:
        """Writes an image set."""
        (self.root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(names) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> VOCFolder:
    """An empty VOC folder."""
    for module in ("PIL", "defusedxml"):
        pytest.importorskip(module, reason="needs the extra: pip install 'ssd_fast[train]'")
    return VOCFolder(tmp_path / "voc")


@pytest.fixture
def good(folder: VOCFolder) -> VOCFolder:
    """Two images: `a` with a cat and a difficult dog, `b` with a dog. Both are in `train`."""
    for name, colour in (("a", "red"), ("b", "blue")):
        folder.image(f"{name}.jpg", colour=colour)
    folder.xml("a", [("dog", (1, 1, 10, 20)), ("cat", (11, 6, 60, 40))], difficult=[1])
    folder.xml("b", [("dog", (5, 5, 15, 30))])
    folder.listed("train", "a", "b")
    return folder


@pytest.fixture
def coco(tmp_path: Path) -> COCOFolder:
    """Two images, in `train`."""
    pytest.importorskip("PIL", reason="needs the extra: pip install 'ssd_fast[train]'")
    return COCOFolder(tmp_path / "coco")
