# SPDX-License-Identifier: BSD-3-Clause
"""Detections of a batch: tensors of a fixed shape, and the lists that people work with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Detections"]


class Detections(NamedTuple):
    """What a detector found in each image of a batch: ``counts[i]`` rows of image i, then zeros.

    Rows are sorted by falling score. The shape is fixed, so that a batch can be compiled, exported
    and captured in a CUDA graph.

    Attributes:
        boxes: (B, K, 4) float32 corners ``(x1, y1, x2, y2)``, in the unit of the priors.
        scores: (B, K) float32, softmax probabilities, or sigmoids.
        labels: (B, K) int64.
        counts: (B,) int64, how many of the K rows of each image are detections.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor

    def to_list(
        self, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """One dict an image, as torchvision's detection models return them.

        Synchronises once on CUDA.

        Args:
            image_sizes: (height, width) of each original image. Boxes are then taken to lie in
                [0, 1] and scaled to pixels. None leaves boxes as they are.

        Returns:
            For each image ``boxes`` (n, 4) float32, ``scores`` (n,) float32 and ``labels`` (n,)
            int64, where n is its count.

        Raises:
            ValueError: not one size for each image, or not a pair of numbers.
        """
        boxes = self.boxes
        if image_sizes is not None:
            boxes = boxes * self._scales(image_sizes)
        # Rows of all images at once: to index each by itself takes a quarter longer.
        rows = boxes.unbind(), self.scores.unbind(), self.labels.unbind()
        return [
            {"boxes": boxes[:count], "scores": scores[:count], "labels": labels[:count]}
            for count, boxes, scores, labels in zip(self.counts.tolist(), *rows, strict=True)
        ]

    def _scales(self, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(B, 1, 4) factors from [0, 1] to pixels."""
        sizes = list(image_sizes)
        if len(sizes) != self.counts.size(0):
            raise ValueError(
                f"image_sizes: expected (height, width) of each of the {self.counts.size(0)} "
                f"images, got {len(sizes)} of them"
            )
        for i, size in enumerate(sizes):
            if len(size) != 2 or not all(side > 0 for side in size):
                raise ValueError(f"image_sizes[{i}]: expected (height, width), got {size!r}")
        rows = [(width, height, width, height) for height, width in sizes]
        scales = torch.tensor(rows, dtype=self.boxes.dtype, device="cpu").reshape(-1, 1, 4)
        # Or the host would wait for the GPU here, and again for the counts.
        return scales.to(self.boxes.device, non_blocking=self.boxes.is_cuda)
