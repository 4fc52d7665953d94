# SPDX-License-Identifier: BSD-3-Clause
"""A folder in COCO's layout to break in one place at a time."""

import json
from pathlib import Path
from typing import Any

from ssd_fast.data import COCODataset

CATEGORIES = [{"id": 3, "name": "traffic light"}, {"id": 90, "name": "dog"}]


def box(number: int, image: int, *values: float, **more: Any) -> dict[str, Any]:
    """An annotation of a dog."""
    return {"id": number, "image_id": image, "category_id": 90, "bbox": list(values)} | more


def image(number: int, name: str, size: tuple[int, int] | None = (60, 40)) -> dict[str, Any]:
    entry = {"id": number, "file_name": name}
    return entry if size is None else entry | {"width": size[0], "height": size[1]}


class COCOFolder:
    """Two images of 60 x 40 pixels in `train2017`, to break in one place at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "annotations" / "instances_train2017.json"
        self.images = [image(7, "a.jpg"), image(5, "b.jpg")]
        self.annotations = [
            box(1, 5, 10, 20, 30, 10, area=150.5, iscrowd=0),
            box(2, 7, 0, 0, 60, 40, iscrowd=1),
            box(3, 5, 1.5, 2, 3, 4, category_id=3),
        ]
        self.categories = CATEGORIES
        for folder in ("annotations", "train2017"):
            (root / folder).mkdir(parents=True)
        self.picture("a.jpg")
        self.picture("b.jpg")

    def picture(self, name: str, size: tuple[int, int] = (60, 40), **options: Any) -> Path:
        from PIL import Image

        path = self.root / "train2017" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, "red").save(path, **options)
        return path

    def write(self) -> None:
        content = {name: getattr(self, name) for name in ("images", "annotations", "categories")}
        self.file.write_text(json.dumps(content))

    def open(self, **options: Any) -> COCODataset:
        self.write()
        return COCODataset(self.root, **options)
