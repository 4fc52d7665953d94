# SPDX-License-Identifier: BSD-3-Clause
"""PEP 517 backend: setuptools, building against the torch that the package will run on.

An isolated build does not see the environment it installs into, and listing torch in
`build-system.requires` would download a second one (gigabytes) whose version need not be the
target's. Under pip the isolated interpreter is still the target's, so a clean child process finds
the installed torch. Front ends that build in an environment of their own (uv, build) find none
there and get the requirement instead.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  the hooks that need no torch
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

if int(setuptools.__version__.split(".")[0]) < 77:  # possible only without build isolation
    raise SystemExit(
        f"ssd_fast: setuptools {setuptools.__version__} is too old to build with; "
        "run `pip install -U setuptools pybind11 ninja`"
    )

_FIND = (
    "import importlib.util as u; s = u.find_spec('torch');"
    "print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')"
)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Asks for torch only when the target environment has none."""
    extra = [] if _target_site() else ["torch>=2.11"]
    return build_meta.get_requires_for_build_wheel(config_settings) + extra


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Asks for torch only when the target environment has none."""
    extra = [] if _target_site() else ["torch>=2.11"]
    return build_meta.get_requires_for_build_editable(config_settings) + extra


def build_wheel(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    """Builds the wheel, with the target environment's torch in sight."""
    _show_target_torch()
    _forget_earlier_wheels()
    return build_meta.build_wheel(directory, config_settings, metadata)


def build_editable(directory: str, config_settings: Any = None, metadata: str | None = None) -> str:
    """Builds the editable wheel, with the target environment's torch in sight."""
    _show_target_torch()
    return build_meta.build_editable(directory, config_settings, metadata)


def _target_site() -> str:
    """Returns the folder that holds the target environment's torch, or an empty string."""
    isolation = {"PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME"}
    clean = {key: value for key, value in os.environ.items() if key not in isolation}
    found = subprocess.run(
        [sys.executable, "-c", _FIND], env=clean, check=True, capture_output=True, text=True
    ).stdout.strip()
    return str(Path(found).parent) if found else ""


def _show_target_torch() -> None:
    site = _target_site()
    if site and site not in sys.path:
        sys.path.append(site)  # last: the build requirements of the isolated environment win


def _forget_earlier_wheels() -> None:
    """Setuptools packs whatever lies in build/lib*, modules since deleted included."""
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)
