// Other conditions of the machine, from environment variables; by default the usual ones.
#pragma once

#include <cstddef>
#include <set>
#include <string>

namespace null_gpu {

// conditions.py has the meaning of each, and the variables.
struct Conditions {
  size_t context_bytes;
  size_t cublas_bytes;
  size_t managed_bytes;  // 0: no limit
  bool sensors;
  unsigned long long slowdowns;
  bool mig;
  int nvml_error;
  std::set<std::string> nvml_lacks;
};

// Reads the environment each time, since a forked process may have other values.
Conditions conditions();

}  // namespace null_gpu
