# SPDX-License-Identifier: BSD-3-Clause
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.data import BrokenSample
from ssd_fast.data.images import check_image, read_image

Image = pytest.importorskip("PIL.Image", reason="needs the extra: pip install 'ssd_fast[train]'")


def colour(path: Path) -> list[int]:
    return [int(v) for v in read_image(path)[:, 1, 1].tolist()]


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("RGB", (10, 200, 30), "png", [10, 200, 30]),
        ("L", 77, "png", [77, 77, 77]),
        ("RGBA", (10, 200, 30, 0), "png", [10, 200, 30]),
        ("LA", (77, 0), "png", [77, 77, 77]),
        ("1", 1, "png", [255, 255, 255]),
        ("I;16", 0x8042, "png", [0x80, 0x80, 0x80]),
        ("I;16", 0xFFFF, "tif", [255, 255, 255]),
        ("CMYK", (0, 0, 0, 0), "tif", [255, 255, 255]),
        ("CMYK", (255, 0, 0, 0), "jpg", [0, 255, 255]),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, value: Any, suffix: str, expected: list[int]
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (5, 4), value).save(path)
    image = read_image(path)
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.uint8
    assert colour(path) == pytest.approx(expected, abs=2)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (5, 4), (250, 0, 130)).convert("P", palette=1).save(path)
    assert colour(path) == pytest.approx([250, 0, 130], abs=26)


def test_rows_columns_and_channels_keep_their_places(tmp_path: Path) -> None:
    pixels = torch.arange(2 * 3 * 3, dtype=torch.uint8).view(2, 3, 3)
    path = tmp_path / "image.png"
    Image.frombytes("RGB", (3, 2), bytes(pixels.flatten().tolist())).save(path)
    assert torch.equal(read_image(path), pixels.permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("L", (5, 3))
    image.putpixel((0, 0), 255)
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored)
    stored_size, turned_size = check_image(path)
    assert stored_size == (5, 3)
    assert turned_size == expected.size
    upright = read_image(path)
    assert tuple(upright.shape[1:]) == expected.size[::-1]
    assert [bool(v) for v in upright[0].flatten()] == [bool(v) for v in expected.tobytes()]
    assert read_image(path, upright=False).shape == (3, 3, 5)


@pytest.mark.parametrize(
    ("mode", "value", "fault"),
    [
        ("F", 0.5, "its values are floats of no known scale"),
        ("I", 70_000, "go from 70000 to 70000"),
    ],
)
def test_values_of_no_known_scale_are_refused(
    tmp_path: Path, mode: str, value: float, fault: str
) -> None:
    path = tmp_path / "image.tif"
    Image.new(mode, (5, 4), value).save(path)
    with pytest.raises(BrokenSample, match=f"{fault}.*; save it in 8 or 16 bits"):
        read_image(path)


def test_the_annotated_size_decides_which_way_is_up(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (5, 3)).save(path, exif=exif)
    assert read_image(path, size=(3, 5)).shape == (3, 5, 3)
    assert read_image(path, size=(5, 3)).shape == (3, 3, 5)
    with pytest.raises(BrokenSample, match=r"is 3 x 5 pixels, its annotation says 4 x 5$"):
        read_image(path, size=(4, 5))


def test_a_bomb_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    crc = struct.pack(">I", zlib.crc32(chunk))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + crc
    path.write_bytes(start + struct.pack(">I", 4) + b"IDAT")
    for read in (check_image, read_image):
        with pytest.raises(BrokenSample, match=r"does not decode: Image size .* exceeds limit"):
            read(path)


def test_a_folder_and_nothing_are_errors(tmp_path: Path) -> None:
    for read in (check_image, read_image):
        with pytest.raises(ValueError, match="does not decode"):
            read(tmp_path)
        with pytest.raises(ValueError, match=r"none\.jpg: the image is missing"):
            read(tmp_path / "none.jpg")


@given(
    suffix=st.sampled_from(["jpg", "png", "gif", "bmp", "tif", "webp"]),
    cut=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
)
def test_broken_bytes_are_an_image_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    cut: float,
    damage: list[tuple[float, int]],
) -> None:
    path = tmp_path_factory.getbasetemp() / f"broken.{suffix}"
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[int(place * len(content))] = value
    path.write_bytes(bytes(content[: int(cut * len(content))]))
    messages = []
    for read in (check_image, read_image):
        try:
            read(path)
        except ValueError as error:
            messages.append(str(error))
    assert all(m.startswith(f"{path}: the image does not decode: ") for m in messages)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_photograph_is_found_without_decoding_the_others(
    tmp_path: Path, share: float, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.linear_gradient("L").save(path)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", None)
        assert check_image(path) == ((256, 256), (256, 256))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{path}: the image does not decode"):
        check_image(path)
