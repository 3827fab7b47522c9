// The runtime's memory: device, pinned and managed, copies between them, and pools.
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "addresses.h"
#include "card.h"
#include "conditions.h"
#include "context.h"
#include "ledger.h"

using namespace null_gpu;

namespace {

std::atomic<size_t> managed{0};

cudaError_t allocate_charged(void** pointer, size_t bytes, int device) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  USE(device);
  if (!take(card_of(device), whole_pages(bytes))) return failed(cudaErrorMemoryAllocation);
  *pointer = allocate_device(device, bytes);
  if (*pointer != nullptr) return cudaSuccess;
  give_back(card_of(device), whole_pages(bytes));
  return failed(cudaErrorMemoryAllocation);
}

cudaError_t free_charged(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  const Range range = release(pointer);
  if (range.start == 0) return failed(cudaErrorInvalidValue);
  if (range.kind == Kind::device) give_back(card_of(range.device), range.bytes);
  if (range.kind == Kind::managed) managed -= range.bytes;
  return cudaSuccess;
}

}  // namespace

EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  BEGIN;
  return allocate_charged(pointer, bytes, current_device());
}

EXPORT cudaError_t cudaFree(void* pointer) {
  BEGIN;
  USE(current_device());
  return free_charged(pointer);
}

// Managed memory moves to the card when kernels touch it, and off again, so it occupies none of the card permanently.
EXPORT cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) {
  BEGIN;
  *pointer = nullptr;
  const size_t most = conditions().managed_bytes;
  if (managed.fetch_add(bytes) + bytes > most && most != 0) {
    managed -= bytes;
    return failed(cudaErrorMemoryAllocation);
  }
  *pointer = allocate(Kind::managed, current_device(), bytes);
  return *pointer != nullptr ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  BEGIN;
  *pointer = allocate(Kind::pinned, current_device(), bytes);
  return *pointer != nullptr || bytes == 0 ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

EXPORT cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }

EXPORT cudaError_t cudaFreeHost(void* pointer) {
  BEGIN;
  return free_charged(pointer);
}

namespace {
std::mutex registered_lock;

std::map<uintptr_t, size_t>& registered() {
  static auto* all = new std::map<uintptr_t, size_t>;
  return *all;
}

bool is_registered(const void* pointer) {
  std::lock_guard<std::mutex> guard(registered_lock);
  auto after = registered().upper_bound(reinterpret_cast<uintptr_t>(pointer));
  if (after == registered().begin()) return false;
  --after;
  return reinterpret_cast<uintptr_t>(pointer) < after->first + after->second;
}
}  // namespace

EXPORT cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  BEGIN;
  std::lock_guard<std::mutex> guard(registered_lock);
  const bool fresh = registered().emplace(reinterpret_cast<uintptr_t>(pointer), bytes).second;
  return fresh ? cudaSuccess : failed(cudaErrorHostMemoryAlreadyRegistered);
}

EXPORT cudaError_t cudaHostUnregister(void* pointer) {
  std::lock_guard<std::mutex> guard(registered_lock);
  return registered().erase(reinterpret_cast<uintptr_t>(pointer)) ? cudaSuccess : failed(cudaErrorHostMemoryNotRegistered);
}

EXPORT cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  BEGIN;
  USE(current_device());
  *free = free_bytes(card_of(current_device()));
  *total = card().usable_bytes;
  return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  BEGIN;
  memset(attributes, 0, sizeof *attributes);
  void* const same = const_cast<void*>(pointer);
  const Range range = find(pointer);
  if (range.start == 0) {
    attributes->type = is_registered(pointer) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    attributes->hostPointer = same;
    attributes->device = attributes->type == cudaMemoryTypeHost ? current_device() : -2;
    if (attributes->type == cudaMemoryTypeHost) attributes->devicePointer = same;
    return cudaSuccess;
  }
  attributes->device = range.device;
  attributes->devicePointer = same;
  switch (range.kind) {
    case Kind::device:
    case Kind::reserved: attributes->type = cudaMemoryTypeDevice; break;
    case Kind::pinned: attributes->type = cudaMemoryTypeHost; attributes->hostPointer = same; break;
    case Kind::managed: attributes->type = cudaMemoryTypeManaged; attributes->hostPointer = same; break;
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  BEGIN;
  copy(to, from, bytes);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

EXPORT cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}

EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}

EXPORT cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                size_t height, cudaMemcpyKind) {
  BEGIN;
  if (width * height > real_bytes) return cudaSuccess;
  for (size_t row = 0; row < height; row++) {
    copy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}

EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  BEGIN;
  fill(to, value, bytes);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}

EXPORT cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  BEGIN;
  if (width * height > real_bytes) return cudaSuccess;
  for (size_t row = 0; row < height; row++) fill(static_cast<char*>(to) + row * pitch, value, width);
  return cudaSuccess;
}

// The place of managed memory matters only for time. CUDA 12 and 13 differ in the arguments, which are ignored.
EXPORT cudaError_t cudaMemPrefetchAsync(const void*, size_t) { return cudaSuccess; }
EXPORT cudaError_t cudaMemPrefetchAsync_v2(const void*, size_t) { return cudaSuccess; }
EXPORT cudaError_t cudaMemAdvise(const void*, size_t) { return cudaSuccess; }
EXPORT cudaError_t cudaMemAdvise_v2(const void*, size_t) { return cudaSuccess; }

// Pools (cudaMallocAsync): one for each device. It keeps freed memory up to its release threshold, like a real one.
namespace {

struct Pool {
  std::mutex lock;
  int device;
  uint64_t threshold = 0;
  uint64_t used = 0, used_high = 0;
  uint64_t reserved = 0, reserved_high = 0;

  // Returns unused memory to the card, except for `keep` bytes.
  void trim(uint64_t keep) {
    const uint64_t wanted = used > keep ? used : keep;
    if (reserved <= wanted) return;
    give_back(card_of(device), reserved - wanted);
    reserved = wanted;
  }
};

Pool& pool_of(int device) {
  static std::mutex lock;
  static auto* pools = new std::map<int, Pool>;
  std::lock_guard<std::mutex> guard(lock);
  Pool& pool = (*pools)[device];
  pool.device = device;
  return pool;
}

std::mutex from_pools_lock;

std::set<uintptr_t>& from_pools() {
  static auto* all = new std::set<uintptr_t>;
  return *all;
}

cudaError_t allocate_from(Pool& pool, void** pointer, size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  USE(pool.device);
  const size_t whole = whole_pages(bytes);
  std::lock_guard<std::mutex> guard(pool.lock);
  if (pool.used + whole > pool.reserved) {
    const size_t more = pool.used + whole - pool.reserved;
    if (!take(card_of(pool.device), more)) return failed(cudaErrorMemoryAllocation);
    pool.reserved += more;
    if (pool.reserved > pool.reserved_high) pool.reserved_high = pool.reserved;
  }
  *pointer = allocate_device(pool.device, bytes);
  if (*pointer == nullptr) return failed(cudaErrorMemoryAllocation);
  pool.used += whole;
  if (pool.used > pool.used_high) pool.used_high = pool.used;
  std::lock_guard<std::mutex> other(from_pools_lock);
  from_pools().insert(reinterpret_cast<uintptr_t>(*pointer));
  return cudaSuccess;
}

}  // namespace

EXPORT cudaError_t cudaDeviceGetDefaultMemPool(Pool** pool, int device) {
  BEGIN;
  *pool = &pool_of(device);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetMemPool(Pool** pool, int device) { return cudaDeviceGetDefaultMemPool(pool, device); }

EXPORT cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t bytes, Pool* pool, cudaStream_t) {
  BEGIN;
  return allocate_from(*pool, pointer, bytes);
}

EXPORT cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  BEGIN;
  return allocate_from(pool_of(current_device()), pointer, bytes);
}

EXPORT cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
  BEGIN;
  if (pointer == nullptr) return cudaSuccess;
  {
    std::lock_guard<std::mutex> guard(from_pools_lock);
    if (from_pools().erase(reinterpret_cast<uintptr_t>(pointer)) == 0) return free_charged(pointer);
  }
  const Range range = release(pointer);
  Pool& pool = pool_of(range.device);
  std::lock_guard<std::mutex> guard(pool.lock);
  pool.used -= range.bytes;
  pool.trim(pool.threshold);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemPoolTrimTo(Pool* pool, size_t keep) {
  std::lock_guard<std::mutex> guard(pool->lock);
  pool->trim(keep);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemPoolSetAccess(Pool*, const void*, size_t) { return cudaSuccess; }

EXPORT cudaError_t cudaMemPoolSetAttribute(Pool* pool, cudaMemPoolAttr attribute, void* value) {
  std::lock_guard<std::mutex> guard(pool->lock);
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold: pool->threshold = *static_cast<uint64_t*>(value); break;
    case cudaMemPoolAttrReservedMemHigh: pool->reserved_high = pool->reserved; break;
    case cudaMemPoolAttrUsedMemHigh: pool->used_high = pool->used; break;
    default: break;  // which streams may reuse a block early does not change the bytes
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemPoolGetAttribute(Pool* pool, cudaMemPoolAttr attribute, void* value) {
  std::lock_guard<std::mutex> guard(pool->lock);
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold: *static_cast<uint64_t*>(value) = pool->threshold; break;
    case cudaMemPoolAttrReservedMemCurrent: *static_cast<uint64_t*>(value) = pool->reserved; break;
    case cudaMemPoolAttrReservedMemHigh: *static_cast<uint64_t*>(value) = pool->reserved_high; break;
    case cudaMemPoolAttrUsedMemCurrent: *static_cast<uint64_t*>(value) = pool->used; break;
    case cudaMemPoolAttrUsedMemHigh: *static_cast<uint64_t*>(value) = pool->used_high; break;
    default: *static_cast<int*>(value) = 1; break;
  }
  return cudaSuccess;
}
