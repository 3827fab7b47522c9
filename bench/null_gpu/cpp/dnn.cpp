// cuDNN: all graphs of attention and convolutions are accepted, with one engine that needs no workspace. Which graphs
// the real library accepts, and the workspaces of its plans, are unknown here.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "export.h"
#include "refusals.h"

using namespace null_gpu;

namespace {

constexpr int success = 0, bad_parameter = 2000, not_supported = 3000;

// Numbers of cudnn_graph.h, which have been the same since cuDNN 8.
enum Attribute {
  heuristic_results = 202,
  configuration_engine = 300,
  configuration_knobs = 302,
  configuration_workspace = 303,
  configuration_shared_memory = 304,
  plan_workspace = 402,
  engine_global_count = 802,
  engine_global_index = 1300 + 1,
  engine_knobs = 1302,
  engine_numerical_notes = 1303,
  engine_behaviour_notes = 1305,
};
enum Type { descriptor_type = 15 };

struct Value {
  int type;
  int64_t count;
  std::vector<char> bytes;
};

struct Descriptor {
  int type;
  std::map<int, Value> attributes;
};

size_t bytes_of(int type) {
  enum { handle, data_type, boolean, int64, real, double_real, pointer, int32 = 23, character = 24, fraction = 26 };
  switch (type) {
    case handle:
    case int64:
    case double_real:
    case pointer:
    case descriptor_type:
    case fraction: return 8;
    case character: return 1;
    case boolean: return 1;
    default: return 4;  // enumerations, float, int32
  }
}

struct Handle {
  void* stream = nullptr;
};

int whole_number(void* value, int64_t number) {
  if (value != nullptr) *static_cast<int64_t*>(value) = number;
  return success;
}

}  // namespace

EXPORT size_t cudnnGetVersion() { return NULL_GPU_CUDNN_VERSION; }
EXPORT size_t cudnnGetCudartVersion() { return NULL_GPU_CUDART_VERSION; }
EXPORT const char* cudnnGetErrorString(int status) {
  return status == success ? "CUDNN_STATUS_SUCCESS" : "CUDNN_STATUS_NOT_SUPPORTED: not by the null GPU";
}
EXPORT void cudnnGetLastErrorString(char* text, size_t room) { snprintf(text, room, "%s", last_refused().c_str()); }

EXPORT int cudnnGetProperty(int part, int* value) {
  // Since version 9, major · 10000 + minor · 100 + patch; before, major · 1000 instead.
  constexpr int version = NULL_GPU_CUDNN_VERSION, major = version >= 90000 ? 10000 : 1000;
  const int parts[] = {version / major, version % major / 100, version % 100};
  *value = parts[part];
  return success;
}

EXPORT int cudnnCreate(Handle** handle) {
  *handle = new Handle;
  return success;
}
EXPORT int cudnnDestroy(Handle* handle) {
  delete handle;
  return success;
}
EXPORT int cudnnSetStream(Handle* handle, void* stream) {
  handle->stream = stream;
  return success;
}
EXPORT int cudnnGetStream(Handle* handle, void** stream) {
  *stream = handle->stream;
  return success;
}

EXPORT int cudnnBackendCreateDescriptor(int type, Descriptor** descriptor) {
  *descriptor = new Descriptor{type, {}};
  return success;
}
EXPORT int cudnnBackendInitialize(Descriptor*) { return success; }
EXPORT int cudnnBackendDestroyDescriptor(Descriptor* descriptor) {
  delete descriptor;
  return success;
}
EXPORT int cudnnBackendFinalize(Descriptor*) { return success; }
EXPORT int cudnnBackendExecute(Handle*, Descriptor*, Descriptor*) { return success; }
EXPORT int cudnnBackendPopulateCudaGraph() { return refuse("cudnnBackendPopulateCudaGraph (CUDA graphs)", not_supported); }

EXPORT int cudnnBackendSetAttribute(Descriptor* descriptor, int attribute, int type, int64_t count, const void* values) {
  if (descriptor == nullptr) return bad_parameter;
  Value& value = descriptor->attributes[attribute];
  value.type = type;
  value.count = count;
  const char* bytes = static_cast<const char*>(values);
  if (bytes != nullptr) value.bytes.assign(bytes, bytes + count * bytes_of(type));
  return success;
}

EXPORT int cudnnBackendGetAttribute(const Descriptor* descriptor, int attribute, int type, int64_t room, int64_t* count,
                                    void* values) {
  if (descriptor == nullptr) return bad_parameter;
  int64_t unwanted;
  if (count == nullptr) count = &unwanted;
  const auto set = descriptor->attributes.find(attribute);
  if (set != descriptor->attributes.end()) {
    const Value& value = set->second;
    *count = value.count;
    const int64_t fitting = value.count < room ? value.count : room;
    if (values != nullptr) memcpy(values, value.bytes.data(), fitting * bytes_of(value.type));
    return success;
  }
  *count = 1;
  switch (attribute) {
    // One engine with one configuration, written into descriptors that the caller has made.
    case heuristic_results:
    case configuration_engine: return success;
    case plan_workspace:
    case configuration_workspace:
    case engine_global_index: return whole_number(values, 0);
    case engine_global_count: return whole_number(values, 1);
    case configuration_shared_memory:
      if (values != nullptr) *static_cast<int32_t*>(values) = 0;
      return success;
    case configuration_knobs:
    case engine_knobs:
    case engine_numerical_notes:
    case engine_behaviour_notes: *count = 0; return success;
    default: break;
  }
  const std::string name = "cudnnBackendGetAttribute of attribute " + std::to_string(attribute) + " of type " +
                           std::to_string(type) + " and descriptor " + std::to_string(descriptor->type);
  return refuse(name.c_str(), not_supported);
}
