// Functions of the runtime that other parts of this library call.
#pragma once

#include <cstddef>

#include <driver_types.h>

#include "export.h"

EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes);
EXPORT cudaError_t cudaFree(void* pointer);
EXPORT cudaError_t cudaGetLastError();
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
EXPORT cudaError_t cudaDriverGetVersion(int* version);
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest);
EXPORT const char* cudaGetErrorString(cudaError_t error);
