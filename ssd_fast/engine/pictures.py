# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of detections, drawn with Pillow."""

from __future__ import annotations

import ctypes
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from PIL import ImageFont
    from PIL.Image import Image

__all__ = ["colour_of", "draw_grid", "draw_image", "png_bytes"]

Colour = tuple[int, int, int]

# Okabe and Ito's palette (distinct to colour-blind eyes) without its yellow and black, which
# photographs are full of; more classes begin again.
_PALETTE: tuple[Colour, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
_WHITE: Colour = (255, 255, 255)
_INK: Colour = (24, 28, 34)
_PAPER: Colour = (255, 255, 255)


@dataclass(frozen=True)
class _Pen:
    """Sizes of lines and letters on a picture, in pixels."""

    line: int
    font: Any
    pad: int

    @classmethod
    def for_size(cls, side: int) -> _Pen:
        """Legible where a picture is shown small, and not in the way where it is shown whole."""
        letters = round(0.95 * math.sqrt(max(side, 100)))
        return cls(max(2, letters // 6), _font(letters), max(2, letters // 5))


def colour_of(label: int) -> Colour:
    """The colour of a class.

    Args:
        label: from 1.

    Returns:
        Red, green, blue in 0..255.
    """
    return _PALETTE[(label - 1) % len(_PALETTE)]


def draw_image(
    image: Tensor,
    detections: dict[str, Tensor],
    class_names: tuple[str, ...],
    *,
    truth: Tensor | None = None,
    scale: float = 1.0,
) -> Image:
    """An image with its detections, and the ground truth dashed.

    Args:
        image: (3, H, W) uint8.
        detections: boxes (K, 4) in pixels, scores (K,), labels (K,).
        class_names: label i + 1 is `class_names[i]`.
        truth: (n, 4) boxes in pixels, or None.
        scale: the picture's size over the image's.

    Returns:
        A picture of round(scale * W) x round(scale * H) pixels, each at least 1.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw

    height, width = image.shape[-2:]
    pixels = image.permute(1, 2, 0).contiguous().cpu()
    # In one copy: `bytes` of a storage takes seconds, for it asks for one byte at a time.
    content = ctypes.string_at(pixels.data_ptr(), pixels.numel())
    picture = pillow.frombytes("RGB", (width, height), content)
    if scale != 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = picture.resize(size, pillow.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    pen = _Pen.for_size(max(picture.size))
    for box in _near(truth * scale, max(picture.size)).tolist() if truth is not None else []:
        _dashed(draw, box, pen)
    order = detections["scores"].argsort().tolist()  # the best detection lies on top
    boxes = (detections["boxes"] * scale).tolist()
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    for i in order:
        draw.rectangle(_ordered(boxes[i]), outline=colour_of(labels[i]), width=pen.line)
    for i in order:
        text = f"{class_names[labels[i] - 1]} {scores[i]:.2f}"
        _tag(draw, boxes[i], text, colour_of(labels[i]), pen, picture.size)
    return picture


def draw_grid(
    pictures: Sequence[Image], class_names: tuple[str, ...], *, columns: int, caption: str
) -> Image:
    """Pictures side by side over a legend.

    Args:
        pictures: of one size.
        class_names: for the legend.
        columns: pictures a row.
        caption: a line at the bottom right.

    Returns:
        The sheet.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw

    width, height = pictures[0].size
    gap, foot = width // 24, max(width // 8, 40)
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + foot)
    sheet = pillow.new("RGB", size, _PAPER)
    mask = _rounded_mask((width, height), gap // 2)
    for i, picture in enumerate(pictures):
        place = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(picture, place, mask)
    draw = ImageDraw.Draw(sheet)
    font = _font(max(14, width // 22))
    middle = size[1] - (foot - gap // 2) // 2
    _legend(draw, class_names, font, gap, middle)
    draw.text((size[0] - gap, middle), caption, fill=_INK, font=font, anchor="rm")
    return sheet


def png_bytes(picture: Image) -> bytes:
    """A picture as a PNG file.

    Args:
        picture: any.

    Returns:
        The bytes of the file.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _legend(draw: Any, class_names: tuple[str, ...], font: Any, left: int, middle: int) -> None:
    """A swatch and a name for each class, then the dashed line's meaning."""
    side = int(font.size * 0.9)
    x = left
    for label, name in enumerate(class_names, 1):
        swatch = (x, middle - side // 2, x + side, middle + side // 2)
        draw.rounded_rectangle(swatch, side // 5, fill=colour_of(label))
        x += side + side // 2
        draw.text((x, middle), name, fill=_INK, font=font, anchor="lm")
        x += int(font.getlength(name)) + 2 * side
    draw.rectangle((x, middle - side // 2, x + 2 * side, middle + side // 2), fill=(120, 126, 134))
    pen = _Pen(max(2, side // 9), font, 2)
    _dashed(draw, (x, middle, x + 2 * side, middle), pen)
    draw.text((x + 2 * side + side // 2, middle), "truth", fill=_INK, font=font, anchor="lm")


def _near(boxes: Tensor, side: int) -> Tensor:
    """Boxes (n, 4) whose lines can be drawn: none that lead far out of a picture, and no NaN.

    Examples show what training reads, which leaves such boxes out only later.
    """
    return boxes[~boxes.isnan().any(1)].clamp(-side, 2 * side)


def _dashed(draw: Any, box: Sequence[float], pen: _Pen) -> None:
    """A white dashed rectangle on a dark line, seen on any ground."""
    x1, y1, x2, y2 = _ordered(box)
    thin = max(1, pen.line - 1)
    draw.rectangle((x1, y1, x2, y2), outline=_INK, width=thin)
    dash = pen.line * 4
    for left, top, right, bottom in ((x1, y1, x2, y1), (x1, y2, x2, y2)):
        for x in range(int(left), int(right), 2 * dash):
            draw.line((x, top, min(x + dash, right), bottom), fill=_WHITE, width=thin)
    for left, top, right, bottom in ((x1, y1, x1, y2), (x2, y1, x2, y2)):
        for y in range(int(top), int(bottom), 2 * dash):
            draw.line((left, y, right, min(y + dash, bottom)), fill=_WHITE, width=thin)


def _tag(
    draw: Any, box: Sequence[float], text: str, colour: Colour, pen: _Pen, size: tuple[int, int]
) -> None:
    """The label: above the box where there is room, inside the picture always."""
    x1, y1, _, _ = _ordered(box)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=pen.font)
    width, height = right - left + 2 * pen.pad, bottom - top + 2 * pen.pad
    x = min(max(x1, 0), max(size[0] - width, 0))
    y = min(max(y1 - height if y1 >= height else y1, 0), max(size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + pen.pad - left, y + pen.pad - top), text, fill=_ink_on(colour), font=pen.font)


def _ink_on(colour: Colour) -> Colour:
    """White or dark letters, whichever stands out (Rec. 709 luma)."""
    red, green, blue = colour
    return _INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 150 else _WHITE


def _ordered(box: Sequence[float]) -> tuple[float, float, float, float]:
    """The corners in the order that Pillow insists on."""
    x1, y1, x2, y2 = box
    return x1, y1, max(x1, x2), max(y1, y2)


def _rounded_mask(size: tuple[int, int], radius: int) -> Image:
    from PIL import Image as pillow
    from PIL import ImageDraw

    mask = pillow.new("L", (2 * size[0], 2 * size[1]), 0)
    corner = (2 * size[0] - 1, 2 * size[1] - 1)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *corner), 2 * radius, fill=255)
    return mask.resize(size, pillow.Resampling.BOX)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
