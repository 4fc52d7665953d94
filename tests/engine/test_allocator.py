# SPDX-License-Identifier: BSD-3-Clause
"""Memory that is freed stays with the process where a program asks for that."""

import ctypes
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


# The same of the C library's own blocks of 3 GB, too large for a threshold that is a C int. Only
# the first 16 MB are touched.
LARGE_PROGRAM = """
import ctypes, resource, sys
kept = None
if sys.argv[1] == "keep":
    from ssd_fast.engine.allocator import keep_freed_memory
    kept = keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = library.free.argtypes = [ctypes.c_size_t]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for i in range(8):
    if i == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(3 * 2**30)
    library.memset(block, 1, 2**24)
    library.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

CHOICES = ("TRIM_THRESHOLD", "MMAP_MAX", "MMAP_THRESHOLD")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have chosen otherwise."""
    for name in ("GLIBC_TUNABLES", *(f"MALLOC_{choice}_" for choice in CHOICES)):
        monkeypatch.delenv(name, raising=False)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(program: str, what: str) -> tuple[str, int]:
    command = [sys.executable, "-c", program, what]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, faults = result.stdout.split()
    return kept, int(faults)


@needs_glibc
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the allocator may be another one")
@pytest.mark.parametrize("program", [PROGRAM, LARGE_PROGRAM], ids=["tensors", "blocks of 3 GB"])
def test_freed_memory_is_kept_for_the_next_step(program: str) -> None:
    kept, faults = run(program, "keep")
    assert kept == "True"
    assert faults * 4 < run(program, "leave")[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the C library is asked for; this process keeps its settings."""
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            calls.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    return calls


@needs_glibc
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["MALLOC", "GLIBC_TUNABLES"])
def test_a_choice_of_the_environment_stays(
    name: str, choice: str, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    if name == "MALLOC":
        monkeypatch.setenv(f"MALLOC_{choice}_", "131072")
    else:
        tunable = f"glibc.malloc.{choice.lower()}=131072"
        monkeypatch.setenv(name, f"glibc.malloc.arena_max=2:{tunable}:glibc.rtld.nns=4")
    assert not keep_freed_memory()
    assert asked == []


@needs_glibc
def test_other_choices_of_the_environment_change_nothing(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.perturb=1")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert keep_freed_memory()
    assert asked == [(-1, -1), (-4, 0)]  # M_TRIM_THRESHOLD and M_MMAP_MAX
