#include "launches.h"

#include <cxxabi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "addresses.h"
#include "card.h"
#include "context.h"
#include "kernels.h"
#include "refusals.h"

using namespace null_gpu;

namespace null_gpu {
namespace {

bool counting() {
  static const bool asked = getenv("NULL_GPU_LAUNCHES") != nullptr;
  return asked;
}

std::mutex lock;

std::map<std::string, long>& counts() {
  static auto* all = new std::map<std::string, long>;
  return *all;
}

struct AtExit {
  ~AtExit() { write_launches(); }
} at_exit;

}  // namespace

// Count, tab, name.
void write_launches() {
  if (!counting() || counts().empty()) return;
  const std::string path = note_path("launches." + std::to_string(getpid()));
  FILE* file = path.empty() ? nullptr : fopen(path.c_str(), "w");
  if (file == nullptr) return;
  for (const auto& [name, count] : counts()) {
    int status = 0;
    char* readable = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    fprintf(file, "%ld\t%s\n", count, status == 0 ? readable : name.c_str());
    free(readable);
  }
  fclose(file);
}

cudaError_t launched(const char* name, Extent grid, Extent block) {
  const unsigned long long threads = 1ull * block.x * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024 || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (!counting()) return cudaSuccess;
  std::lock_guard<std::mutex> guard(lock);
  counts()[name]++;
  return cudaSuccess;
}

int resident_blocks(int threads, size_t shared) {
  const Card& c = card();
  int most = c.blocks_per_multiprocessor;
  if (threads > 0) most = std::min(most, c.threads_per_multiprocessor / ((threads + 31) / 32 * 32));
  if (shared > 0) most = std::min(most, static_cast<int>(c.shared_bytes_per_multiprocessor / shared));
  return most;
}

}  // namespace null_gpu

namespace {
struct Variable {
  size_t bytes;
  void* address;
};
std::mutex variables_lock;

std::unordered_map<const void*, Variable>& variables() {
  static auto* all = new std::unordered_map<const void*, Variable>;
  return *all;
}

// The address of a device variable. It is part of its module, and so of the context's bytes, not of the program's.
void* address_of(const void* variable) {
  std::lock_guard<std::mutex> guard(variables_lock);
  const auto known = variables().find(variable);
  if (known == variables().end()) return nullptr;
  Variable& found = known->second;
  if (found.address == nullptr) found.address = allocate(Kind::reserved, current_device(), found.bytes);
  return found.address;
}
}  // namespace

EXPORT void __cudaRegisterVar(void**, char* host, char*, const char*, int, size_t bytes, int, int) {
  std::lock_guard<std::mutex> guard(variables_lock);
  variables()[host] = {bytes, nullptr};
}

EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* variable) {
  BEGIN;
  *address = address_of(variable);
  return *address != nullptr ? cudaSuccess : failed(cudaErrorInvalidSymbol);
}

EXPORT cudaError_t cudaMemcpyToSymbol(const void* variable, const void* from, size_t bytes, size_t offset,
                                      cudaMemcpyKind) {
  BEGIN;
  void* address = address_of(variable);
  if (address == nullptr) return failed(cudaErrorInvalidSymbol);
  copy(static_cast<char*>(address) + offset, from, bytes);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void* variable, const void* from, size_t bytes, size_t offset,
                                           cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpyToSymbol(variable, from, bytes, offset, kind);
}

namespace {
struct Configuration {
  Extent grid, block;
  size_t shared;
  void* stream;
};
thread_local Configuration configuration;
}  // namespace

EXPORT unsigned __cudaPushCallConfiguration(Extent grid, Extent block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(Extent* grid, Extent* block, size_t* shared, void** stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *stream = configuration.stream;
  return cudaSuccess;
}

namespace {
cudaError_t launch(const void* function, Extent grid, Extent block) {
  BEGIN;
  const Kernel kernel = kernel_of(function);
  const cudaError_t error = kernel.runs ? launched(kernel.name, grid, block) : cudaErrorNoKernelImageForDevice;
  return error == cudaSuccess ? error : failed(error);
}
}  // namespace

EXPORT cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void* function, Extent grid, Extent block, void**, size_t, cudaStream_t) {
  return launch(function, grid, block);
}
EXPORT cudaError_t __cudaLaunchKernel(const void* kernel, Extent grid, Extent block, void**, size_t, cudaStream_t) {
  return launch(kernel, grid, block);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* function, Extent grid, Extent block, void**, size_t,
                                               cudaStream_t) {
  return launch(function, grid, block);
}
// The configuration begins with the grid and the block.
EXPORT cudaError_t cudaLaunchKernelExC(const Extent* grid_and_block, const void* function, void**) {
  return launch(function, grid_and_block[0], grid_and_block[1]);
}

EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  BEGIN;
  const Kernel kernel = kernel_of(function);
  if (!kernel.runs) return failed(cudaErrorNoKernelImageForDevice);
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = kernel.ptx_version;
  attributes->binaryVersion = kernel.binary_version;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(card().shared_bytes_per_block);
  return cudaSuccess;
}

EXPORT cudaError_t cudaFuncSetAttribute(const void*, int attribute, int value) {
  constexpr int dynamic_shared_bytes = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (attribute == dynamic_shared_bytes && value > static_cast<int>(card().shared_bytes_per_block)) {
    return failed(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetCacheConfig(const void*, int) { return cudaSuccess; }
EXPORT cudaError_t cudaKernelSetAttributeForDevice(const void* kernel, int attribute, int value, int) {
  return cudaFuncSetAttribute(kernel, attribute, value);
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
  BEGIN;
  *blocks = resident_blocks(threads, shared);
  return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                          int threads, size_t shared, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

EXPORT cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const void*) {
  *clusters = card().multiprocessors / 2;
  return cudaSuccess;
}
