// SPDX-License-Identifier: BSD-3-Clause
// Memory for the gradients of deltas and logits, which a training step asks for and frees each
// time.
//
// Memory fresh from the system costs more than all the rest of a backward: its first touch runs at
// 2.5 GB/s in small pages, 10 GB/s in large ones, a memset of it again at 20 GB/s. So the gradients
// of a call lie in one slab of large pages, and of the slabs that come back, the last is kept for
// the next call: zeroed by stores that pass the caches by, at 40 GB/s, it costs a fifth. Nothing is
// known of what a slab holds when it comes back, for its gradients may have been changed in place.
// A gradient that somebody keeps holds its slab whole, and its storage cannot be resized.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "tensors.h"

namespace ssd_fast {

// One piece of memory that several tensors share; the last of them gives it back.
class Slab {
 public:
  // A slab of at least `bytes` with one user, or null where the system has none to give.
  static Slab* take(int64_t bytes) {
    bytes = (bytes + kPage - 1) & ~(kPage - 1);
    Slab* slab = spare().exchange(nullptr);
    if (slab && (slab->capacity_ < bytes || slab->capacity_ / 4 > bytes)) {
      delete slab;
      slab = nullptr;
    }
    if (!slab) return map(bytes);
    slab->users_ = 1;
    slab->is_zero_ = false;
    return slab;
  }

  char* data() const { return data_; }
  bool is_zero() const { return is_zero_; }

  void hold() { users_.fetch_add(1, std::memory_order_relaxed); }

  void release() {
    if (users_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    delete (capacity_ <= kMostKept ? spare().exchange(this) : this);
  }

 private:
  static constexpr int64_t kMostKept = int64_t{256} << 20;
  static constexpr int64_t kPage = int64_t{64} << 10;  // a multiple of every system's
  static constexpr int64_t kLargePage = int64_t{2} << 20;

  Slab(char* data, int64_t capacity) : data_(data), capacity_(capacity) {}

  ~Slab() {
#if defined(__linux__)
    munmap(data_, static_cast<size_t>(capacity_));
#endif
  }

  // The slab that waits for the next call. Never destroyed: tensors may outlive what a process
  // destroys as it ends.
  static std::atomic<Slab*>& spare() {
    static std::atomic<Slab*> waiting{nullptr};
    return waiting;
  }

  static Slab* map(int64_t bytes) {
#if defined(__linux__)
    const int64_t mapped = bytes + kLargePage;
    void* found = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(found);
    const int64_t skipped =
        -static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin)) & (kLargePage - 1);
    if (skipped > 0) munmap(begin, static_cast<size_t>(skipped));
    begin += skipped;
    munmap(begin + bytes, static_cast<size_t>(mapped - skipped - bytes));
    // Only whole pages are asked for, so that the gradients' memory grows by nothing.
    const int64_t whole = bytes & ~(kLargePage - 1);
    if (whole > 0) madvise(begin, static_cast<size_t>(whole), MADV_HUGEPAGE);
    return new Slab(begin, bytes);
#else
    (void)bytes;
    return nullptr;
#endif
  }

  char* data_;
  int64_t capacity_;
  bool is_zero_ = true;
  std::atomic<int64_t> users_{1};
};

// The gradients of one backward: tensors like those of the forward, carved from a slab.
class GradientMemory {
 public:
  explicit GradientMemory(const std::vector<const std::vector<Tensor>*>& all) {
    for (const auto* tensors : all) {
      for (const Tensor& tensor : *tensors) bytes_ += room(tensor);
    }
    if (bytes_ >= kLeast) slab_ = Slab::take(bytes_);
  }
  GradientMemory(const GradientMemory&) = delete;
  GradientMemory& operator=(const GradientMemory&) = delete;
  ~GradientMemory() {
    if (slab_) slab_->release();
  }

  // Tensors of the same sizes and dtypes, dense, in the strides of dense `inputs`; not initialised.
  std::vector<Tensor> like(const std::vector<Tensor>& inputs) {
    std::vector<Tensor> outputs;
    outputs.reserve(inputs.size());
    for (const Tensor& input : inputs) {
      const bool carved = slab_ && is_dense(input);
      outputs.push_back(carved ? carve(input) : empty_tensor_like(input));
      if (!carved) loose_.push_back(outputs.back());
    }
    return outputs;
  }

  // Fills with zeros what `like` has returned since the last call, by all threads.
  void fill_with_zeros() {
    if (slab_ && !slab_->is_zero()) fill(slab_->data() + filled_, used_ - filled_);
    filled_ = used_;
    for (const Tensor& tensor : loose_) {
      fill(static_cast<char*>(tensor.data_ptr()),
           tensor.numel() * static_cast<int64_t>(tensor.element_size()));
    }
    loose_.clear();
  }

  // Whether the memory holds something that no cache would: then who has much to write had better
  // write the zeros too, in order.
  bool is_worth_streaming() const { return slab_ && !slab_->is_zero() && bytes_ >= kStreamed; }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kLeast = 128 << 10;   // below, malloc does not ask the system
  static constexpr int64_t kStreamed = 4 << 20;  // above, what reads it next finds it in no cache

  // Bytes of a tensor in the slab.
  static int64_t room(const Tensor& tensor) {
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    return (bytes + kLine - 1) & ~(kLine - 1);
  }

  // Whether the elements fill one piece of memory, in any order of the dimensions.
  static bool is_dense(const Tensor& tensor) {
    if (tensor.is_contiguous()) return true;
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    std::vector<size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return strides[a] != strides[b] ? strides[a] < strides[b] : sizes[a] < sizes[b];
    });
    int64_t expected = 1;
    for (const size_t d : order) {
      if (sizes[d] != 1 && strides[d] != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }

  Tensor carve(const Tensor& input) {
    const auto give_back = [](void*, void* slab) { static_cast<Slab*>(slab)->release(); };
    AtenTensorHandle handle = nullptr;
    const auto error = torch_from_blob(
        slab_->data() + used_, input.dim(), input.sizes().data(), input.strides().data(), 0,
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(input.scalar_type())),
        aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
        give_back, slab_);
    TORCH_ERROR_CODE_CHECK(error);
    slab_->hold();
    used_ += room(input);
    return Tensor(handle);
  }

  void fill(char* data, int64_t bytes) const {
    constexpr int64_t kChunk = 1 << 20;
    torch::stable::parallel_for(0, bytes, kChunk, [&](int64_t begin, int64_t end) {
      zero(data + begin, end - begin, bytes_ >= kStreamed);
    });
  }

  static void zero(char* data, int64_t bytes, bool streamed) {
#if defined(__SSE2__)
    const int64_t ahead = -static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)) & (kLine - 1);
    if (streamed && bytes >= ahead + kLine) {
      std::memset(data, 0, static_cast<size_t>(ahead));
      data += ahead;
      bytes -= ahead;
      const __m128i zeros = _mm_setzero_si128();
      for (; bytes >= kLine; data += kLine, bytes -= kLine) {
        for (int64_t i = 0; i < kLine; i += 16) {
          _mm_stream_si128(reinterpret_cast<__m128i*>(data + i), zeros);
        }
      }
      _mm_sfence();  // or another thread might see them late
    }
#else
    (void)streamed;
#endif
    std::memset(data, 0, static_cast<size_t>(bytes));
  }

  Slab* slab_ = nullptr;
  int64_t bytes_ = 0;  // of all gradients
  int64_t used_ = 0;
  int64_t filled_ = 0;
  std::vector<Tensor> loose_;  // in memory of their own, not filled
};

}  // namespace ssd_fast
