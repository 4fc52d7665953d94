// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA launches need of torch, through the LibTorch stable ABI. Host code only.
//
// The module must load beside a torch without CUDA, so nothing here links to libtorch_cuda: the
// stream is looked up in the process, and sorting goes through the dispatcher.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include "launch.h"

namespace ssd_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_cuda(const char* problem, const char* what) {
  STD_TORCH_CHECK(problem == nullptr, what, ": ", problem);
}

// Makes a device the current one, for torch and for the runtime that is linked here.
class OnDevice {
 public:
  explicit OnDevice(int32_t device) : guard_(device) {
    check_cuda(set_device(device), "setting the device");
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// Torch's current stream of a device, a cudaStream_t.
inline void* current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* const scope = library == nullptr ? RTLD_DEFAULT : library;
    return reinterpret_cast<Get>(dlsym(scope, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "expected a torch with CUDA, whose libtorch_cuda.so is loaded");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

// torch.sort(tensor, stable=True): values and indices. Several launches, no synchronisation.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& tensor, bool descending) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(tensor), from(std::optional<bool>(true)), from(int64_t{0}),
                                    from(descending)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// tensor[indices].
inline Tensor take(const Tensor& tensor, const Tensor& indices) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(tensor), from(int64_t{0}), from(indices)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace ssd_fast
