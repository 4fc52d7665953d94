# SPDX-License-Identifier: BSD-3-Clause
"""Times `import ssd_fast` and `ssd-fast --help` against `import torch`; fails over budget.

Run by the Python that has the package: `python benchmarks/import_time.py`. Medians of fresh
processes, alternating, so that a busy machine burdens all alike.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 7
IMPORT_BUDGET_MS = 100
HELP_BUDGET_MS = 300
IMPORT = (
    "import time, torch; start = time.perf_counter(); import ssd_fast;"
    "print(time.perf_counter() - start)"
)


def wall_ms(command: list[str]) -> float:
    """Returns the milliseconds that a command takes, its output thrown away."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1e3 * (time.perf_counter() - start)


def import_ms() -> float:
    """Returns the milliseconds that `import ssd_fast` adds to a process that has torch."""
    output = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True)
    return 1e3 * float(output.stdout)


def main() -> int:
    """Prints both medians beside their budgets; returns 1 when one is over."""
    program = str(Path(sys.executable).with_name("ssd-fast"))
    imports, torches, helps = [], [], []
    for run in range(RUNS + 1):
        times = import_ms(), wall_ms([sys.executable, "-c", "import torch"])
        help_time = wall_ms([program, "--help"])
        if run:  # the first one fills the caches
            imports.append(times[0])
            torches.append(times[1])
            helps.append(help_time)
    added = statistics.median(imports)
    torch_alone = statistics.median(torches)
    above = statistics.median(helps) - torch_alone
    print(f"import torch           {torch_alone:7.0f} ms")
    print(f"import ssd_fast adds   {added:7.0f} ms (budget {IMPORT_BUDGET_MS})")
    print(f"ssd-fast --help adds   {above:7.0f} ms (budget {HELP_BUDGET_MS})")
    return int(added > IMPORT_BUDGET_MS or above > HELP_BUDGET_MS)


if __name__ == "__main__":
    sys.exit(main())
