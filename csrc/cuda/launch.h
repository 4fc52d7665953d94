// SPDX-License-Identifier: BSD-3-Clause
// What the host code asks of CUDA. Neither nvcc has to read torch's headers, nor the host compiler
// CUDA's. Every function returns null, or what went wrong.
#pragma once

#include <cstdint>

#include "../nms_blocks.h"

namespace ssd_fast {

// Runs the kernel of a piece of work on a stream (a cudaStream_t).
const char* launch(const PrepareKeys& work, int32_t blocks, int32_t threads, void* stream);
const char* launch(const SuppressSegments& work, int32_t blocks, int32_t threads, void* stream);
const char* launch(const CompareTile& work, int32_t blocks, int32_t threads, void* stream);
const char* launch(const SweepTile& work, int32_t blocks, int32_t threads, void* stream);
const char* launch(const CollectKept& work, int32_t blocks, int32_t threads, void* stream);

const char* set_device(int32_t device);

// Waits for the stream and reads a number from the device's memory.
const char* read_number(const void* number, int64_t* value, void* stream);

}  // namespace ssd_fast
