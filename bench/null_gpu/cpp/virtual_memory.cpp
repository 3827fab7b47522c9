// The driver's virtual memory, with which the caching allocator makes expandable segments: address space is reserved,
// and physical memory is taken from the card by handle and mapped into it.
#include <mutex>
#include <unordered_map>

#include "addresses.h"
#include "card.h"
#include "context.h"
#include "ledger.h"
#include "refusals.h"

using namespace null_gpu;

namespace {

// The driver's error codes are the runtime's where they matter here.
constexpr int success = 0, invalid_value = 1, out_of_memory = 2;

struct Physical {
  size_t bytes;
  int device;
  int users;  // the handle, until it is released, and each mapping
};

std::mutex lock;
std::unordered_map<unsigned long long, Physical>& physical() {
  static auto* all = new std::unordered_map<unsigned long long, Physical>;
  return *all;
}
// Mapped address → handle.
std::unordered_map<uintptr_t, unsigned long long>& mappings() {
  static auto* all = new std::unordered_map<uintptr_t, unsigned long long>;
  return *all;
}
unsigned long long next_handle = 1;

void let_go(unsigned long long handle) {
  const auto found = physical().find(handle);
  if (found == physical().end() || --found->second.users > 0) return;
  give_back(card_of(found->second.device), found->second.bytes);
  physical().erase(found);
}

// CUmemAllocationProp begins with the type, the handle types and the location: its kind, then the device.
struct Properties {
  int type;
  int handle_types;
  int location_kind;
  int device;
};

}  // namespace

EXPORT int cuMemGetAllocationGranularity(size_t* bytes, const Properties*, int) {
  *bytes = page_bytes;
  return success;
}

EXPORT int cuMemAddressReserve(uintptr_t* address, size_t bytes, size_t, uintptr_t, unsigned long long) {
  *address = reinterpret_cast<uintptr_t>(allocate(Kind::reserved, current_device(), bytes));
  return *address != 0 ? success : out_of_memory;
}

EXPORT int cuMemAddressFree(uintptr_t address, size_t) {
  return release(reinterpret_cast<void*>(address)).start != 0 ? success : invalid_value;
}

EXPORT int cuMemCreate(unsigned long long* handle, size_t bytes, const Properties* properties, unsigned long long) {
  const int device = properties->device;
  if (device < 0 || device >= visible_cards()) return refuse("cuMemCreate of host memory", cudaErrorNotSupported);
  if (bytes % page_bytes != 0) return invalid_value;
  USE(current_device());
  if (!take(card_of(device), bytes)) return out_of_memory;
  std::lock_guard<std::mutex> guard(lock);
  *handle = next_handle++;
  physical()[*handle] = {bytes, device, 1};
  return success;
}

EXPORT int cuMemRelease(unsigned long long handle) {
  std::lock_guard<std::mutex> guard(lock);
  let_go(handle);
  return success;
}

EXPORT int cuMemMap(uintptr_t address, size_t, size_t, unsigned long long handle, unsigned long long) {
  std::lock_guard<std::mutex> guard(lock);
  const auto found = physical().find(handle);
  if (found == physical().end()) return invalid_value;
  found->second.users++;
  mappings()[address] = handle;
  return success;
}

EXPORT int cuMemUnmap(uintptr_t address, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  for (uintptr_t each = address; each < address + bytes; each += page_bytes) {
    const auto found = mappings().find(each);
    if (found == mappings().end()) continue;
    let_go(found->second);
    mappings().erase(found);
  }
  fill(reinterpret_cast<void*>(address), 0, bytes);
  return success;
}

EXPORT int cuMemSetAccess(uintptr_t, size_t, const void*, size_t) { return success; }
