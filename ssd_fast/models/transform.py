# SPDX-License-Identifier: BSD-3-Clause
"""From images and boxes as users hold them to what the network takes."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_fast.float32_buffers import Float32Buffers
from ssd_fast.targets import Targets, check_one_for_each

__all__ = ["ImageTransform", "relative_targets"]


class ImageTransform(Float32Buffers):
    """Resizes images to a square, normalises them and stacks them.

    Bilinear without anti-aliasing, as torchvision's SSD does it.

    Args:
        size: S, the side of the network's input in pixels.
        mean: of each channel, in [0, 1].
        std: of each channel, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("image_mean", mean), ("image_std", std)):
            if len(values) != 3:
                raise ValueError(f"{name}: expected 3 numbers, one a channel, got {values!r}")
        if not all(value > 0 for value in std):
            raise ValueError(f"image_std: expected positive numbers, got {std!r}")
        self.size = size
        self.image_mean = [float(value) for value in mean]
        self.image_std = [float(value) for value in std]
        for name, numbers in (("mean", self.image_mean), ("std", self.image_std)):
            channels = torch.tensor(numbers, dtype=torch.float32, device="cpu").view(3, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    def forward(self, images: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Makes one batch.

        Args:
            images: a list of (3, H, W), of any sizes, or one (B, 3, H, W); floating, in [0, 1], or
                uint8, in [0, 255].

        Returns:
            (B, 3, S, S) float32, and the `(height, width)` of each image as it came.

        Raises:
            TypeError: an image that is not a tensor, or of another integer dtype.
            ValueError: a wrong shape, or an image on another device than the model.
        """
        batch = self.stack(images)
        if isinstance(images, Tensor):
            return batch, [_height_width(images)] * images.shape[0]
        return batch, [_height_width(image) for image in images]

    def stack(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """The batch of `forward` without the sizes, whose list would fix B in an exported graph."""
        if isinstance(images, Tensor):
            _check_image("images", images, 4, self.mean.device)
            batch = self._resize(images)
        else:
            for i, image in enumerate(images):
                _check_image(f"images[{i}]", image, 3, self.mean.device)
            resized = [self._resize(image[None]) for image in images]
            empty = torch.empty(0, 3, self.size, self.size, device=self.mean.device)
            batch = torch.cat(resized) if resized else empty
        return (batch - self.mean) / self.std

    def extra_repr(self) -> str:
        """Size, mean and standard deviation."""
        return f"size={self.size}, mean={self.image_mean}, std={self.image_std}"

    def _resize(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1]."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if images.shape[2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)


def relative_targets(
    targets: Sequence[Mapping[str, Tensor]],
    sizes: Sequence[tuple[int, int]],
    num_classes: int,
    background_index: int | None,
    device: torch.device,
) -> Targets:
    """Packs targets in pixels of their images into `Targets` in [0, 1].

    Args:
        targets: one dictionary an image: "boxes" (n, 4) in pixels, "labels" (n,).
        sizes: `(height, width)` of each image.
        num_classes: C, background included.
        background_index: class of the background, or None.
        device: where the result goes.

    Returns:
        `Targets` on `device`.

    Raises:
        ValueError: as many targets as images are needed; and whatever `Targets.pack` refuses.
    """
    check_one_for_each(targets, len(sizes))
    packed = Targets.pack(targets, num_classes=num_classes, background_index=background_index)
    pixels = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32, device="cpu")
    counts = pixels.new_tensor([len(target["boxes"]) for target in targets], dtype=torch.int64)
    pixels = pixels.repeat_interleave(counts, dim=0, output_size=packed.boxes.shape[0])
    # Copies to a GPU without a wait for it, as in `Targets.pack`.
    pixels = pixels.to(packed.boxes.device, non_blocking=packed.boxes.is_cuda)
    scaled = packed._replace(boxes=packed.boxes / pixels)
    return scaled.to(device, non_blocking=device.type == "cuda")


def _height_width(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _check_image(name: str, image: Tensor, dims: int, device: torch.device) -> None:
    shape = "(3, H, W)" if dims == 3 else "(B, 3, H, W)"
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a {shape} tensor, got {type(image).__name__}")
    if image.dim() != dims or image.shape[-3] != 3 or 0 in image.shape[-2:]:
        raise ValueError(f"{name}: expected {shape}, got {tuple(image.shape)}")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise TypeError(f"{name}: expected floats in [0, 1] or uint8, got {image.dtype}")
    if image.device != device:
        raise ValueError(
            f"{name}: on {image.device}, and the model on {device}; move it with .to({device})"
        )
