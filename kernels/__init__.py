# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels, one file an operator. An operator imports its own at its first GPU call.

Numbers that change from call to call, as that of the objects does, are not specialised: a value of
1 or a multiple of 16 would have the kernel compiled again, for seconds, amid a training.
"""
