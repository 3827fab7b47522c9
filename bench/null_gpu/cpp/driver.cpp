// The part of the driver that torch, Triton and other loaders of kernels use.
#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "addresses.h"
#include "card.h"
#include "context.h"
#include "devices.h"
#include "launches.h"
#include "ledger.h"
#include "refusals.h"
#include "runtime.h"

using namespace null_gpu;

namespace {

constexpr int success = 0, invalid_value = 1, invalid_context = 201, not_found = 500;

// A context is the address of its device's entry here.
char contexts[256];
void* context_of(int device) { return &contexts[device]; }
int device_of(const void* context) { return static_cast<int>(static_cast<const char*>(context) - contexts); }

struct Function {
  std::string name;
  int dynamic_shared_bytes;
};

}  // namespace

EXPORT int cuInit(unsigned) { return begin(); }

EXPORT int cuDriverGetVersion(int* version) { return cudaDriverGetVersion(version); }

EXPORT int cuDeviceGetCount(int* count) {
  const int error = begin();
  *count = error == success ? visible_cards() : 0;
  return error == cudaErrorNoDevice ? success : error;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
  if (ordinal < 0 || ordinal >= visible_cards()) return cudaErrorInvalidDevice;
  *device = ordinal;
  return success;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = device_attribute(attribute, device);
  return success;
}

EXPORT int cuDeviceGetName(char* text, int room, int) {
  snprintf(text, room, "%s", card().name.c_str());
  return success;
}

EXPORT int cuDeviceGetUuid_v2(unsigned char* bytes, int device) {
  uuid_of(card_of(device), bytes);
  return success;
}
EXPORT int cuDeviceGetUuid(unsigned char* bytes, int device) { return cuDeviceGetUuid_v2(bytes, device); }

EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = card().usable_bytes;
  return success;
}

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) { return cudaMemGetInfo(free, total); }

EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  *flags = 0;
  *active = has_context(device);
  return success;
}

EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
  const int error = begin();
  if (error != success) return error;
  *context = context_of(device);
  return begin_on(device);
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return success; }

EXPORT int cuCtxGetCurrent(void** context) {
  *context = has_context(current_device()) ? context_of(current_device()) : nullptr;
  return success;
}

EXPORT int cuCtxSetCurrent(void* context) { return context == nullptr ? success : use_device(device_of(context)); }

EXPORT int cuCtxGetDevice(int* device) {
  if (!has_context(current_device())) return invalid_context;
  *device = current_device();
  return success;
}

EXPORT int cuCtxSynchronize() { return success; }
EXPORT int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return cudaDeviceGetStreamPriorityRange(least, greatest);
}
// Limits of stacks and heaps inside kernels.
EXPORT int cuCtxGetLimit(size_t* value, int) {
  *value = 1024;
  return success;
}
EXPORT int cuCtxSetLimit(int, size_t) { return success; }

EXPORT int cuGetErrorString(int error, const char** text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return success;
}

EXPORT int cuGetErrorName(int error, const char** text) {
  switch (error) {
    case success: *text = "CUDA_SUCCESS"; break;
    case invalid_value: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case cudaErrorMemoryAllocation: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case not_found: *text = "CUDA_ERROR_NOT_FOUND"; break;
    case cudaErrorNotSupported: *text = "CUDA_ERROR_NOT_SUPPORTED"; break;
    default: *text = "CUDA_ERROR_UNKNOWN"; break;
  }
  return success;
}

// A module is a token; its functions carry their names, by which launches are counted.
EXPORT int cuModuleLoadData(void** module, const void*) {
  *module = new char;
  return success;
}
EXPORT int cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) {
  return cuModuleLoadData(module, image);
}
EXPORT int cuModuleLoad(void** module, const char*) { return cuModuleLoadData(module, nullptr); }
EXPORT int cuModuleUnload(void* module) {
  delete static_cast<char*>(module);
  return success;
}
EXPORT int cuModuleGetFunction(Function** function, void*, const char* name) {
  *function = new Function{name, 0};  // lives as long as the process, as its module nearly always does
  return success;
}

EXPORT int cudaLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  return cuModuleLoadData(library, code);
}
EXPORT int cudaLibraryUnload(void* library) { return cuModuleUnload(library); }
EXPORT int cudaLibraryGetKernel(Function** kernel, void* library, const char* name) {
  return cuModuleGetFunction(kernel, library, name);
}
EXPORT int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  return cuModuleLoadData(library, code);
}
EXPORT int cuLibraryUnload(void* library) { return cuModuleUnload(library); }
EXPORT int cuLibraryGetKernel(Function** kernel, void* library, const char* name) {
  return cuModuleGetFunction(kernel, library, name);
}
EXPORT int cuKernelGetFunction(Function** function, Function* kernel) {
  *function = kernel;
  return success;
}

EXPORT int cuFuncGetAttribute(int* value, int attribute, Function* function) {
  enum { threads, shared, constant, local, registers, ptx, binary, cache, dynamic_shared };
  switch (attribute) {
    case threads: *value = 1024; break;
    case registers: *value = 32; break;
    case ptx:
    case binary: *value = card().major * 10 + card().minor; break;
    case dynamic_shared: *value = function->dynamic_shared_bytes; break;
    default: *value = 0; break;
  }
  return success;
}

EXPORT int cuFuncSetAttribute(Function* function, int attribute, int value) {
  constexpr int dynamic_shared = 8;
  if (attribute != dynamic_shared) return success;
  if (value > static_cast<int>(card().shared_bytes_per_block)) return invalid_value;
  function->dynamic_shared_bytes = value;
  return success;
}
EXPORT int cuFuncSetCacheConfig(Function*, int) { return success; }

EXPORT int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned, void*, void**, void**) {
  return launched(function->name.c_str(), {gx, gy, gz}, {bx, by, bz});
}
EXPORT int cuLaunchCooperativeKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                     unsigned by, unsigned bz, unsigned, void*, void**) {
  return launched(function->name.c_str(), {gx, gy, gz}, {bx, by, bz});
}
// The configuration begins with the grid and the block.
EXPORT int cuLaunchKernelEx(const Extent* grid_and_block, Function* function, void**, void**) {
  return launched(function->name.c_str(), grid_and_block[0], grid_and_block[1]);
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function*, int threads, size_t shared) {
  *blocks = resident_blocks(threads, shared);
  return success;
}
EXPORT int cuOccupancyMaxActiveClusters(int* clusters, Function*, const void*) {
  *clusters = card().multiprocessors / 2;
  return success;
}

EXPORT int cuTensorMapEncodeTiled() { return success; }
EXPORT int cuTensorMapEncodeIm2col() { return success; }

EXPORT int cuPointerGetAttribute(void* value, int attribute, uintptr_t address) {
  enum { context = 1, memory_type = 2, device_pointer = 3, host_pointer = 4, is_managed = 8, ordinal = 9, start = 11 };
  constexpr int bytes = 12, host = 1, device = 2;
  const Range range = find(reinterpret_cast<void*>(address));
  if (range.start == 0) return invalid_value;
  switch (attribute) {
    case context: *static_cast<void**>(value) = context_of(range.device); return success;
    case memory_type: *static_cast<int*>(value) = range.kind == Kind::pinned ? host : device; return success;
    case device_pointer: *static_cast<uintptr_t*>(value) = address; return success;
    case host_pointer:
      if (range.kind == Kind::device || range.kind == Kind::reserved) return invalid_value;
      *static_cast<uintptr_t*>(value) = address;
      return success;
    case is_managed: *static_cast<int*>(value) = range.kind == Kind::managed; return success;
    case ordinal: *static_cast<int*>(value) = range.device; return success;
    case start: *static_cast<uintptr_t*>(value) = range.start; return success;
    case bytes: *static_cast<size_t*>(value) = range.bytes; return success;
    default: return refuse(("cuPointerGetAttribute of attribute " + std::to_string(attribute)).c_str(),
                           cudaErrorNotSupported);
  }
}

EXPORT int cuMemGetAddressRange_v2(uintptr_t* start, size_t* bytes, uintptr_t address) {
  const Range range = find(reinterpret_cast<void*>(address));
  if (range.start == 0) return invalid_value;
  if (start != nullptr) *start = range.start;
  if (bytes != nullptr) *bytes = range.bytes;
  return success;
}

EXPORT int cuMemsetD32Async(uintptr_t to, unsigned value, size_t count, void*) {
  if (value == 0) fill(reinterpret_cast<void*>(to), 0, 4 * count);
  else if (4 * count <= real_bytes) for (size_t i = 0; i < count; i++) reinterpret_cast<unsigned*>(to)[i] = value;
  return success;
}

namespace {

// The function of that name in this library, under its newest version.
void* function_named(const char* name) {
  static void* const self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  for (const char* suffix : {"_v2", ""}) {
    if (void* found = dlsym(self, (std::string(name) + suffix).c_str())) return found;
  }
  return nullptr;
}

// Functions that callers look up by name and that do not exist here, each with a substitute that fails and reports the
// name. Some callers look up all addresses that they may ever need, and end the program if one is missing.
constexpr int most_stand_ins = 256;
std::mutex stand_ins_lock;
std::string stand_in_names[most_stand_ins];

template <int number>
int stand_in() {
  return refuse(stand_in_names[number].c_str(), cudaErrorNotSupported);
}

template <int... numbers>
constexpr auto all_stand_ins(std::integer_sequence<int, numbers...>) {
  return std::array<int (*)(), sizeof...(numbers)>{&stand_in<numbers>...};
}

void* stand_in_for(const std::string& name) {
  static constexpr auto functions = all_stand_ins(std::make_integer_sequence<int, most_stand_ins>{});
  std::lock_guard<std::mutex> guard(stand_ins_lock);
  for (int i = 0; i < most_stand_ins; i++) {
    if (stand_in_names[i].empty()) stand_in_names[i] = name;
    if (stand_in_names[i] == name) return reinterpret_cast<void*>(functions[i]);
  }
  fatal("null GPU: too many functions of the driver are asked for");
}

}  // namespace

// Other missing functions of the driver are not found: their callers have a fallback.
EXPORT int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  *function = function_named(name);
  if (status != nullptr) *status = *function != nullptr ? 0 : 1;
  return *function != nullptr ? success : not_found;
}

EXPORT int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* status) {
  *function = function_named(name);
  if (*function == nullptr) *function = stand_in_for(name);
  if (status != nullptr) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags,
                                           cudaDriverEntryPointQueryResult* status) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, status);
}

// Called by copies of the CUDA runtime that are linked into a library, which the null GPU cannot replace.
EXPORT int cuGetExportTable(const void**, const void*) {
  return refuse("cuGetExportTable: a library with a CUDA runtime of its own", cudaErrorNotSupported);
}
