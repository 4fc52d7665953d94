# SPDX-License-Identifier: BSD-3-Clause
"""Where the Triton launchers run: interpreted on the CPU, or on a GPU.

Triton decides at import whether it interprets, so the interpreted tests need a process of their
own: test_interpreted.py starts it.
"""

import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAUNCHER_TESTS = [
    "test_box_losses.py",
    "test_decode.py",
    "test_detect.py",
    "test_elementary.py",
    "test_focal_loss.py",
    "test_given_matches.py",
    "test_match.py",
    "test_mine.py",
    "test_multibox_loss.py",
]

if INTERPRETED:
    collect_ignore = ["test_compiled.py", "test_interpreted.py", "test_registration.py"]
elif not torch.cuda.is_available():
    collect_ignore = LAUNCHER_TESTS

launched: set[str] = set()


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where the launchers of this process run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session", autouse=INTERPRETED)
def _record_launches() -> Iterator[None]:
    """Notes the kernels that this process launches, for the summary."""
    from triton.runtime.interpreter import InterpretedFunction

    with pytest.MonkeyPatch.context() as patch:
        run = InterpretedFunction.run

        def record(kernel, *arguments, **options):
            launched.add(kernel.__name__)
            return run(kernel, *arguments, **options)

        patch.setattr(InterpretedFunction, "run", record)
        yield


def pytest_terminal_summary(terminalreporter) -> None:
    """Says which kernels ran; test_interpreted.py reads it."""
    if INTERPRETED:
        terminalreporter.write_line(f"launched: {' '.join(sorted(launched))}")
