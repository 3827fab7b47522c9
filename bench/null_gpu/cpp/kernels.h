// The kernels of compiled CUDA code, which registers them when its library is loaded.
#pragma once

namespace null_gpu {

struct Kernel {
  const char* name;
  // Compute capabilities, times ten: of the machine code that this card would run, and of what it was compiled from.
  int binary_version, ptx_version;
  // Whether the library has code that this card can run at all.
  bool runs;
};

// The kernel of a host function. A kernel that no library registered runs on every card.
Kernel kernel_of(const void* host_function);

}  // namespace null_gpu
