// Kernels do nothing. Launches are checked as far as possible on the host, and counted by name if requested.
#pragma once

#include <driver_types.h>

namespace null_gpu {

struct Extent {
  unsigned x, y, z;
};

// The kernel of `name` was launched.
cudaError_t launched(const char* name, Extent grid, Extent block);

// Writes the counts of this process into the folder of notes, if they were requested and there are any.
void write_launches();

// Number of blocks of `threads` threads and `shared` bytes that fit a multiprocessor, ignoring registers, which are
// unknown.
int resident_blocks(int threads, size_t shared);

}  // namespace null_gpu
