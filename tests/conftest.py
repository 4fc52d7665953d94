# SPDX-License-Identifier: BSD-3-Clause
"""What every test may ask for: a device, a count, torchvision, a folder of photographs."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--full`."""
    parser.addoption(
        "--full", action="store_true", help="large counts (up to an hour) instead of CI-sized ones"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Sizes hypothesis: a test that sets no `max_examples` follows `--full`."""
    # The same cases at every run, and no deadline: the machine's load decides no test.
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    shared = {"deadline": None, "derandomize": True, "suppress_health_check": quiet}
    settings.register_profile("ci", max_examples=100, **shared)
    settings.register_profile("full", max_examples=10_000, **shared)
    settings.load_profile("full" if config.getoption("--full") else "ci")


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Seeds every test, and fills uninitialised memory with NaN so that reading it shows."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """Ends a worker of pytest-xdist whose GPU a test has broken: another one takes its place.

    After an illegal access every call of the process fails, and so would every test that follows.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized() and not _gpu_works():
        os._exit(1)


def _gpu_works() -> bool:
    """Whether the GPU still answers this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine: the CPU, and the GPU when there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def full_count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`full_count(small, large)`: how many cases to run, the large number only under `--full`."""
    full = request.config.getoption("--full")
    return lambda small, large: large if full else small


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """The installed torchvision; the test is skipped, with the reason, where it does not load."""
    # Beside a CPU build of torch the import of a CUDA build raises RuntimeError.
    try:
        import torchvision
        import torchvision.ops
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        pytest.skip(f"needs torchvision, which does not load: {reason}")
    return torchvision


@pytest.fixture(scope="session")
def voc_root() -> Path:
    """A folder of photographs in VOC layout, named by the environment variable SSD_FAST_VOC."""
    folder = os.environ.get("SSD_FAST_VOC")
    if not folder:
        pytest.skip("needs photographs: set SSD_FAST_VOC to a folder in VOC layout")
    root = Path(folder)
    if not (root / "Annotations").is_dir():
        pytest.fail(f"SSD_FAST_VOC: {root} has no folder Annotations")
    return root
