# SPDX-License-Identifier: BSD-3-Clause
"""MultiBoxLoss: the loss of SSD as a module, for any anchor-based detector."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ssd_fast.float32_buffers import Float32Buffers
from ssd_fast.ops._arguments import as_levels, check_boxes, check_levels
from ssd_fast.ops.heads_loss import heads_loss
from ssd_fast.ops.multibox_loss import multibox_loss
from ssd_fast.targets import Targets

__all__ = ["MultiBoxLoss"]


class MultiBoxLoss(Float32Buffers):
    """Matching, smooth-L1, softmax cross-entropy and hard-negative mining in one fused operator.

    The options are those of `ssd_fast.ops.multibox_loss`, which defines the loss; the normalizer
    "world" is added here. The priors are a buffer that is not saved and stays float32 in a float16
    or bfloat16 model.

    Args:
        priors: (P, 4) float32 corners, in the unit of the ground truth.
        iou_threshold: least overlap of a positive prior with its object.
        low_threshold: priors whose overlap lies from here to `iou_threshold` train nothing; None
            for no such band.
        strict: a positive prior overlaps more than `iou_threshold`, not at least.
        assign: how objects claim their best prior: "last", "bipartite" or "none".
        ratio: mined negatives for each positive of an image.
        min_negatives: mined negatives of an image at least.
        beta: where smooth-L1 turns from quadratic to linear.
        variances: 2 or 4 numbers that the encoded offsets are divided by.
        background_index: class of the background.
        normalizer: what the sums are divided by: "positives" (those of the batch, at least 1),
            "image" (each image's own, then the mean), "none" (nothing), or "world": the positives
            of all processes, at least 1, divided by the number of processes, so that the average
            that DistributedDataParallel takes of the gradients equals one process on the whole
            batch. Without a process group the world is this process.
        group: the process group of "world", None for the default one.

    Raises:
        ValueError: priors of another shape or dtype, or an option out of range.

    Example:
        >>> loss = MultiBoxLoss(ssd_fast.priors.ssd300(), min_negatives=3)
        >>> losses = loss(deltas, logits, targets)
        >>> sum(losses.values()).backward()
    """

    priors: Tensor

    def __init__(
        self,
        priors: Tensor,
        *,
        iou_threshold: float = 0.5,
        low_threshold: float | None = None,
        strict: bool = False,
        assign: Literal["last", "bipartite", "none"] = "last",
        ratio: float = 3.0,
        min_negatives: int = 0,
        beta: float = 1.0,
        variances: Sequence[float] = (0.1, 0.2),
        background_index: int = 0,
        normalizer: Literal["positives", "image", "none", "world"] = "positives",
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        check_boxes("priors", priors)
        if normalizer not in ("positives", "image", "none", "world"):
            raise ValueError(
                f"normalizer: expected 'positives', 'image', 'none' or 'world', got {normalizer!r}"
            )
        self.register_buffer("priors", priors.detach().clone(), persistent=False)
        self.options: dict[str, Any] = {
            "iou_threshold": iou_threshold,
            "low_threshold": low_threshold,
            "strict": strict,
            "assign": assign,
            "ratio": ratio,
            "min_negatives": min_negatives,
            "beta": beta,
            "variances": tuple(variances),
            "background_index": background_index,
            "normalizer": normalizer,
        }
        self.group = group
        self._check_options()

    def forward(
        self,
        deltas: Tensor | Sequence[Tensor],
        logits: Tensor | Sequence[Tensor],
        targets: Targets | Sequence[Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The two losses of a batch.

        Args:
            deltas: (B, P, 4), or the heads' maps, one (B, A * 4, H, W) a level.
            logits: (B, P, C), or the heads' maps, one (B, A * C, H, W) a level.
            targets: `Targets`, or a list of dictionaries of "boxes" and "labels", which is packed
                and checked first.

        Returns:
            "bbox_regression" and "classification", float32 scalars with gradients.

        Raises:
            ValueError: tensors that do not fit together, or, in a list, an object that no detector
                can learn from.
        """
        if not isinstance(targets, Targets):
            targets = self._pack(as_levels(deltas), as_levels(logits), targets)
        return self._losses(multibox_loss, (deltas, logits), targets)

    def through_heads(
        self,
        features: Sequence[Tensor],
        delta_weights: Sequence[Tensor],
        delta_biases: Sequence[Tensor | None],
        logit_weights: Sequence[Tensor],
        logit_biases: Sequence[Tensor | None],
        targets: Targets,
    ) -> dict[str, Tensor]:
        """The same from what goes into the heads, with the backward of `ssd_fast.ops.heads_loss`.

        Args:
            features: one (B, C', H, W) a level.
            delta_weights: of the 3x3 convolutions, one (A * 4, C', 3, 3) a level.
            delta_biases: one (A * 4,) or None a level.
            logit_weights: one (A * C, C', 3, 3) a level.
            logit_biases: one (A * C,) or None a level.
            targets: packed.

        Returns:
            As `forward`.

        Raises:
            ValueError: tensors that do not fit together.
        """
        heads = features, delta_weights, delta_biases, logit_weights, logit_biases
        return self._losses(heads_loss, heads, targets)

    def extra_repr(self) -> str:
        """The number of priors and the options."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"priors={self.priors.shape[0]}, {options}"

    def _losses(
        self,
        operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
        inputs: tuple[Any, ...],
        targets: Targets,
    ) -> dict[str, Tensor]:
        options = self.options
        world = options["normalizer"] == "world"
        box_loss, class_loss, num_positives = operator(
            *inputs,
            self.priors,
            targets.boxes,
            targets.labels,
            targets.offsets,
            **(options | {"normalizer": "none"} if world else options),
        )
        if world:
            count = self._world_count(num_positives)
            box_loss, class_loss = box_loss / count, class_loss / count
        return {"bbox_regression": box_loss, "classification": class_loss}

    def _check_options(self) -> None:
        """Takes the loss of an empty batch: a wrong option fails here, not at the first step."""
        classes = max(self.options["background_index"], 0) + 1
        boxes = torch.zeros(0, 4, dtype=torch.float32, device="cpu")
        offsets = torch.zeros(1, dtype=torch.int64, device="cpu")
        multibox_loss(
            boxes.new_zeros(0, 0, 4),
            boxes.new_zeros(0, 0, classes),
            boxes,
            boxes,
            offsets[:0],
            offsets,
            **(self.options | {"normalizer": "none"}),
        )

    def _pack(
        self,
        deltas: list[Tensor],
        logits: list[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> Targets:
        background = self.options["background_index"]
        batch, num_classes = check_levels(deltas, logits, self.priors, background)
        if len(targets) != batch:
            raise ValueError(
                f"targets: expected one dictionary for each of the {batch} images,"
                f" got {len(targets)}"
            )
        return Targets.pack(
            targets,
            num_classes=num_classes,
            background_index=background,
            device=self.priors.device,
        )

    def _world_count(self, num_positives: Tensor) -> Tensor:
        """`max(1, positives of the world) / processes`, () float32."""
        count, processes = num_positives.sum(), 1
        if dist.is_available() and dist.is_initialized():
            processes = dist.get_world_size(self.group)
            dist.all_reduce(count, group=self.group)
        return count.clamp(min=1) / processes
