# SPDX-License-Identifier: BSD-3-Clause
"""bfloat16 is taken where the processor has it, and the reason is said."""

import pytest
import torch

from ssd_fast.engine.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512", "dtype", "reason"),
    [
        (True, True, torch.bfloat16, "AMX"),
        (False, True, torch.bfloat16, "AVX512-BF16"),
        (False, False, torch.float32, "no bfloat16"),
    ],
)
def test_the_cpu_decides(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, dtype: torch.dtype, reason: str
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    precision = choose_precision(CPU)
    assert precision.dtype == dtype
    assert reason in str(precision)


def test_a_torch_without_the_checks_takes_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_precision(CPU).dtype == torch.float32


def test_this_torch_has_the_checks():
    # They are private: a version without them would quietly train 2 times slower.
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_user_decides(name: str):
    precision = choose_precision(CPU, name)
    assert str(precision) == f"{name} (asked for)"
    with precision.autocast(CPU):
        product = torch.eye(2) @ torch.eye(2)
    assert product.dtype == precision.dtype


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="expected auto, float32, bfloat16 or float16, got 'half'"):
        choose_precision(CPU, "half")


def test_float16_is_for_gpus():
    with pytest.raises(ValueError, match="float16 needs a GPU, not cpu; take bfloat16 or float32"):
        choose_precision(CPU, "float16")
    assert choose_precision(torch.device("cuda"), "float16").dtype == torch.float16
