# SPDX-License-Identifier: BSD-3-Clause
"""MultiBoxLoss: the loss of SSD as a module, for any anchor-based detector."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ssd_fast.dense_targets import DenseTargets
from ssd_fast.float32_buffers import Float32Buffers
from ssd_fast.ops._arguments import as_levels, check_boxes, check_levels, resolve_background
from ssd_fast.ops._heads_arguments import stand_in_maps
from ssd_fast.ops.focal_loss import focal_loss
from ssd_fast.ops.heads_loss import heads_loss
from ssd_fast.ops.multibox_loss import multibox_loss
from ssd_fast.targets import Targets, check_one_for_each

__all__ = ["MultiBoxLoss"]


class MultiBoxLoss(Float32Buffers):
    """Matching, box loss, softmax cross-entropy and hard-negative mining in one fused operator.

    The options are those of `ssd_fast.ops.multibox_loss`, which defines the loss; the normalizer
    "world" is added here. The priors and the class weights are buffers that are not saved and stay
    float32 in a float16 or bfloat16 model.

    Args:
        priors: (P, 4) float32 corners, in the unit of the ground truth.
        iou_threshold: least overlap of a positive prior with its object.
        low_threshold: priors whose overlap lies from here to `iou_threshold` train nothing; None
            for no such band.
        strict: a positive prior overlaps more than `iou_threshold`, not at least.
        assign: how objects claim their best prior: "last", "bipartite" or "none".
        ignore_threshold: priors of which at least this share lies inside a region to ignore (a
            crowd, a difficult object; see `Targets.pack`) are no background; None leaves such
            regions out of account.
        ratio: mined negatives for each positive of an image.
        min_negatives: mined negatives of an image at least.
        box_loss: "smooth_l1" or "l1" of the encoded offsets, or "giou", "diou" or "ciou" of the
            decoded box.
        beta: where smooth-L1 turns from quadratic to linear.
        variances: 2 or 4 numbers that the encoded offsets are divided by.
        class_weights: (C,) factors of the class loss by the target's class, None for 1.
        label_smoothing: of the classes, from 0 to 1, as in `torch.nn.functional.cross_entropy`.
        background_index: class of the background; -1 is the last. None, for the focal loss alone:
            no logit is the background's.
        classification: "softmax": cross-entropy of the positives and the mined negatives.
            "focal": the sigmoid focal loss of all rows, `ssd_fast.ops.focal_loss`, instead; mining,
            class weights and label smoothing do not go with it. What it trains are sigmoids:
            `ssd_fast.ops.detect(scores="sigmoid")` with the same `background_index` detects.
        alpha: of the focal loss.
        gamma: of the focal loss.
        channels_first: deltas and logits are (B, 4, P) and (B, C, P), as a convolution over all
            anchors leaves them; they are read in place. Maps of levels have one layout only.
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
    class_weights: Tensor | None

    def __init__(
        self,
        priors: Tensor,
        *,
        iou_threshold: float = 0.5,
        low_threshold: float | None = None,
        strict: bool = False,
        assign: Literal["last", "bipartite", "none"] = "last",
        ignore_threshold: float | None = 0.5,
        ratio: float = 3.0,
        min_negatives: int = 0,
        box_loss: Literal["smooth_l1", "l1", "giou", "diou", "ciou"] = "smooth_l1",
        beta: float = 1.0,
        variances: Sequence[float] = (0.1, 0.2),
        class_weights: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        background_index: int | None = 0,
        normalizer: Literal["positives", "image", "none", "world"] = "positives",
        classification: Literal["softmax", "focal"] = "softmax",
        alpha: float = 0.25,
        gamma: float = 2.0,
        channels_first: bool = False,
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        check_boxes("priors", priors)
        if normalizer not in ("positives", "image", "none", "world"):
            raise ValueError(
                f"normalizer: expected 'positives', 'image', 'none' or 'world', got {normalizer!r}"
            )
        if classification not in ("softmax", "focal"):
            raise ValueError(
                f"classification: expected 'softmax' or 'focal', got {classification!r}"
            )
        self.register_buffer("priors", priors.detach().clone(), persistent=False)
        weights = None if class_weights is None else _class_weights(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.move_buffers(priors.device)
        self.options: dict[str, Any] = {
            "iou_threshold": iou_threshold,
            "low_threshold": low_threshold,
            "strict": strict,
            "assign": assign,
            "ignore_threshold": ignore_threshold,
            "ratio": ratio,
            "min_negatives": min_negatives,
            "box_loss": box_loss,
            "beta": beta,
            "variances": tuple(variances),
            "label_smoothing": label_smoothing,
            "background_index": background_index,
            "normalizer": normalizer,
        }
        self.classification = classification
        self.focal_options: dict[str, Any] = {"alpha": alpha, "gamma": gamma}
        self.channels_first = channels_first
        self.group = group
        self._check_options()

    def forward(
        self,
        deltas: Tensor | Sequence[Tensor],
        logits: Tensor | Sequence[Tensor],
        targets: Targets | DenseTargets | Sequence[Mapping[str, Tensor]],
        matches: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The two losses of a batch.

        Args:
            deltas: (B, P, 4), or (B, 4, P) with `channels_first`, or the heads' maps, one
                (B, A * 4, H, W) a level.
            logits: (B, P, C), or (B, C, P), or the heads' maps, one (B, A * C, H, W) a level.
            targets: `Targets`, or a list of dictionaries of "boxes" and "labels", which is packed
                and checked first, or `DenseTargets`, which say of every prior what it is.
            matches: (B, P) of `ssd_fast.ops.match`, to be used instead of matching.

        Returns:
            "bbox_regression" and "classification", float32 scalars with gradients.

        Raises:
            ValueError: tensors that do not fit together, or, in a list, an object that no detector
                can learn from; priors that were made on the meta device and never got values.
        """
        maps = self._channels_last(deltas), self._channels_last(logits)
        if not isinstance(targets, Targets | DenseTargets):
            targets = self._pack(*maps, targets)
        operator = multibox_loss if self.classification == "softmax" else focal_loss
        return self._losses(operator, maps, maps, targets, matches)

    def through_heads(
        self,
        features: Sequence[Tensor],
        delta_weights: Sequence[Tensor],
        delta_biases: Sequence[Tensor | None],
        logit_weights: Sequence[Tensor],
        logit_biases: Sequence[Tensor | None],
        targets: Targets | DenseTargets,
        matches: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The same from what goes into the heads, with the backward of `ssd_fast.ops.heads_loss`.

        Args:
            features: one (B, C', H, W) a level.
            delta_weights: of the 3x3 convolutions, one (A * 4, C', 3, 3) a level.
            delta_biases: one (A * 4,) or None a level.
            logit_weights: one (A * C, C', 3, 3) a level.
            logit_biases: one (A * C,) or None a level.
            targets: packed or dense.
            matches: as in `forward`.

        Returns:
            As `forward`.

        Raises:
            ValueError: tensors that do not fit together.
        """
        if self.classification != "softmax":
            raise ValueError("classification: the focal loss reaches every cell; use forward")
        heads = features, delta_weights, delta_biases, logit_weights, logit_biases
        deltas, logits = (
            stand_in_maps(list(features), list(w)) for w in (delta_weights, logit_weights)
        )
        return self._losses(heads_loss, heads, (deltas, logits), targets, matches)

    @property
    def config(self) -> dict[str, Any]:
        """The options as JSON knows them, without priors, layout and process group."""
        weights = None if self.class_weights is None else self.values_of("class_weights")
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        options["class_weights"] = None if weights is None else weights.tolist()
        options["classification"] = self.classification
        if self.classification == "focal":
            for name in _SOFTMAX_ONLY:
                del options[name]
            options |= self.focal_options
        return options

    def extra_repr(self) -> str:
        """The number of priors and the options."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"priors={self.priors.shape[0]}, {options}"

    def _losses(
        self,
        operator: Callable[..., tuple[Tensor, Tensor, Tensor]],
        inputs: tuple[Any, ...],
        maps: tuple[list[Tensor], list[Tensor]],
        targets: Targets | DenseTargets,
        matches: Tensor | None,
    ) -> dict[str, Tensor]:
        self.check_values()
        options = self.options | {"class_weights": self.class_weights}
        if self.classification == "focal":
            options = {k: v for k, v in options.items() if k not in _SOFTMAX_ONLY}
            options |= self.focal_options
        world = options["normalizer"] == "world"
        if isinstance(targets, DenseTargets):
            if matches is not None:
                raise ValueError("matches: DenseTargets are matches already; expected None")
            background = options["background_index"]
            if background is None:
                raise ValueError(
                    "background_index: DenseTargets need a label for the background, None is none;"
                    " pass Targets and `matches`"
                )
            background = resolve_background(background, *maps, self.priors)
            targets, matches = targets.as_matches(background)
            options = options | {"ignore_threshold": None}
        box_loss, class_loss, num_positives = operator(
            *inputs,
            self.priors,
            targets.boxes,
            targets.labels,
            targets.offsets,
            matches=matches,
            **(options | {"normalizer": "none"} if world else options),
        )
        if world:
            count = self._world_count(num_positives)
            box_loss, class_loss = box_loss / count, class_loss / count
        return {"bbox_regression": box_loss, "classification": class_loss}

    def _check_options(self) -> None:
        """Takes the loss of an empty batch: a wrong option fails here, not at the first step."""
        if self.classification == "focal":
            self._check_focal_options()
        else:
            if self.options["background_index"] is None:
                raise ValueError(
                    "background_index: None, no background, goes with classification='focal' alone;"
                    " a softmax has the background among its classes, pass its index"
                )
            for name, default in _FOCAL_ONLY.items():
                if self.focal_options[name] != default:
                    raise ValueError(f"{name}: of classification='focal' alone, leave it out")
        background, weights = self.options["background_index"], self.class_weights
        if background is None and self.classification == "focal":
            background = 0  # any will do where nothing is looked up
        if weights is not None:
            classes = weights.size(0)
        else:
            classes = max(background + 1, -background) if isinstance(background, int) else 1
        boxes = torch.zeros(0, 4, dtype=torch.float32, device="cpu")
        offsets = torch.zeros(1, dtype=torch.int64, device="cpu")
        multibox_loss(
            boxes.new_zeros(0, 0, 4),
            boxes.new_zeros(0, 0, classes),
            boxes,
            boxes,
            offsets[:0],
            offsets,
            class_weights=None if weights is None else boxes.new_ones(classes),
            **(self.options | {"normalizer": "none", "background_index": background}),
        )

    def _check_focal_options(self) -> None:
        """Refuses what only softmax knows, and options that the focal loss does not take."""
        given = self.options | {"class_weights": self.class_weights}
        for name, default in _SOFTMAX_ONLY.items():
            value = given[name]
            if isinstance(value, Tensor) or value != default:
                raise ValueError(f"{name}: the focal loss takes none, leave it out, got {value}")
        boxes = torch.zeros(0, 4, dtype=torch.float32, device="cpu")
        empty = boxes.new_zeros(0, 0, 4), boxes.new_zeros(0, 0, 1), boxes, boxes
        labels = torch.zeros(0, dtype=torch.int64, device="cpu")
        focal_loss(*empty, labels, labels.new_zeros(1), **self.focal_options)

    def _channels_last(self, rows: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """The levels with their channels where the operator has them: views, no copies."""
        levels = as_levels(rows)
        if not self.channels_first:
            return levels
        return [
            level.transpose(1, 2) if isinstance(level, Tensor) and level.dim() == 3 else level
            for level in levels
        ]

    def _pack(
        self,
        deltas: list[Tensor],
        logits: list[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> Targets:
        background = self.options["background_index"]
        if background is not None:
            background = resolve_background(background, deltas, logits, self.priors)
        batch, num_classes = check_levels(deltas, logits, self.priors, background or 0)
        check_one_for_each(targets, batch)
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
        return count.clamp(min=1).float() / processes


_FOCAL_ONLY: dict[str, Any] = {"alpha": 0.25, "gamma": 2.0}
"""Options that only the focal loss knows, with their defaults."""

_SOFTMAX_ONLY: dict[str, Any] = {
    "ratio": 3.0,
    "min_negatives": 0,
    "label_smoothing": 0.0,
    "class_weights": None,
}
"""Options that the focal loss has no use for, with their defaults."""


def _class_weights(class_weights: Tensor | Sequence[float]) -> Tensor:
    """(C,) float32 of its own; ValueError for weights that no loss can be multiplied by."""
    if not isinstance(class_weights, Tensor):
        class_weights = torch.tensor(class_weights, dtype=torch.float32, device="cpu")
    weights = class_weights.detach().to(torch.float32, copy=True)
    if weights.is_meta:
        raise ValueError(
            "class_weights: expected values, got a tensor on the meta device, which keeps none;"
            " pass a list of numbers"
        )
    if weights.dim() != 1:
        raise ValueError(
            f"class_weights: expected (C,), one for each class with the background, got"
            f" {tuple(weights.shape)}"
        )
    wrong = (~(weights.isfinite() & (weights >= 0))).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"class_weights: expected finite numbers of at least 0, got {float(weights[wrong[0]])}"
            f" for class {wrong[0]}"
        )
    return weights
