# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast export`: a trained detector as one file for another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Export"]


@dataclass(frozen=True)
class Export:
    """Writes a detector with its post-processing inside, for up to 1024 images at a time."""

    weights: Path
    """File that `train` or `demo` wrote; it holds the model's description too."""
    to: Literal["onnx", "aoti", "torch"] = "onnx"
    """onnx: standard operators; aoti: compiled by AOTInductor; torch: a torch.export program. The
    last two are run by a process that imports torch and ssd_fast."""
    output: Path | None = None
    """The file; by default the weights' name with .onnx, .aoti.pt2 or .torch.pt2."""
    device: str = "cpu"
    """What aoti and torch are for, such as cuda."""
    opset: int = 18
    """Version of ONNX's operators, 18 or later."""

    def run(self) -> int:
        """Loads, exports and says where the file is."""
        from ssd_fast.cli.extras import require

        self._check_output()
        require("reading weights", "rich", "safetensors")
        from ssd_fast.cli.console import Console
        from ssd_fast.engine.export import export_aoti, export_onnx, export_torch
        from ssd_fast.engine.output import output_folder
        from ssd_fast.engine.weights import load_weights

        suffix = ".onnx" if self.to == "onnx" else f".{self.to}.pt2"
        output = self.output or self.weights.with_suffix(suffix)
        device = "cpu" if self.to == "onnx" else self._checked_device()
        model, class_names = load_weights(self.weights, device)
        output_folder(output.parent)
        if self.to == "onnx":
            export_onnx(model, output, opset=self.opset)
        elif self.to == "aoti":
            export_aoti(model, output)
        else:
            export_torch(model, output)
        size = model.transform.size
        Console().say(f"{len(class_names)} classes, images {size} x {size}: {output}")
        return 0

    def _checked_device(self) -> str:
        """The device; ValueError if torch has none of that name here that holds data."""
        import torch

        try:
            torch.zeros(1, device=self.device).cpu()  # of meta nothing comes back
        except (RuntimeError, AssertionError, ModuleNotFoundError) as error:
            # Its first sentence: pages about torch's own dispatch may follow.
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise ValueError(
                f"--device: cannot use {self.device!r}: {reason}; name one of this machine, as cpu"
                " or cuda"
            ) from error
        return self.device

    def _check_output(self) -> None:
        """Raises ValueError for a file named as what another format writes."""
        kinds = {".onnx": ("onnx",), ".pt2": ("aoti", "torch")}
        expected = kinds.get(self.output.suffix) if self.output is not None else None
        if expected is not None and self.to not in expected:
            raise ValueError(
                f"--output: {self.output} is the name of another format than {self.to}; add --to"
                f" {' or --to '.join(expected)}, or name it otherwise"
            )
