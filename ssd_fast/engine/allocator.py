# SPDX-License-Identifier: BSD-3-Clause
"""What the C library does with memory that a training step gives back."""

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for the next step, which asks for as much again.

    By itself it gives the activations of a step back to the system, and the first touch of each new
    page of the next step's is a fault: of a step of SSD300 on a CPU a tenth in bfloat16, a fifth in
    float32. The process stays as large as it once was, up to a quarter larger than otherwise.

    It holds for the whole process, so it is for programs to call, not for libraries. Who has
    chosen otherwise in the environment (``MALLOC_TRIM_THRESHOLD_`` and its like, or
    ``GLIBC_TUNABLES``) is left alone, and so is any other C library.

    Returns:
        Whether anything was changed.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_MMAP_MAX, 0))
