# SPDX-License-Identifier: BSD-3-Clause
# The compiled module; its operators are in torch.ops.ssd_fast once it is imported.
source_hash: str  # of csrc/ and setup.py
compiler: str
torch_target: str  # the oldest torch it loads on
torch_headers: str  # the torch it was compiled against
with_cuda: bool
cuda_version: str  # of nvcc; "" without CUDA
cuda_architectures: str  # space-separated, such as "9.0 12.0+PTX"; "" without CUDA

def instruction_sets() -> tuple[str, ...]: ...  # of this machine, from the plainest to the best
def instruction_set() -> str: ...  # the one in use: the best, unless another was set
def set_instruction_set(name: str) -> None: ...  # for tests; results are equal
