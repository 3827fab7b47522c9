#include "kernels.h"

#include <cstdint>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "card.h"
#include "export.h"

namespace null_gpu {
namespace {

// The container that nvcc makes for the code of one source file: machine code and PTX for several cards. The layout is
// not documented; it has been the same since CUDA 4.
struct Wrapper {
  uint32_t magic, version;
  const char* data;
};
constexpr uint32_t wrapper_magic = 0x466243b1, data_magic = 0xba55ed50;
struct DataHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct EntryHeader {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t compressed_bytes, options;
  uint16_t minor, major;
  uint32_t capability;  // times ten
};
constexpr int is_ptx = 1, is_machine_code = 2;

struct Binary {
  const Wrapper* wrapper;
  bool looked_into = false;
  int binary_version = 0, ptx_version = 0;
};

struct Announced {
  Binary* binary;
  const char* name;
};

struct Announcements {
  std::mutex lock;
  std::unordered_map<const void*, Announced> functions;
};

Announcements& announcements() {
  static auto* all = new Announcements;  // used until the very end of the process
  return *all;
}

// Chooses like the driver: the newest machine code of this card's major version that is not newer than the card; if
// there is none, the newest PTX that is not newer, which the driver would compile.
void look_into(Binary& binary) {
  binary.looked_into = true;
  const int own = card().major * 10 + card().minor;
  if (binary.wrapper->magic != wrapper_magic) return;
  DataHeader header;
  memcpy(&header, binary.wrapper->data, sizeof header);
  if (header.magic != data_magic) return;
  const char* at = binary.wrapper->data + header.header_bytes;
  const char* const end = at + header.bytes;
  int machine_code = 0, ptx = 0;
  while (at < end) {
    EntryHeader entry;
    memcpy(&entry, at, sizeof entry);
    const int capability = static_cast<int>(entry.capability);
    if (capability <= own) {
      const bool same_major = capability / 10 == card().major;
      if (entry.kind == is_machine_code && same_major && capability > machine_code) machine_code = capability;
      if (entry.kind == is_ptx && capability > ptx) ptx = capability;
    }
    at += entry.header_bytes + entry.bytes;
  }
  binary.binary_version = machine_code != 0 ? machine_code : ptx != 0 ? own : 0;
  binary.ptx_version = machine_code != 0 ? machine_code : ptx;
}

}  // namespace

Kernel kernel_of(const void* host_function) {
  Announcements& all = announcements();
  std::lock_guard<std::mutex> guard(all.lock);
  const auto found = all.functions.find(host_function);
  if (found == all.functions.end()) {
    const int own = card().major * 10 + card().minor;
    return {"a kernel without a name", own, own, true};
  }
  Binary& binary = *found->second.binary;
  if (!binary.looked_into) look_into(binary);
  return {found->second.name, binary.binary_version, binary.ptx_version, binary.binary_version != 0};
}

}  // namespace null_gpu

using namespace null_gpu;

EXPORT Binary* __cudaRegisterFatBinary(const Wrapper* wrapper) { return new Binary{wrapper}; }
EXPORT void __cudaRegisterFatBinaryEnd(Binary*) {}
EXPORT void __cudaUnregisterFatBinary(Binary*) {}
EXPORT char __cudaInitModule(Binary*) { return 1; }

EXPORT void __cudaRegisterFunction(Binary* binary, const void* host, char*, const char* name) {
  Announcements& all = announcements();
  std::lock_guard<std::mutex> guard(all.lock);
  all.functions[host] = {binary, name};
}
