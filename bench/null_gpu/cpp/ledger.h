// Who has taken how much of which card, over all processes of one rehearsal.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <vector>

namespace null_gpu {

struct Taken {
  pid_t process;
  size_t bytes;
};

// Takes `bytes` of `card` for this process, which from then on is listed among those that compute there, also if it took
// none; false if processes would together have more than is usable.
bool take(int card, size_t bytes);
void give_back(int card, size_t bytes);

std::vector<Taken> taken_by_process(int card);
size_t free_bytes(int card);

}  // namespace null_gpu
