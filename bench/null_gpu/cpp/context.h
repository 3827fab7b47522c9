// CUDA's state in this process: who started it, which device a thread works on, the last error.
#pragma once

#include <driver_types.h>

#include "export.h"

namespace null_gpu {

// The first call of a process starts CUDA in it. A fork of such a process cannot use CUDA, as with a real driver.
cudaError_t begin();

int current_device();
// Adds this process to those that compute on the card of `device`; out of memory if the context does not fit.
cudaError_t begin_on(int device);
// The same, and makes this thread work on `device`.
cudaError_t use_device(int device);
bool has_context(int device);

// Remembers `error` for cudaGetLastError, and returns it.
cudaError_t failed(cudaError_t error);

}  // namespace null_gpu

// At the top of functions that a real driver refuses in a forked process, or without a device.
#define BEGIN                                                        \
  do {                                                               \
    const cudaError_t begun = null_gpu::begin();                     \
    if (begun != cudaSuccess) return null_gpu::failed(begun);        \
  } while (false)

// For functions that need a context on `device` with a real driver.
#define USE(device)                                                  \
  do {                                                               \
    const cudaError_t used = null_gpu::use_device(device);           \
    if (used != cudaSuccess) return null_gpu::failed(used);          \
  } while (false)
