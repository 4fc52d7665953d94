# SPDX-License-Identifier: BSD-3-Clause
"""The program `ssd-fast`. Each command is one dataclass: its fields are its options."""

from ssd_fast.cli.command_line import main

__all__ = ["main"]
