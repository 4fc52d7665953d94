# SPDX-License-Identifier: BSD-3-Clause
"""Training, evaluation and prediction: what the commands of `ssd-fast` are built of.

Each module is imported by name (`from ssd_fast.engine.trainer import Trainer`), so that training
does not load what only pictures need.
"""
