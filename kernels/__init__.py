# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels, one file an operator. An operator imports its own at its first GPU call."""
