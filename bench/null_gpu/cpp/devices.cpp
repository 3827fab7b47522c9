#include "devices.h"

#include <cstdio>
#include <cstring>

#include "card.h"
#include "context.h"

using namespace null_gpu;

namespace null_gpu {

int device_attribute(int attribute, int device) {
  const Card& c = card();
  // Attributes that only the driver has.
  constexpr int virtual_memory_supported = 102, posix_handles_supported = 103;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX: return 1024;
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: return 65535;
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrTotalConstantMemory: return 64 << 10;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxPitch: return 2147483647;
    case cudaDevAttrMaxRegistersPerBlock: return 65536;
    case cudaDevAttrTextureAlignment: return 512;
    case cudaDevAttrTexturePitchAlignment: return 32;
    case cudaDevAttrMultiProcessorCount: return c.multiprocessors;
    case cudaDevAttrPciBusId: return card_of(device) + 1;
    case cudaDevAttrL2CacheSize: return static_cast<int>(c.cache_bytes);
    case cudaDevAttrMaxThreadsPerMultiProcessor: return c.threads_per_multiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return c.blocks_per_multiprocessor;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrComputeCapabilityMajor: return c.major;
    case cudaDevAttrComputeCapabilityMinor: return c.minor;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return static_cast<int>(c.shared_bytes_per_multiprocessor);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return static_cast<int>(c.shared_bytes_per_block);
    case cudaDevAttrReservedSharedMemoryPerBlock: return c.major >= 8 ? 1024 : 0;
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrComputePreemptionSupported:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrMemoryPoolsSupported:
    case virtual_memory_supported:
    case posix_handles_supported: return 1;
    case cudaDevAttrClusterLaunch: return c.major >= 9;
    // The null GPU has no rates (clocks, memory bus) and no optional features (multicast, RDMA, MPS).
    default: return 0;
  }
}

}  // namespace null_gpu

EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  BEGIN;
  *count = visible_cards();
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDevice(int* device) {
  BEGIN;
  *device = current_device();
  return cudaSuccess;
}

EXPORT cudaError_t cudaSetDevice(int device) {
  BEGIN;
  USE(device);
  return cudaSuccess;
}

EXPORT cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }
EXPORT cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSetLimit(int, size_t) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSetCacheConfig(int) { return cudaSuccess; }

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  BEGIN;
  if (device < 0 || device >= visible_cards()) return failed(cudaErrorInvalidDevice);
  const auto is = [device](int attribute) { return device_attribute(attribute, device); };
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", card().name.c_str());
  visible_uuid_of(card_of(device), reinterpret_cast<unsigned char*>(p->uuid.bytes));
  // CUDA's total memory of a device excludes the driver's part.
  p->totalGlobalMem = card().usable_bytes;
  p->sharedMemPerBlock = is(cudaDevAttrMaxSharedMemoryPerBlock);
  p->regsPerBlock = is(cudaDevAttrMaxRegistersPerBlock);
  p->warpSize = is(cudaDevAttrWarpSize);
  p->memPitch = is(cudaDevAttrMaxPitch);
  p->maxThreadsPerBlock = is(cudaDevAttrMaxThreadsPerBlock);
  p->maxThreadsDim[0] = is(cudaDevAttrMaxBlockDimX);
  p->maxThreadsDim[1] = is(cudaDevAttrMaxBlockDimY);
  p->maxThreadsDim[2] = is(cudaDevAttrMaxBlockDimZ);
  p->maxGridSize[0] = is(cudaDevAttrMaxGridDimX);
  p->maxGridSize[1] = is(cudaDevAttrMaxGridDimY);
  p->maxGridSize[2] = is(cudaDevAttrMaxGridDimZ);
  p->totalConstMem = is(cudaDevAttrTotalConstantMemory);
  p->major = card().major;
  p->minor = card().minor;
  p->textureAlignment = is(cudaDevAttrTextureAlignment);
  p->texturePitchAlignment = is(cudaDevAttrTexturePitchAlignment);
  p->multiProcessorCount = card().multiprocessors;
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
  p->pciBusID = is(cudaDevAttrPciBusId);
  p->asyncEngineCount = is(cudaDevAttrAsyncEngineCount);
  p->l2CacheSize = is(cudaDevAttrL2CacheSize);
  p->maxThreadsPerMultiProcessor = is(cudaDevAttrMaxThreadsPerMultiProcessor);
  p->maxBlocksPerMultiProcessor = is(cudaDevAttrMaxBlocksPerMultiprocessor);
  p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->sharedMemPerMultiprocessor = is(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  p->sharedMemPerBlockOptin = is(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p->reservedSharedMemPerBlock = is(cudaDevAttrReservedSharedMemoryPerBlock);
  p->regsPerMultiprocessor = is(cudaDevAttrMaxRegistersPerMultiprocessor);
  p->managedMemory = p->concurrentManagedAccess = p->computePreemptionSupported = p->cooperativeLaunch = 1;
  p->hostRegisterSupported = p->memoryPoolsSupported = 1;
  p->clusterLaunch = is(cudaDevAttrClusterLaunch);
  return cudaSuccess;
}

// CUDA 12's name for it.
EXPORT cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int device) {
  return cudaGetDeviceProperties(properties, device);
}

EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  BEGIN;
  if (device < 0 || device >= visible_cards()) return failed(cudaErrorInvalidDevice);
  *value = device_attribute(attribute, device);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int room, int device) {
  BEGIN;
  snprintf(text, room, "00000000:%02X:00.0", card_of(device) + 1);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize() {
  BEGIN;
  USE(current_device());
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceReset() { return cudaSuccess; }

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  BEGIN;
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  BEGIN;
  *can = device != peer;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceDisablePeerAccess(int) { return cudaSuccess; }

EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = NULL_GPU_CUDART_VERSION;
  return cudaSuccess;
}

EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = NULL_GPU_CUDART_VERSION;
  return cudaSuccess;
}
