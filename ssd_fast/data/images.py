# SPDX-License-Identifier: BSD-3-Clause
"""Image files as RGB tensors, with one clear error for those that do not decode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.data.missing_extra import missing_extra
from ssd_fast.data.problems import BrokenSample

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

__all__ = ["check_image", "other_size", "read_image"]

_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap width and height
_JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_ORIENTATIONS = (b"eXIf", b"exif", b"APP1", b"xmp")  # the chunk, old text chunks, and XMP
_LARGEST_16_BIT = 65535


class _RefusedError(ValueError):
    """The file decodes, and cannot be used; the message is the reason."""


@cpu_by_default
def read_image(
    path: str | Path, *, upright: bool = True, size: tuple[int, int] | None = None
) -> Tensor:
    """Reads an image file.

    Every mode becomes 8-bit RGB: 16-bit images keep their high byte, CMYK goes through Pillow's
    conversion, palettes are looked up, an alpha channel is left out. What has no defined scale, as
    floats and 32-bit integers, is refused.

    Args:
        path: an image in any format that Pillow reads.
        upright: whether to turn the image as its EXIF orientation says, as viewers do.
        size: (width, height) that an annotation gives. An image that has it only as stored is not
            turned; one that has it neither way is refused.

    Returns:
        (3, H, W) uint8, a view of (H, W, 3) memory: the layout of the decoder, and the one that
        `torch.nn.functional.interpolate` resizes three times faster.

    Raises:
        ModuleNotFoundError: Pillow is missing; names the `pip install`.
        BrokenSample: the file is missing, does not decode, or is not of the given size.
    """
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            if size is not None:
                upright = upright and _is_upright(image, size)
            if upright:
                from PIL import ImageOps

                ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except Exception as error:  # on broken bytes Pillow's plugins raise all there is
        raise _unreadable(path, error) from error
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1)


def check_image(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Finds an image's size, and out whether it would decode, without decoding it where possible.

    A JPEG or PNG with its end marker is taken as whole. Any other file is decoded, which finds
    those that are truncated.

    Args:
        path: an image file.

    Returns:
        (width, height) as stored, and (width, height) once turned as the EXIF orientation says.

    Raises:
        ModuleNotFoundError: Pillow is missing; names the `pip install`.
        BrokenSample: the file is missing or does not decode.
    """
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            if image.format == "PNG" and _is_plain_png(path):
                return image.size, image.size
            stored, turned = _sizes(image)
            if image.format != "JPEG" or not _is_whole_jpeg(path):
                image.load()
    except Exception as error:  # see read_image
        raise _unreadable(path, error) from error
    return stored, turned


def _sizes(image: Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) as stored, and as turned."""
    width, height = image.size
    sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (width, height), (height, width) if sideways else (width, height)


def _is_upright(image: Image, size: tuple[int, int]) -> bool:
    """Whether boxes in an image of that size are drawn on the turned image."""
    stored, turned = _sizes(image)
    if size not in (stored, turned):
        raise _RefusedError(other_size(turned, size))
    return size == turned


def other_size(turned: tuple[int, int], stated: tuple[int, int]) -> str:
    """What is wrong with an image of another size than its annotation says.

    Args:
        turned: (width, height) of the image.
        stated: (width, height) of the annotation.

    Returns:
        The reason of the `BrokenSample`.
    """
    real, said = (f"{width} x {height}" for width, height in (turned, stated))
    return f"the image is {real} pixels, its annotation says {said}"


def _is_whole_jpeg(path: str | Path) -> bool:
    """Whether the end marker stands in the file's last bytes."""
    with open(path, "rb") as file:
        file.seek(-min(file.seek(0, os.SEEK_END), 16), os.SEEK_END)
        return _JPEG_END in file.read()


def _is_plain_png(path: str | Path) -> bool:
    """Whether the end marker ends the file, and nothing in it can be an orientation.

    Pillow decodes a PNG to find its EXIF, which may stand behind the pixels.
    """
    content = Path(path).read_bytes()
    return content.endswith(_PNG_END) and not any(mark in content for mark in _PNG_ORIENTATIONS)


def _to_rgb(image: Image) -> Image:
    if image.mode == "F":
        raise _RefusedError("its values are floats of no known scale; save it in 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        image = image.convert("I")
        low, high = cast("tuple[float, float]", image.getextrema())
        if low < 0 or high > _LARGEST_16_BIT:
            raise _RefusedError(f"its values go from {low} to {high}; save it in 8 or 16 bits")
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise missing_extra("reading images", error) from error
    return Image


def _unreadable(path: str | Path, error: Exception) -> BrokenSample:
    if isinstance(error, FileNotFoundError):
        return BrokenSample(path, "the image is missing")
    if isinstance(error, _RefusedError):
        return BrokenSample(path, str(error))
    return BrokenSample(path, f"the image does not decode: {error}")
