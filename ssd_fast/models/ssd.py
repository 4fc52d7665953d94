# SPDX-License-Identifier: BSD-3-Clause
"""SSD: Single Shot MultiBox Detector (Liu et al., 2016, arXiv:1512.02325)."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ssd_fast.dense_targets import DenseTargets
from ssd_fast.detections import Detections
from ssd_fast.float32_buffers import Float32Buffers
from ssd_fast.models.heads import MultiBoxHeads, concatenate_maps, is_plain, plain_parameters
from ssd_fast.models.loss import build_loss
from ssd_fast.models.transform import ImageTransform, relative_targets
from ssd_fast.multibox import MultiBoxLoss
from ssd_fast.ops.detect import detect
from ssd_fast.targets import Targets

__all__ = ["ARCHITECTURES", "SSD"]

_MEAN = (0.48235, 0.45882, 0.40784)
_STD = (1 / 255, 1 / 255, 1 / 255)

CLASS_PRIOR = 0.01
"""What RetinaNet's classes start from (Lin et al., 2017, arXiv:1708.02002, section 4.1)."""


class SSD(nn.Module):
    """A single-shot detector: a backbone, heads on each of its maps, and the fused loss and detect.

    The contract is that of torchvision's detection models. `model(images, targets)` in training
    gives the two losses; `model(images)` in evaluation gives a dictionary of boxes, scores and
    labels for each image, in pixels of the image as it came. Images are a list of (3, H, W) of any
    sizes, or one (B, 3, H, W), floating in [0, 1] or uint8; they are resized to S x S and
    normalised inside. Class 0 is the background.

    The path without a copy or a synchronisation, which `torch.compile(fullgraph=True)` takes
    whole: a (B, 3, S, S) tensor and packed `Targets` in training, `detect_padded` in evaluation.

    Args:
        backbone: maps (B, 3, S, S) to a list of feature maps; has `out_channels`, one a map.
        num_classes: C, background included where there is one.
        priors: (P, 4) float32 corners in [0, 1], in the order of the maps.
        boxes_per_cell: how many priors a cell of each map carries.
        image_size: S.
        image_mean: subtracted from each channel of the images in [0, 1].
        image_std: divides each channel after that.
        score_threshold: detections have a score above it.
        top_k: candidates of each class that go into NMS, by score.
        iou_threshold: of NMS: a detection overlaps no better one of its class by more.
        max_detections: of an image, by score.
        nms: "hard", "soft-linear", "soft-gaussian" or "diou", see `ssd_fast.ops.detect`. An
            attribute of the model, like the four options above it and the one below: it may be
            set after training.
        sigma: of "soft-gaussian".
        classification: "softmax": scores are a softmax, trained by cross-entropy and hard-negative
            mining. "focal": scores are sigmoids, trained by the focal loss of all priors, and every
            class starts from a probability of 0.01, as RetinaNet's do. None: what `loss` says.
        loss: options of `MultiBoxLoss`, such as `{"min_negatives": 3}`. With the focal loss
            `{"background_index": None}` is for labels from 0 on, without a background class.
        sparse_head_backward: train on the CPU through `ssd_fast.ops.heads_loss`, whose backward
            multiplies only the cells that the loss touches. Heads or a loss that were replaced,
            hooked or parametrised, other devices and the focal loss, which touches every cell, take
            the dense backward of PyTorch.

    Raises:
        TypeError: a loss that is no mapping.
        ValueError: no class beside the background, a backbone and `boxes_per_cell` of different
            lengths, or an option out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        priors: Tensor,
        boxes_per_cell: Sequence[int],
        image_size: int,
        image_mean: Sequence[float] = _MEAN,
        image_std: Sequence[float] = _STD,
        score_threshold: float = 0.01,
        top_k: int = 400,
        iou_threshold: float = 0.45,
        max_detections: int = 200,
        nms: str = "hard",
        sigma: float = 0.5,
        classification: str | None = None,
        loss: Mapping[str, Any] | None = None,
        sparse_head_backward: bool = True,
    ) -> None:
        super().__init__()
        loss = loss or {}
        if not isinstance(loss, Mapping):
            raise TypeError(
                f"loss: expected a mapping of MultiBoxLoss's options, such as"
                f" {{'min_negatives': 3}}, got {type(loss).__name__}"
            )
        least = 1 if loss.get("background_index", 0) is None else 2
        if not isinstance(num_classes, int | Integral) or num_classes < least:
            raise ValueError(
                f"num_classes: expected the background and at least one class, got {num_classes!r}"
            )
        channels: Sequence[int] = backbone.out_channels  # type: ignore[assignment]
        if len(channels) != len(boxes_per_cell):
            raise ValueError(
                f"boxes_per_cell: expected one number for each of the backbone's {len(channels)}"
                f" maps, got {len(boxes_per_cell)}"
            )
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.top_k = top_k
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.nms = nms
        self.sigma = sigma
        self.sparse_head_backward = sparse_head_backward
        self.transform = ImageTransform(image_size, image_mean, image_std)
        self.backbone = backbone
        self.loss = build_loss(priors, num_classes, loss, classification)
        prior = CLASS_PRIOR if self.loss.classification == "focal" else None
        self.heads = MultiBoxHeads(channels, boxes_per_cell, num_classes, class_prior=prior)
        # No state dict holds these: on the meta device they would be lost.
        device = torch.get_default_device()
        if device.type != "meta":
            self.transform.to(device)
            self.loss.to(device)
        self.register_load_state_dict_post_hook(_follow_weights)  # type: ignore[no-untyped-call]
        self._architecture: dict[str, Any] | None = None
        # An empty batch: an option of `detect` that is wrong fails here, not after the training.
        none = torch.zeros(0, 4, dtype=torch.float32, device="cpu")
        self._postprocess(none.new_zeros(0, 0, 4), none.new_zeros(0, 0, num_classes), none)

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Targets | DenseTargets | Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: a list of (3, H, W), of any sizes, or one (B, 3, H, W).
            targets: needed in training, left aside in evaluation. A list of dictionaries, one an
                image: "boxes" (n, 4) in pixels of that image, "labels" (n,); n may be 0; "ignore"
                (n,) bool, where there is one, marks regions to ignore. Or `Targets` or
                `DenseTargets` with boxes in [0, 1].

        Returns:
            In training "bbox_regression" and "classification", float32 scalars. In evaluation a
            list of dictionaries, one an image: "boxes" (k, 4) float32 in pixels of that image,
            "scores" (k,) float32, falling, and "labels" (k,) int64. A batch of no images has no
            detections, an empty list.

        Raises:
            TypeError: an image or a target of the wrong type.
            ValueError: training without images or targets, wrong shapes or devices, a model in
                float64, or an object that no detector can learn from; the message names the image
                and the object.
        """
        self._check_dtype()
        if not self.training:
            batch, sizes = self.transform(images)
            return self._detect(batch).to_list(sizes) if sizes else []
        if targets is None:
            raise ValueError("targets: needed in training; model.eval() makes detections instead")
        batch, sizes = self.transform(images)
        self._check_batch(len(sizes))
        if not isinstance(targets, Targets | DenseTargets):
            background: int | None = self.loss.options["background_index"]
            targets = relative_targets(targets, sizes, self.num_classes, background, batch.device)
        return self._losses(self._features(batch), targets)

    def detect_padded(self, images: Tensor | Sequence[Tensor]) -> Detections:
        """Detections with fixed shapes, without waiting for the device.

        Args:
            images: as in `forward`.

        Returns:
            `Detections` of B x `max_detections` rows, boxes in [0, 1] of each image.
        """
        self._check_dtype()
        return self._detect(self.transform.stack(images))

    def head_maps(self, images: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the heads predict, as the loss and `ssd_fast.ops.detect` take it in place.

        Args:
            images: as in `forward`.

        Returns:
            deltas, a list of (B, A * 4, H, W), and logits, a list of (B, A * C, H, W), in the
            dtype that the model computes in.
        """
        return self._heads(self.transform.stack(images))

    def head_outputs(self, images: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the heads predict, one row for each prior: a copy of `head_maps`.

        Args:
            images: as in `forward`.

        Returns:
            deltas (B, P, 4) and logits (B, P, C).
        """
        deltas, logits = self.head_maps(images)
        return concatenate_maps(deltas, 4), concatenate_maps(logits, self.num_classes)

    @property
    def priors(self) -> Tensor:
        """(P, 4) float32 corners in [0, 1]."""
        return self.loss.priors

    @property
    def config(self) -> dict[str, Any]:
        """All options, as JSON knows them: `SSD.from_config(config)` builds the model again.

        The process group of the loss is not in it.

        Raises:
            ValueError: the model was not built by a function such as `ssd300_vgg16`.
        """
        if self._architecture is None:
            raise ValueError("config: only for models that a function such as ssd300_vgg16 built")
        written = self._architecture["priors"]
        return {
            **self._architecture,
            "priors": self.loss.values_of("priors").tolist() if written is None else written,
            "num_classes": self.num_classes,
            "image_mean": list(self.transform.image_mean),
            "image_std": list(self.transform.image_std),
            "score_threshold": self.score_threshold,
            "top_k": self.top_k,
            "iou_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
            "nms": self.nms,
            "sigma": self.sigma,
            "loss": self.loss.config,
            "sparse_head_backward": self.sparse_head_backward,
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "SSD":
        """Builds the model that a `config` describes, with new weights.

        Args:
            config: as `SSD.config` gives it, also after JSON.

        Returns:
            A new model.

        Raises:
            ValueError: an unknown architecture.
        """
        options = dict(config)
        name = options.pop("architecture", None)
        if name not in ARCHITECTURES:
            known = ", ".join(map(repr, ARCHITECTURES))
            raise ValueError(f"config: expected an architecture of {known}, got {name!r}")
        return ARCHITECTURES[name](**options)

    def _check_dtype(self) -> None:
        """Raises ValueError for a model that is neither trained nor detects."""
        if all(parameter.dtype == torch.float64 for parameter in self.heads.parameters()):
            raise ValueError(
                "model: expected float32, float16 or bfloat16, which the kernels compute in, got"
                " float64; model.float() brings it back"
            )

    def _check_batch(self, images: int) -> None:
        """Raises ValueError if that many images cannot be trained on."""
        if images == 0:
            raise ValueError("images: expected at least one image to train on, got none")
        if images == 1 and any(
            isinstance(module, nn.BatchNorm2d) and module.training
            for module in self.backbone.modules()
        ):
            raise ValueError(
                "images: batch norm trains on at least two images (the last map has one cell),"
                " got one; drop a last batch of one, or freeze the norm with .eval()"
            )

    def _features(self, batch: Tensor) -> list[Tensor]:
        """The backbone's maps of a normalised (B, 3, S, S) batch."""
        maps: list[Tensor] = self.backbone(batch.to(next(self.heads.parameters()).dtype))
        return maps

    def _heads(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The heads' maps of a normalised batch."""
        deltas, logits = self.heads(self._features(batch))
        return deltas, logits

    def _losses(self, features: list[Tensor], targets: Targets | DenseTargets) -> dict[str, Tensor]:
        """The losses of what the heads predict from the backbone's maps."""
        losses: dict[str, Tensor]
        if self.sparse_head_backward and features[0].is_cpu and is_plain(self.loss, MultiBoxLoss):
            parameters = plain_parameters(self.heads)
            if parameters is not None and self.loss.classification == "softmax":
                losses = self.loss.through_heads(features, *parameters, targets)
                return losses
        losses = self.loss(*self.heads(features), targets)
        return losses

    def _detect(self, batch: Tensor) -> Detections:
        self.loss.check_values()
        return self._postprocess(*self._heads(batch), self.priors)

    def _postprocess(self, deltas: Any, logits: Any, priors: Tensor) -> Detections:
        return detect(
            deltas,
            logits,
            priors,
            score_threshold=self.score_threshold,
            top_k=self.top_k,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
            variances=self.loss.options["variances"],
            background_index=self.loss.options["background_index"],
            clip=(0.0, 0.0, 1.0, 1.0),
            nms=self.nms,
            sigma=self.sigma,
            scores="sigmoid" if self.loss.classification == "focal" else "softmax",
        )


def _follow_weights(model: nn.Module, _: object) -> None:
    """Brings what no state dict holds to where `load_state_dict(assign=True)` put the weights."""
    assert isinstance(model, SSD)
    weight = next(model.parameters(), None)
    for module in (model.loss, model.transform):
        if weight is not None and isinstance(module, Float32Buffers):
            module.move_buffers(weight.device)


ARCHITECTURES: dict[str, Callable[..., SSD]] = {}
"""What builds the models that `SSD.from_config` knows, by name: see models/ssd_vgg16.py."""
