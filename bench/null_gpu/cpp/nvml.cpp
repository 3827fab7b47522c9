// NVML: the cards, their memory and its users. Facts that a simulated card cannot have (clocks, power, energy,
// temperature, throttling) are "not supported", as on many real cards, unless a condition provides them.
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "card.h"
#include "conditions.h"
#include "export.h"
#include "ledger.h"

using namespace null_gpu;

namespace {

enum { success, uninitialized, invalid_argument, not_supported, not_found = 6, too_small = 7, no_function = 13 };

// Starts and ends are counted. An end without a start fails: some programs call it until it does.
std::atomic<int> users{0};

// At the top of functions that an old driver may lack, and that need a start.
#define NEEDS_START                                                      \
  do {                                                                   \
    if (conditions().nvml_lacks.count(__func__) != 0) return no_function; \
    if (users <= 0) return uninitialized;                                \
  } while (false)

// A device's handle is its number, and one.
void* handle_of(int device) { return reinterpret_cast<void*>(static_cast<uintptr_t>(device) + 1); }
int device_of(void* handle) { return static_cast<int>(reinterpret_cast<uintptr_t>(handle)) - 1; }

int text(char* to, unsigned room, const std::string& what) {
  if (room <= what.size()) return too_small;
  memcpy(to, what.c_str(), what.size() + 1);
  return success;
}

std::string bus(int device) {
  char address[32];
  snprintf(address, sizeof address, "00000000:%02X:00.0", device + 1);
  return address;
}

}  // namespace

EXPORT int nvmlInit_v2() {
  if (conditions().nvml_error != 0) return conditions().nvml_error;
  users++;
  return success;
}
EXPORT int nvmlInit() { return nvmlInit_v2(); }
EXPORT int nvmlInitWithFlags(unsigned) { return nvmlInit_v2(); }
EXPORT int nvmlShutdown() {
  NEEDS_START;
  users--;
  return success;
}

EXPORT const char* nvmlErrorString(int error) {
  switch (error) {
    case success: return "Success";
    case uninitialized: return "Uninitialized";
    case invalid_argument: return "Invalid Argument";
    case not_supported: return "Not Supported";
    case not_found: return "Not Found";
    case too_small: return "Insufficient Size";
    default: return "Unknown Error";
  }
}

// There is no driver; this version is of the series that came with the installed runtime.
EXPORT int nvmlSystemGetDriverVersion(char* to, unsigned room) {
  NEEDS_START;
  return text(to, room, NULL_GPU_CUDART_VERSION >= 13000 ? "580.0 (null GPU)" : "550.0 (null GPU)");
}
EXPORT int nvmlSystemGetNVMLVersion(char* to, unsigned room) { return nvmlSystemGetDriverVersion(to, room); }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  NEEDS_START;
  *version = NULL_GPU_CUDART_VERSION;
  return success;
}
EXPORT int nvmlSystemGetCudaDriverVersion(int* version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

EXPORT int nvmlDeviceGetCount_v2(unsigned* count) {
  NEEDS_START;
  *count = cards();
  return success;
}
EXPORT int nvmlDeviceGetCount(unsigned* count) { return nvmlDeviceGetCount_v2(count); }

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  NEEDS_START;
  if (index >= static_cast<unsigned>(cards())) return invalid_argument;
  *handle = handle_of(static_cast<int>(index));
  return success;
}
EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, void** handle) {
  return nvmlDeviceGetHandleByIndex_v2(index, handle);
}
EXPORT int nvmlDeviceGetHandleByUUID(const char* uuid, void** handle) {
  NEEDS_START;
  for (int device = 0; device < cards(); device++) {
    if (uuid_text(device) != uuid && visible_uuid_text(device) != uuid) continue;
    *handle = handle_of(device);
    return success;
  }
  return not_found;
}
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char* address, void** handle) {
  NEEDS_START;
  for (int device = 0; device < cards(); device++) {
    // Both with eight digits of the domain and with four.
    if (bus(device) != address && bus(device).substr(4) != address) continue;
    *handle = handle_of(device);
    return success;
  }
  return not_found;
}
EXPORT int nvmlDeviceGetIndex(void* handle, unsigned* index) {
  NEEDS_START;
  *index = device_of(handle);
  return success;
}
EXPORT int nvmlDeviceGetName(void*, char* to, unsigned room) {
  NEEDS_START;
  return text(to, room, card().name);
}
EXPORT int nvmlDeviceGetUUID(void* handle, char* to, unsigned room) {
  NEEDS_START;
  return text(to, room, uuid_text(device_of(handle)));
}
EXPORT int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  NEEDS_START;
  *major = card().major;
  *minor = card().minor;
  return success;
}

struct Pci {
  char short_address[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char address[32];
};
EXPORT int nvmlDeviceGetPciInfo_v3(void* handle, Pci* pci) {
  NEEDS_START;
  memset(pci, 0, sizeof *pci);
  pci->bus = device_of(handle) + 1;
  const std::string address = bus(device_of(handle));
  snprintf(pci->address, sizeof pci->address, "%s", address.c_str());
  snprintf(pci->short_address, sizeof pci->short_address, "%s", address.substr(4).c_str());
  return success;
}

struct Memory {
  unsigned long long total, free, used;
};
struct MemoryWithReserve {
  unsigned version;
  unsigned long long total, reserved, free, used;
};
EXPORT int nvmlDeviceGetMemoryInfo_v2(void* handle, MemoryWithReserve* memory) {
  NEEDS_START;
  memory->total = card().memory_bytes;
  memory->reserved = card().memory_bytes - card().usable_bytes;
  memory->free = free_bytes(device_of(handle));
  memory->used = card().usable_bytes - memory->free;
  return success;
}
EXPORT int nvmlDeviceGetMemoryInfo(void* handle, Memory* memory) {
  NEEDS_START;
  memory->total = card().memory_bytes;
  memory->free = free_bytes(device_of(handle));
  memory->used = memory->total - memory->free;  // it includes the driver's part
  return success;
}

struct OldProcess {
  unsigned process;
  unsigned long long bytes;
};
struct Process {
  unsigned process;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};

namespace {
Process in_full(const Taken& taken, Process*) {
  constexpr unsigned whole_card = 0xffffffff;
  return {static_cast<unsigned>(taken.process), taken.bytes, whole_card, whole_card};
}
OldProcess in_full(const Taken& taken, OldProcess*) { return {static_cast<unsigned>(taken.process), taken.bytes}; }

template <class Listed>
int list_processes(void* handle, unsigned* count, Listed* list) {
  const std::vector<Taken> taken = taken_by_process(device_of(handle));
  const bool fits = *count >= taken.size();
  *count = static_cast<unsigned>(taken.size());
  if (taken.empty()) return success;
  if (!fits || list == nullptr) return too_small;
  for (size_t i = 0; i < taken.size(); i++) list[i] = in_full(taken[i], list);
  return success;
}
}  // namespace

EXPORT int nvmlDeviceGetComputeRunningProcesses(void* handle, unsigned* count, OldProcess* list) {
  NEEDS_START;
  return list_processes(handle, count, list);
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(void* handle, unsigned* count, Process* list) {
  NEEDS_START;
  return list_processes(handle, count, list);
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void* handle, unsigned* count, Process* list) {
  NEEDS_START;
  return list_processes(handle, count, list);
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void*, unsigned* count, Process*) {
  NEEDS_START;
  *count = 0;
  return success;
}

namespace {
std::atomic<unsigned long long> millijoules{0};
constexpr unsigned made_up_milliwatts = 400'000, made_up_mhz = 1'000;

// An instance of a divided card has no sensors of its own.
bool has_sensors() { return conditions().sensors && !conditions().mig; }

template <class Number>
int sense(Number* to, Number value) {
  if (!has_sensors()) return not_supported;
  *to = value;
  return success;
}

int slowdowns(unsigned long long* reasons) {
  if (!has_sensors() && conditions().slowdowns == 0) return not_supported;
  *reasons = conditions().slowdowns;
  return success;
}
}  // namespace

EXPORT int nvmlDeviceGetMigMode(void*, unsigned* current, unsigned* pending) {
  NEEDS_START;
  if (!conditions().mig) return not_supported;
  *current = *pending = 1;
  return success;
}
EXPORT int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* energy) {
  NEEDS_START;
  return sense(energy, millijoules += 1000);
}
EXPORT int nvmlDeviceGetPowerUsage(void*, unsigned*) { return not_supported; }
EXPORT int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned* limit) {
  NEEDS_START;
  return sense(limit, made_up_milliwatts);
}
EXPORT int nvmlDeviceGetPowerManagementLimit(void*, unsigned* limit) {
  NEEDS_START;
  return sense(limit, made_up_milliwatts);
}
EXPORT int nvmlDeviceGetClockInfo(void*, int, unsigned* mhz) {
  NEEDS_START;
  return sense(mhz, made_up_mhz);
}
EXPORT int nvmlDeviceGetMaxClockInfo(void*, int, unsigned* mhz) {
  NEEDS_START;
  return sense(mhz, made_up_mhz);
}
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* reasons) {
  NEEDS_START;
  return slowdowns(reasons);
}
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(void*, unsigned long long* reasons) {
  NEEDS_START;
  return slowdowns(reasons);
}
EXPORT int nvmlDeviceGetTemperature(void*, int, unsigned*) { return not_supported; }
EXPORT int nvmlDeviceGetUtilizationRates(void*, void*) { return not_supported; }
EXPORT int nvmlDeviceGetNvLinkState(void*, unsigned, int*) { return not_supported; }
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void*, unsigned, int*) { return not_supported; }
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void*, unsigned, Pci*) { return not_supported; }
EXPORT int nvmlDeviceGetP2PStatus(void*, void*, int, int*) { return not_supported; }

// nvmlGpuFabricInfo_v2_t. No fabric connects the cards.
struct Fabric {
  unsigned version;
  char cluster[16];
  unsigned status, clique;
  unsigned char state;
  unsigned health;
};
EXPORT int nvmlDeviceGetGpuFabricInfoV(void*, Fabric* fabric) {
  NEEDS_START;
  *fabric = {fabric->version, {}, success, 0, 0, 0};
  return success;
}
