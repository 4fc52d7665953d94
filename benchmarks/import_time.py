# SPDX-License-Identifier: BSD-3-Clause
"""Times what `import ssd_fast` and `ssd-fast --help` add to `import torch`; fails over budget.

Run by the Python that has the package: `python benchmarks/import_time.py`. Medians of fresh
processes that have imported torch.
"""

import os
import statistics
import subprocess
import sys

RUNS = 7
IMPORT_BUDGET_MS = 100
HELP_BUDGET_MS = 300
IMPORT = (
    "import time, torch; start = time.perf_counter(); import ssd_fast;"
    "print(time.perf_counter() - start)"
)
HELP = """
import contextlib, sys, time, torch
start = time.perf_counter()
from ssd_fast.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    main(["--help"])
print(time.perf_counter() - start)
"""


def added_ms(code: str) -> float:
    """Returns the milliseconds that a process prints: what it did after `import torch`.

    That import takes seconds, and differs from process to process by more than the budgets. pip
    compiles what it installs; in a checkout the first run does, unless the environment forbids it,
    and then half the time of the others is Python's compiler.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, env=environment)
    return 1e3 * float(output.stdout)


def main() -> int:
    """Prints both medians beside their budgets; returns 1 when one is over."""
    # The first run fills the caches.
    imports, helps = ([added_ms(code) for _ in range(RUNS + 1)][1:] for code in (IMPORT, HELP))
    added, above = statistics.median(imports), statistics.median(helps)
    print(f"import ssd_fast adds   {added:7.0f} ms (budget {IMPORT_BUDGET_MS})")
    print(f"ssd-fast --help adds   {above:7.0f} ms (budget {HELP_BUDGET_MS})")
    return int(added > IMPORT_BUDGET_MS or above > HELP_BUDGET_MS)


if __name__ == "__main__":
    sys.exit(main())
