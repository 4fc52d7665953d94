# SPDX-License-Identifier: BSD-3-Clause
"""Other people's detectors on our kernels: `accelerate`, `restore`, `accelerated`."""

from ssd_fast.integrations.accelerate import accelerate, accelerated, restore

__all__ = ["accelerate", "accelerated", "restore"]
