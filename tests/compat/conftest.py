# SPDX-License-Identifier: BSD-3-Clause
"""`benchmarks` is a folder of the checkout, not an installed package: make it importable.

Appended, not prepended, so that an installed `ssd_fast` still comes first.
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
