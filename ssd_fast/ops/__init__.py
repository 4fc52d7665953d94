# SPDX-License-Identifier: BSD-3-Clause
"""The operators: one file each, with contract, public function, reference, schema and fake."""
