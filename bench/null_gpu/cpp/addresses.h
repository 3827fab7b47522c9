// Memory is address space of the host. Nearly all of it is never touched, so that it costs no memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace null_gpu {

enum class Kind { device, pinned, managed, reserved };

struct Range {
  uintptr_t start = 0;  // 0: none
  size_t bytes = 0;
  Kind kind = Kind::device;
  int device = 0;
};

// Allocates device memory at the lowest free address, in whole pages of 2 MiB, as cudaMalloc does for all requests of
// the caching allocator. Returns nullptr if there is no room.
constexpr size_t page_bytes = 2 << 20;
size_t whole_pages(size_t bytes);
void* allocate_device(int device, size_t bytes);

// Memory of other kinds.
void* allocate(Kind kind, int device, size_t bytes);

// Frees the range that begins at `pointer`, and returns it; an empty range if there is none.
Range release(const void* pointer);

// The range around `pointer`; an empty one if it was not allocated here.
Range find(const void* pointer);
bool is_of_a_device(const void* pointer);

// Bytes above this size are not copied to or between devices: weights and activations have no values here.
constexpr size_t real_bytes = 1 << 20;
void copy(void* to, const void* from, size_t bytes);
void fill(void* to, int value, size_t bytes);

}  // namespace null_gpu
