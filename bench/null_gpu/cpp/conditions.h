// What the machine is like besides its cards: what the program that started this process said of it, or else the usual.
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

// As the environment has it now: a forked process may have been told otherwise.
Conditions conditions();

}  // namespace null_gpu
