# SPDX-License-Identifier: BSD-3-Clause
"""`python -m ssd_fast.cli`, the same as `ssd-fast`."""

import sys

from ssd_fast.cli.command_line import main

if __name__ == "__main__":
    sys.exit(main())
