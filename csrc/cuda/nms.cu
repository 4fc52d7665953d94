// SPDX-License-Identifier: BSD-3-Clause
// CUDA kernels of ssd_fast::nms, batched_nms and nms_padded. Contract: ssd_fast/ops/nms.py.
//
// The algorithm is csrc/nms_blocks.h. Here are the kernels around it; nms.cpp launches them.
#include "launch.h"

namespace ssd_fast {

template <typename Work>
__device__ __forceinline__ void run(const Work& work) {
  __shared__ typename Work::Shared shared;
  work.run(Block{}, static_cast<int32_t>(blockIdx.x), shared);
}

__global__ void __launch_bounds__(kThreads, 1) prepare_keys(const PrepareKeys work) { run(work); }

__global__ void __launch_bounds__(kManyThreads, 1) suppress_segments(const SuppressSegments work) {
  run(work);
}

__global__ void __launch_bounds__(kThreads, 1) compare_tile(const CompareTile work) { run(work); }

__global__ void __launch_bounds__(kManyThreads, 1) sweep_tile(const SweepTile work) { run(work); }

__global__ void __launch_bounds__(kThreads, 1) collect_kept(const CollectKept work) { run(work); }

namespace {

const char* problem(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  if (error != cudaErrorNoKernelImageForDevice) return cudaGetErrorString(error);
  return "expected a GPU that this build has code for, as `ssd-fast info` lists them; install "
         "again with TORCH_CUDA_ARCH_LIST, or move the tensors to the CPU";
}

}  // namespace

const char* launch(const PrepareKeys& work, int32_t blocks, int32_t threads, void* stream) {
  prepare_keys<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return problem(cudaGetLastError());
}

const char* launch(const SuppressSegments& work, int32_t blocks, int32_t threads, void* stream) {
  suppress_segments<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return problem(cudaGetLastError());
}

const char* launch(const CompareTile& work, int32_t blocks, int32_t threads, void* stream) {
  compare_tile<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return problem(cudaGetLastError());
}

const char* launch(const SweepTile& work, int32_t blocks, int32_t threads, void* stream) {
  sweep_tile<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return problem(cudaGetLastError());
}

const char* launch(const CollectKept& work, int32_t blocks, int32_t threads, void* stream) {
  collect_kept<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return problem(cudaGetLastError());
}

const char* set_device(int32_t device) { return problem(cudaSetDevice(device)); }

const char* read_number(const void* number, int64_t* value, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      cudaMemcpyAsync(value, number, sizeof(*value), cudaMemcpyDeviceToHost, on);
  return problem(error == cudaSuccess ? cudaStreamSynchronize(on) : error);
}

}  // namespace ssd_fast
