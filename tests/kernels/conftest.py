# SPDX-License-Identifier: BSD-3-Clause
"""Where the Triton launchers run: interpreted on the CPU, or on a GPU.

Triton decides at import whether it interprets, so the interpreted tests need a process of their
own. It starts when the tests are collected, and test_interpreted.py waits for it: on two cores the
minute that it takes costs little.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
    collect_ignore = [
        "test_compiled.py",
        "test_interpreted.py",
        "test_launches.py",
        "test_registration.py",
    ]
elif not torch.cuda.is_available():
    collect_ignore = LAUNCHER_TESTS

launched: set[str] = set()
interpreted = pytest.StashKey[tuple[subprocess.Popen, IO[str]]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the interpreted tests, if the test that waits for them was chosen."""
    if session.config.option.collectonly or not any(
        item.path.name == "test_interpreted.py" for item in session.items
    ):
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-W", "ignore::RuntimeWarning", str(Path(__file__).parent)]
    if session.config.getoption("--full"):
        command.append("--full")
    # NumPy's threads gain nothing on small blocks.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read by the test; a pipe would fill up
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=session.config.rootpath,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    session.config.stash[interpreted] = process, output


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Ends the interpreted tests, if nobody waited for them."""
    if interpreted in session.config.stash:
        session.config.stash[interpreted][0].kill()


@pytest.fixture
def interpreted_tests(request: pytest.FixtureRequest) -> tuple[subprocess.Popen, IO[str]]:
    """The process of the interpreted tests, and what it prints."""
    return request.config.stash[interpreted]


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
