# SPDX-License-Identifier: BSD-3-Clause
"""Which arithmetic a model runs in: bfloat16 where the hardware has it, float32 elsewhere.

float16, whose gradients need a scale (`Trainer`), is for GPUs and taken only if it is asked for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Precision", "choose_precision"]


@dataclass(frozen=True)
class Precision:
    """An arithmetic and why it was chosen.

    Attributes:
        dtype: what convolutions compute in; weights and losses stay float32.
        reason: one clause for the user.
    """

    dtype: torch.dtype
    reason: str

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which to run the model on `device`."""
        return torch.autocast(
            device.type,
            dtype=torch.bfloat16 if self.dtype == torch.float32 else self.dtype,
            enabled=self.dtype != torch.float32,
        )

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} ({self.reason})"


def choose_precision(
    device: torch.device, wanted: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
) -> Precision:
    """Chooses between float32 and autocast to bfloat16 or, on a GPU, float16.

    On a processor that has no bfloat16 instructions it is emulated and slower than float32.

    Args:
        device: where the model runs.
        wanted: "auto" takes bfloat16 where the hardware has it.

    Returns:
        The choice with its reason.

    Raises:
        ValueError: an unknown word, or float16 without a GPU.
    """
    if wanted == "float32":
        return Precision(torch.float32, "asked for")
    if wanted == "bfloat16":
        return Precision(torch.bfloat16, "asked for")
    if wanted == "float16":
        if device.type != "cuda":
            raise ValueError(
                f"precision: float16 needs a GPU, not {device.type}; take bfloat16 or float32"
            )
        return Precision(torch.float16, "asked for")
    if wanted != "auto":
        raise ValueError(f"precision: expected auto, float32, bfloat16 or float16, got {wanted!r}")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "the GPU has bfloat16 units")
        return Precision(torch.float32, "the GPU has no bfloat16 units")
    if device.type == "cpu":
        feature = _cpu_bfloat16_feature()
        if feature:
            return Precision(torch.bfloat16, f"the CPU has {feature}")
        return Precision(torch.float32, "the CPU has no bfloat16 instructions")
    return Precision(torch.float32, f"bfloat16 is not tried on {device.type}")


def _cpu_bfloat16_feature() -> str | None:
    """The instruction set that multiplies bfloat16, or None."""
    # These checks are private in torch 2.11 to 2.15, so a version that drops one means "no" here.
    for check, name in (
        ("_is_amx_tile_supported", "AMX"),
        ("_is_avx512_bf16_supported", "AVX512-BF16"),
    ):
        supported = getattr(torch.cpu, check, None)
        if supported is not None and supported():
            return name
    return None
