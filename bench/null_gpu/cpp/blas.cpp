// cuBLAS and cuBLASLt: matmuls do nothing (the build generates them); handles remember their settings.
#include <cstdint>
#include <cstring>

#include "conditions.h"
#include "export.h"
#include "runtime.h"

namespace {

struct Handle {
  void* own_memory = nullptr;
  void* stream = nullptr;
  int math_mode = 0;
  int pointer_mode = 0;
  int atomics_mode = 0;
};

constexpr int success = 0, alloc_failed = 3;

// Descriptors of matmuls are opaque to callers and to us. They are at least as large as the library's own.
int describe(void** description) {
  *description = new char[512]();
  return success;
}
int forget(void* description) {
  delete[] static_cast<char*>(description);
  return success;
}

}  // namespace

EXPORT int cublasCreate_v2(Handle** handle) {
  void* own_memory = nullptr;
  if (cudaMalloc(&own_memory, null_gpu::conditions().cublas_bytes) != cudaSuccess) {
    cudaGetLastError();  // the status reports it
    return alloc_failed;
  }
  *handle = new Handle;
  (*handle)->own_memory = own_memory;
  return success;
}
EXPORT int cublasDestroy_v2(Handle* handle) {
  cudaFree(handle->own_memory);
  delete handle;
  return success;
}
EXPORT int cublasGetVersion_v2(Handle*, int* version) {
  *version = NULL_GPU_CUBLAS_VERSION;
  return success;
}
EXPORT int cublasGetProperty(int part, int* value) {
  const int parts[] = {NULL_GPU_CUBLAS_VERSION / 10000, NULL_GPU_CUBLAS_VERSION / 100 % 100,
                       NULL_GPU_CUBLAS_VERSION % 100};
  *value = parts[part];
  return success;
}
EXPORT int cublasSetStream_v2(Handle* handle, void* stream) {
  handle->stream = stream;
  return success;
}
EXPORT int cublasGetStream_v2(Handle* handle, void** stream) {
  *stream = handle->stream;
  return success;
}
EXPORT int cublasSetWorkspace_v2(Handle*, void*, size_t) { return success; }
EXPORT int cublasSetMathMode(Handle* handle, int mode) {
  handle->math_mode = mode;
  return success;
}
EXPORT int cublasGetMathMode(Handle* handle, int* mode) {
  *mode = handle->math_mode;
  return success;
}
EXPORT int cublasSetPointerMode_v2(Handle* handle, int mode) {
  handle->pointer_mode = mode;
  return success;
}
EXPORT int cublasGetPointerMode_v2(Handle* handle, int* mode) {
  *mode = handle->pointer_mode;
  return success;
}
EXPORT int cublasSetAtomicsMode(Handle* handle, int mode) {
  handle->atomics_mode = mode;
  return success;
}
EXPORT int cublasGetAtomicsMode(Handle* handle, int* mode) {
  *mode = handle->atomics_mode;
  return success;
}
EXPORT int cublasSetSmCountTarget(Handle*, int) { return success; }
EXPORT int cublasSetEmulationStrategy(Handle*, int) { return success; }

EXPORT const char* cublasGetStatusName(int status) {
  switch (status) {
    case success: return "CUBLAS_STATUS_SUCCESS";
    case alloc_failed: return "CUBLAS_STATUS_ALLOC_FAILED";
    default: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}
EXPORT const char* cublasGetStatusString(int status) {
  switch (status) {
    case success: return "success";
    case alloc_failed: return "the resource allocation failed";
    default: return "not supported by the null GPU";
  }
}

EXPORT int cublasLtCreate(void** handle) { return describe(handle); }
EXPORT int cublasLtDestroy(void* handle) { return forget(handle); }
EXPORT size_t cublasLtGetVersion() { return NULL_GPU_CUBLAS_VERSION; }
EXPORT size_t cublasLtGetCudartVersion() { return NULL_GPU_CUDART_VERSION; }
EXPORT const char* cublasLtGetStatusName(int status) { return cublasGetStatusName(status); }
EXPORT const char* cublasLtGetStatusString(int status) { return cublasGetStatusString(status); }

EXPORT int cublasLtMatmulDescCreate(void** description, int, int) { return describe(description); }
EXPORT int cublasLtMatmulDescInit_internal(void* description, size_t bytes, int, int) {
  memset(description, 0, bytes);
  return success;
}
EXPORT int cublasLtMatmulDescDestroy(void* description) { return forget(description); }
EXPORT int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t) { return success; }
EXPORT int cublasLtMatrixLayoutCreate(void** layout, int, uint64_t, uint64_t, int64_t) { return describe(layout); }
EXPORT int cublasLtMatrixLayoutInit_internal(void* layout, size_t bytes, int, uint64_t, uint64_t, int64_t) {
  memset(layout, 0, bytes);
  return success;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) { return forget(layout); }
EXPORT int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t) { return success; }
EXPORT int cublasLtMatrixTransformDescCreate(void** description, int) { return describe(description); }
EXPORT int cublasLtMatrixTransformDescDestroy(void* description) { return forget(description); }
EXPORT int cublasLtMatrixTransformDescSetAttribute(void*, int, const void*, size_t) { return success; }
EXPORT int cublasLtMatrixTransform() { return success; }
EXPORT int cublasLtMatmulPreferenceCreate(void** preference) { return describe(preference); }
EXPORT int cublasLtMatmulPreferenceInit_internal(void* preference, size_t bytes) {
  memset(preference, 0, bytes);
  return success;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) { return forget(preference); }
EXPORT int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return success; }
EXPORT int cublasLtMatmul() { return success; }

// cublasLtMatmulHeuristicResult_t. Every matmul has an algorithm that needs no workspace; callers
// allocate theirs before this call.
struct Algorithm {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, Algorithm* results,
                                          int* found) {
  results[0] = {};
  results[0].waves = 1;
  *found = 1;
  return success;
}
