// The GPU that is rehearsed: what the program that started this process said of it, in environment variables.
#pragma once

#include <cstddef>
#include <string>

namespace null_gpu {

struct Card {
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  int threads_per_multiprocessor, blocks_per_multiprocessor;
  size_t shared_bytes_per_multiprocessor, shared_bytes_per_block;  // the most that a kernel can ask for
  size_t memory_bytes;   // as the driver reports it
  size_t usable_bytes;   // what processes can take of it
  size_t cache_bytes;
};

const Card& card();

// Cards in the machine, all alike, and those of them that CUDA_VISIBLE_DEVICES leaves to this process.
int cards();
int visible_cards();
// The card that this process numbers `ordinal`.
int card_of(int ordinal);
// Sixteen bytes that name a card, as CUDA and NVML both give them.
void uuid_of(int card, unsigned char bytes[16]);
std::string uuid_text(int card);
// The same of what CUDA finds of a card: itself, or if it is divided, the instance on it (a MIG device).
void visible_uuid_of(int card, unsigned char bytes[16]);
std::string visible_uuid_text(int card);

}  // namespace null_gpu
