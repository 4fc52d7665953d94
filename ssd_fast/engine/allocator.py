# SPDX-License-Identifier: BSD-3-Clause
"""What the C library does with memory that a training step gives back."""

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_NEVER = -1

# What users choose themselves: MALLOC_TRIM_THRESHOLD_ and so on, glibc.malloc.trim_threshold ...
_CHOICES = ("trim_threshold", "mmap_max", "mmap_threshold")


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for the next step, which asks for as much again.

    By itself it gives the activations of a step back to the system, and the first touch of each new
    page of the next step's is a fault: of a step of SSD300 on a CPU a tenth in bfloat16, a fifth in
    float32. The process stays as large as it once was, up to a quarter larger than otherwise.

    It holds for the whole process, so it is for programs to call, not for libraries. Who has
    chosen otherwise in the environment (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_MAX_``,
    ``MALLOC_MMAP_THRESHOLD_``, or the same among ``GLIBC_TUNABLES``) is left alone, and so is any
    other C library.

    Returns:
        Whether anything was changed.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "").split(":")
    chosen = {tunable.partition("=")[0] for tunable in tunables}.union(os.environ)
    if any(f"MALLOC_{x.upper()}_" in chosen or f"glibc.malloc.{x}" in chosen for x in _CHOICES):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_MAX, 0))
