// The simulated GPU, as described by environment variables.
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
  size_t usable_bytes;   // the part that processes can use
  size_t cache_bytes;
};

const Card& card();

// The equal cards of the machine, and those of them that CUDA_VISIBLE_DEVICES leaves to this process.
int cards();
int visible_cards();
// The card that this process numbers `ordinal`.
int card_of(int ordinal);
// A card's UUID of sixteen bytes, the same for CUDA and NVML.
void uuid_of(int card, unsigned char bytes[16]);
std::string uuid_text(int card);
// The same for the device that CUDA finds: the card, or if it is divided, its instance (a MIG device).
void visible_uuid_of(int card, unsigned char bytes[16]);
std::string visible_uuid_text(int card);

}  // namespace null_gpu
