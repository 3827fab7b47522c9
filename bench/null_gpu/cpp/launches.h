// Kernels do nothing. Their launches are checked as far as the host can, and counted by name if that is asked for.
#pragma once

#include <driver_types.h>

namespace null_gpu {

struct Extent {
  unsigned x, y, z;
};

// The kernel of `name` was launched.
cudaError_t launched(const char* name, Extent grid, Extent block);

// Writes the counts of this process into the folder of notes, if they were asked for and there are any.
void write_launches();

// Blocks of `threads` threads and `shared` bytes that a multiprocessor holds, registers aside, which are not known.
int resident_blocks(int threads, size_t shared);

}  // namespace null_gpu
