#include "conditions.h"

#include <cstdlib>

namespace null_gpu {
namespace {

std::string said(const char* variable) {
  const char* value = getenv(variable);
  return value == nullptr ? "" : value;
}

unsigned long long number(const char* variable) { return strtoull(said(variable).c_str(), nullptr, 10); }

}  // namespace

Conditions conditions() {
  Conditions c;
  c.context_bytes = number("NULL_GPU_CONTEXT_BYTES");
  c.cublas_bytes = number("NULL_GPU_CUBLAS_BYTES");
  c.managed_bytes = number("NULL_GPU_MANAGED_BYTES");
  c.sensors = number("NULL_GPU_SENSORS") != 0;
  c.slowdowns = number("NULL_GPU_SLOWDOWNS");
  c.mig = number("NULL_GPU_MIG") != 0;
  c.nvml_error = static_cast<int>(number("NULL_GPU_NVML_ERROR"));
  std::string names = said("NULL_GPU_NVML_LACKS");
  while (!names.empty()) {
    const size_t comma = names.find(',');
    c.nvml_lacks.insert(names.substr(0, comma));
    names = comma == std::string::npos ? "" : names.substr(comma + 1);
  }
  return c;
}

}  // namespace null_gpu
