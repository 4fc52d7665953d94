# SPDX-License-Identifier: BSD-3-Clause
"""A detector as one file with post-processing inside: torch.export, AOTInductor, ONNX."""

from __future__ import annotations

import errno
import os
import warnings
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from ssd_fast.data.missing_extra import missing_extra
from ssd_fast.engine.output import write_file
from ssd_fast.models.ssd import SSD

__all__ = ["export_aoti", "export_onnx", "export_torch"]

_OPSET = 18
# Inductor takes 32-bit indices from the example's size where a dimension has no bound.
_MAX_BATCH = 1024
# Protobuf ends at 2 GiB, of which the graph takes a little.
_MOST_ONNX_BYTES = 2_000_000_000
_OUTPUTS = ["boxes", "scores", "labels", "counts"]


def export_torch(model: SSD, path: str | os.PathLike[str]) -> None:
    """Writes a `torch.export` program.

    `torch.export.load(path).module()(images)` gives boxes (B, K, 4) float32 in [0, 1], scores
    (B, K) float32, labels (B, K) int64 and counts (B,) int64 of images (B, 3, S, S) float32 in
    [0, 1], for B from 1 up to 1024; the process that runs it imports torch and ssd_fast.

    Args:
        model: on the device that the program is for.
        path: the file, by custom `*.pt2`.

    Raises:
        OSError: the file cannot be written.
        ValueError: a model on the meta device.
    """
    _check(model, path)
    program, data = _program(model), BytesIO()
    with warnings.catch_warnings():
        # Of weights in channels_last, with which it takes two thirds of the time, torch 2.15 doubts
        # that they are whole, for they are not contiguous; it saves all of their bytes.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, data)
    write_file(path, data.getbuffer())


def export_aoti(model: SSD, path: str | os.PathLike[str]) -> None:
    """Compiles the detector ahead of time with AOTInductor; needs a C++ compiler.

    `torch._inductor.aoti_load_package(path)(images)`: see `export_torch`.

    Args:
        model: on the device that the package is for.
        path: the file, which has to end in `.pt2`.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file's name does not end in `.pt2`, or a model on the meta device.
    """
    _check(model, path)
    if Path(path).suffix != ".pt2":
        raise ValueError(f"path: an AOTInductor package is named *.pt2, got {path}")
    data = BytesIO()
    torch._inductor.aoti_compile_and_package(_program(model), package_path=data)
    write_file(path, data.getbuffer())


def export_onnx(model: SSD, path: str | os.PathLike[str], *, opset: int = _OPSET) -> None:
    """Writes an ONNX model of standard operators alone, NonMaxSuppression among them.

    Input "images" (B, 3, S, S) float32 in [0, 1], any B; outputs "boxes" (B, K, 4) float32 in
    [0, 1], "scores" (B, K) float32, "labels" (B, K) int64, "counts" (B,) int64. What the operator
    `ssd_fast.ops.detect` decides is decided the same but where runtimes round differently.

    Args:
        model: on any device.
        path: the file, by custom `*.onnx`.
        opset: version of ONNX's operators, from 18 to the latest that the installed torch writes.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
        ValueError: an opset that can not be written, a model whose `nms` is not "hard", whose
            `iou_threshold` is outside [0, 1], whose `score_threshold` is negative, or whose `top_k`
            is 0, or which is on the meta device or takes more than 2 GB.
    """
    _check_onnx(model, opset)
    _check(model, path)
    try:
        from ssd_fast.engine.onnx_detect import onnx_detect
    except ModuleNotFoundError as error:
        raise missing_extra("export to ONNX", error, extra="export") from error
    program = torch.onnx.export(
        _program(model),
        dynamo=True,
        opset_version=opset,
        input_names=["images"],
        output_names=_OUTPUTS,
        custom_translation_table={torch.ops.ssd_fast.detect.default: onnx_detect},
        verbose=False,
    )
    assert program is not None
    written = program.model.opset_imports[""]
    if written != opset:  # torch.onnx.export logs it and goes on
        raise ValueError(
            f"opset: torch {torch.__version__} can not write {opset}, only {written}; pass a lower "
            f"one, such as opset={_OPSET}, or update torch and onnxscript"
        )
    write_file(path, program.model_proto.SerializeToString())


def _check(model: SSD, path: str | os.PathLike[str]) -> None:
    """Raises what would be found at the end, after minutes: a folder in the way, no weights."""
    if Path(path).is_dir():
        raise IsADirectoryError(
            errno.EISDIR, f"cannot write {path}: it is a folder; name a file in it"
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError(
            "model: on the meta device it has no weights; export one that is on cpu or cuda"
        )


def _check_onnx(model: SSD, opset: int) -> None:
    """Raises ValueError for what ONNX can not express."""
    if opset < _OPSET:
        raise ValueError(f"opset: expected {_OPSET} or later, got {opset}")
    if model.nms != "hard":
        raise ValueError(
            f"nms: ONNX has hard suppression alone, got a model with {model.nms!r}; set "
            f"model.nms = 'hard', or export with export_aoti or export_torch"
        )
    if not 0 <= model.iou_threshold <= 1:
        raise ValueError(
            f"iou_threshold: ONNX has thresholds in [0, 1] alone, got a model with "
            f"{model.iou_threshold}; set model.iou_threshold between them (1 suppresses nothing)"
        )
    if model.top_k == 0:
        raise ValueError(
            "top_k: ONNX has suppression of one candidate or more, got a model with 0; set "
            "model.top_k to 1 or more"
        )
    if model.score_threshold < 0:
        raise ValueError(
            f"score_threshold: ONNX has thresholds of 0 or more, got a model with "
            f"{model.score_threshold}; set model.score_threshold to 0 or more"
        )
    size = sum(weight.nbytes for weight in model.parameters())
    if size > _MOST_ONNX_BYTES:
        raise ValueError(
            f"model: a file of ONNX holds up to {_MOST_ONNX_BYTES} bytes of weights, got {size}; "
            f"export with export_aoti or export_torch"
        )


class _Detector(nn.Module):
    """Images in, padded detections out: what every format holds."""

    def __init__(self, model: SSD) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `SSD.detect_padded`."""
        boxes, scores, labels, counts = self.model.detect_padded(images)
        return boxes, scores, labels, counts


def _program(model: SSD) -> torch.export.ExportedProgram:
    """The model in evaluation mode, for up to `_MAX_BATCH` images of its own size."""
    size, device = model.transform.size, model.priors.device
    images = torch.zeros(2, 3, size, size, device=device)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return torch.export.export(
                _Detector(model).eval(), (images,), dynamic_shapes={"images": {0: batch}}
            )
    finally:
        for module, training in modes:  # of frozen parts another one than the model's
            module.training = training
