# SPDX-License-Identifier: BSD-3-Clause
"""Memory that is freed stays with the process where a program asks for that."""

import os
import platform
import subprocess
import sys

import pytest

from ssd_fast.engine.allocator import keep_freed_memory

# Faults of pages of eight tensors of 64 MB, one after the other. Of those before them the first few
# get new memory: what is freed has room for as much again, but not for its alignment besides, until
# two of them lie side by side.
PROGRAM = """
import resource, sys, torch
from ssd_fast.engine.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for i in range(24):
    if i == 16:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.empty(2**24)
    y = x.fill_(1).sum().item()
    del x
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(what: str) -> tuple[str, int]:
    command = [sys.executable, "-c", PROGRAM, what]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, faults = result.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the allocator may be another one")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    kept, faults = run("keep")
    assert kept == "True"
    assert faults * 4 < run("leave")[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_a_choice_of_the_environment_stays(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
