// The memory of each card that each process of a rehearsal uses.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <vector>

namespace null_gpu {

struct Taken {
  pid_t process;
  size_t bytes;
};

// Adds `bytes` of `card` to this process, which is then listed among those that compute there, even with 0 bytes; false
// if all processes together would exceed the usable memory.
bool take(int card, size_t bytes);
void give_back(int card, size_t bytes);

std::vector<Taken> taken_by_process(int card);
size_t free_bytes(int card);

}  // namespace null_gpu
