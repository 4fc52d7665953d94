# SPDX-License-Identifier: BSD-3-Clause
"""Pictures show boxes where they are, at any size."""

import io

import pytest
import torch

from ssd_fast.engine.pictures import colour_of, draw_grid, draw_image, png_bytes

NAMES = ("cat", "dog")


def detections(boxes: list[list[float]]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.linspace(1.0, 0.5, len(boxes)),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }


def grey(height: int = 200, width: int = 300) -> torch.Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_box_is_drawn_where_it_is(scale: float):
    picture = draw_image(grey(), detections([[100, 80, 200, 160]]), NAMES, scale=scale)
    assert picture.size == (300 * scale, 200 * scale)
    for x, y in ((100, 120), (199, 120), (150, 159)):
        assert picture.getpixel((x * scale, y * scale)) == colour_of(1)
    assert picture.getpixel((150 * scale, 120 * scale)) == (128, 128, 128)


@pytest.mark.parametrize("far", [1e9, float("inf")])
def test_truth_far_outside_or_nan_is_no_trouble(far: float):
    truth = torch.tensor([[150, 100, far, far], [float("nan")] * 4, [-far, -far, -1, -1]])
    picture = draw_image(grey(), detections([]), NAMES, truth=truth)
    assert {picture.getpixel((150, y)) for y in (100, 150, 199)} != {(128, 128, 128)}
    assert picture.getpixel((100, 150)) == (128, 128, 128)


def test_a_thin_image_keeps_a_line():
    picture = draw_image(grey(1, 2500), detections([[0, 0, 900, 1]]), NAMES, scale=0.256)
    assert picture.size == (640, 1)


def test_the_image_keeps_its_pixels():
    image = torch.randint(256, (3, 20, 31), dtype=torch.uint8)
    picture = draw_image(image, detections([]), NAMES)
    assert picture.getpixel((30, 7)) == tuple(image[:, 7, 30].tolist())


@pytest.mark.parametrize(
    ("box", "corner"),
    [
        ([-50, -50, 400, 300], (0, 0)),
        ([0, 0, 0, 0], (0, 0)),
        ([290, 0, 300, 5], (299, 0)),
        ([310, 210, 330, 230], (299, 199)),
    ],
)
def test_boxes_anywhere_have_their_names_in_the_picture(box: list[float], corner: tuple[int, int]):
    picture = draw_image(grey(), detections([box]), NAMES, truth=torch.tensor([box]))
    assert picture.size == (300, 200)
    assert picture.getpixel(corner) != (128, 128, 128)
    assert picture.getpixel((150, 100)) == (128, 128, 128)


def test_the_truth_is_dashed():
    picture = draw_image(grey(), detections([]), NAMES, truth=torch.tensor([[50.0, 50, 250, 150]]))
    top = {picture.getpixel((x, 50)) for x in range(60, 240)}
    assert (255, 255, 255) in top
    assert len(top) == 2


def test_a_grid_is_a_png():
    from PIL import Image

    pictures = [draw_image(grey(), detections([]), NAMES) for _ in range(5)]
    data = png_bytes(draw_grid(pictures, NAMES, columns=2, caption="five"))
    sheet = Image.open(io.BytesIO(data))
    assert sheet.width > 2 * 300
    assert sheet.height > 3 * 200
    assert sheet.getpixel((12 + 150, 12 + 100)) == (128, 128, 128)
