# SPDX-License-Identifier: BSD-3-Clause
"""The readers that SCALING.md shows, executed as they stand there."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.trainer import TrainingOptions

PAGE = Path(__file__).resolve().parents[2] / "SCALING.md"
SCENES = ShapesDataset(7, size=64, min_objects=0)


@pytest.fixture
def page() -> dict[str, Any]:
    """What the page's code defines; `import litdata` is left out where that is not installed."""
    pytest.importorskip("numpy", reason="needs numpy")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec(blocks[0].replace("import litdata, numpy", "import numpy"), names)
    exec(blocks[1], names)
    return names


def samples() -> Iterator[dict[str, bytes]]:
    """The scenes as the page wants them."""
    from PIL import Image

    for image, target in SCENES:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(
            buffer, "JPEG", quality=100, subsampling=0
        )
        objects = {"boxes": target["boxes"].tolist(), "labels": target["labels"].tolist()}
        yield {"jpg": buffer.getvalue(), "json": json.dumps(objects).encode()}


def check(dataset: Any) -> None:
    """The scenes, in their order."""
    assert len(dataset) == len(SCENES)
    for (image, target), (scene, truth) in zip(
        map(dataset.__getitem__, range(7)), SCENES, strict=True
    ):
        assert (image.float() - scene.float()).abs().mean() < 2  # JPEG's
        for name in ("boxes", "labels", "difficult"):
            assert torch.equal(target[name], truth[name]), name


def test_tar_files_train(page: dict[str, Any], tmp_path: Path):
    shards = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for shard, part in zip(shards, (range(4), range(4, 7)), strict=True):
        with tarfile.open(shard, "w") as tar:
            for number, sample in enumerate(samples()):
                for kind, content in sample.items() if number in part else ():
                    member = tarfile.TarInfo(f"./scene.{number}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    dataset = page["Shards"](page["TarFiles"](shards), SCENES.class_names)
    check(dataset)
    model = page["ssd300_vgg16"](4, width=0.03)
    options = TrainingOptions(steps=2, batch_size=2)
    assert page["train"](dataset, model, options).step == 2


def test_files_of_webdataset(page: dict[str, Any], tmp_path: Path):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=3, verbose=0) as writer:
        for number, sample in enumerate(samples()):
            writer.write({"__key__": f"scene{number}", **sample})
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    assert len(shards) == 3
    check(page["Shards"](page["TarFiles"](shards), SCENES.class_names))


def test_chunks_of_litdata(page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page["litdata"] = litdata(tmp_path)
    for processes in (1, 2):
        monkeypatch.setenv("WORLD_SIZE", str(processes))  # as torchrun does
        dataset = page["Shards"](page["Chunks"](str(tmp_path)), SCENES.class_names)
        check(dataset)
    monkeypatch.delenv("WORLD_SIZE")
    model = page["ssd300_vgg16"](4, width=0.03)
    options = TrainingOptions(steps=2, batch_size=2)
    assert page["train"](dataset, model, options).step == 2


def litdata(folder: Path) -> ModuleType:
    """The package, after it has written the scenes; by the part of `litdata.optimize` that does."""
    package = pytest.importorskip("litdata", reason="needs litdata")
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=3)
    for number, sample in enumerate(samples()):
        writer.add_item(number, sample)
    writer.done()
    writer.merge()
    return package
