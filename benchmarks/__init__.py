# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks of ssd_fast beside the systems people use today; run them with `pytest benchmarks`."""
