# SPDX-License-Identifier: BSD-3-Clause
"""The naive designs, one file a system, each written anew from how that system behaves.

The benchmarks time ssd_fast against these, and the drop-in losses are compared with them, so each
file keeps its system's matching rule, thresholds, mining key, normalisation and crashes. What had
to change to run on today's PyTorch stands in the file's docstring. Plain PyTorch, no ssd_fast.
"""
