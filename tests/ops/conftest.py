# SPDX-License-Identifier: BSD-3-Clause
"""Which backward the levels of small heads take."""

import pytest

from ssd_fast.ops import _sparse_convolution


@pytest.fixture
def never_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads of tests are small; the path that is for large ones is to be seen."""
    monkeypatch.setattr(_sparse_convolution, "SMALL", 0)


@pytest.fixture
def never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level goes through its patches."""
    monkeypatch.setattr(_sparse_convolution, "is_sparse", lambda cells, features: True)
