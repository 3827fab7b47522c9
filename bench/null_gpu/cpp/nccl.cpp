// NCCL with absent ranks. Each absent rank is assumed to hold the same data as this one. Small messages are delivered
// accordingly, which keeps counts and shapes consistent; large ones are not delivered.
#include <cstdint>
#include <cstring>

#include "addresses.h"
#include "context.h"
#include "refusals.h"
#include "runtime.h"

using namespace null_gpu;

namespace {

constexpr int success = 0;
enum Type { int8, uint8, int32, uint32, int64, uint64, float16, float32, float64, bfloat16, float8_e4m3, float8_e5m2 };
enum Operation { sum, product, maximum, minimum, average };

struct Id {
  char bytes[128];
};

struct Communicator {
  int rank;
  int ranks;
  int device;
};

size_t bytes_of(int type) {
  switch (type) {
    case int8:
    case uint8:
    case float8_e4m3:
    case float8_e5m2: return 1;
    case float16:
    case bfloat16: return 2;
    case int64:
    case uint64:
    case float64: return 8;
    default: return 4;
  }
}

int create(Communicator** communicator, int ranks, int rank) {
  *communicator = new Communicator{rank, ranks, current_device()};
  return success;
}

template <class Number>
void multiply(void* values, size_t count, int by) {
  for (size_t i = 0; i < count; i++) static_cast<Number*>(values)[i] *= by;
}

// If all ranks hold the same value, the sum is that times their number; maximum, minimum and average are the value.
void reduce(const void* from, void* to, size_t count, int type, int operation, int ranks) {
  const size_t bytes = count * bytes_of(type);
  if (bytes > real_bytes) return;
  if (from != to) copy(to, from, bytes);
  if (operation != sum) return;
  switch (type) {
    case int8:
    case uint8: multiply<uint8_t>(to, count, ranks); break;
    case int32:
    case uint32: multiply<uint32_t>(to, count, ranks); break;
    case int64:
    case uint64: multiply<uint64_t>(to, count, ranks); break;
    case float32: multiply<float>(to, count, ranks); break;
    case float64: multiply<double>(to, count, ranks); break;
    default: break;  // types of 16 bits or less hold no counts
  }
}

}  // namespace

EXPORT int ncclGetVersion(int* version) {
  *version = NULL_GPU_NCCL_VERSION;
  return success;
}
EXPORT int ncclGetUniqueId(Id* id) {
  memset(id, 1, sizeof *id);
  return success;
}
EXPORT const char* ncclGetErrorString(int error) { return error == success ? "no error" : "not by the null GPU"; }
EXPORT const char* ncclGetLastError(Communicator*) { return last_refused().c_str(); }

EXPORT int ncclCommInitRank(Communicator** made, int ranks, Id, int rank) { return create(made, ranks, rank); }
EXPORT int ncclCommInitRankConfig(Communicator** made, int ranks, Id, int rank, void*) {
  return create(made, ranks, rank);
}
EXPORT int ncclCommInitRankScalable(Communicator** made, int ranks, int rank, int, void*, void*) {
  return create(made, ranks, rank);
}
EXPORT int ncclCommInitAll(Communicator** made, int ranks, const int* devices) {
  for (int rank = 0; rank < ranks; rank++) {
    create(&made[rank], ranks, rank);
    made[rank]->device = devices == nullptr ? rank : devices[rank];
  }
  return success;
}

// Which ranks give the same colour is unknown here; torch numbers the group that it splits off itself.
EXPORT int ncclCommSplit(Communicator*, int, int, Communicator** made, void*) {
  *made = nullptr;
  return refuse("ncclCommSplit", 5);
}

EXPORT int ncclCommDestroy(Communicator* communicator) {
  delete communicator;
  return success;
}
EXPORT int ncclCommAbort(Communicator* communicator) { return ncclCommDestroy(communicator); }
EXPORT int ncclCommFinalize(Communicator*) { return success; }
EXPORT int ncclCommUserRank(const Communicator* communicator, int* rank) {
  *rank = communicator->rank;
  return success;
}
EXPORT int ncclCommCount(const Communicator* communicator, int* ranks) {
  *ranks = communicator->ranks;
  return success;
}
EXPORT int ncclCommCuDevice(const Communicator* communicator, int* device) {
  *device = communicator->device;
  return success;
}
EXPORT int ncclCommGetAsyncError(Communicator*, int* error) {
  *error = success;
  return success;
}
EXPORT int ncclCommRegister(Communicator*, void*, size_t, void** handle) {
  *handle = nullptr;
  return success;
}
EXPORT int ncclCommDeregister(Communicator*, void*) { return success; }
EXPORT int ncclMemAlloc(void** pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
EXPORT int ncclMemFree(void* pointer) { return cudaFree(pointer); }
EXPORT int ncclRedOpCreatePreMulSum(int* operation, void*, int, int, Communicator*) {
  *operation = average;
  return success;
}
EXPORT int ncclRedOpDestroy(int, Communicator*) { return success; }
EXPORT int ncclGroupStart() { return success; }
EXPORT int ncclGroupEnd() { return success; }

EXPORT int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Communicator* ranks, void*) {
  reduce(from, to, count, type, operation, ranks->ranks);
  return success;
}

EXPORT int ncclReduce(const void* from, void* to, size_t count, int type, int operation, int root, Communicator* ranks,
                      void*) {
  if (root == ranks->rank) reduce(from, to, count, type, operation, ranks->ranks);
  return success;
}

EXPORT int ncclReduceScatter(const void* from, void* to, size_t count, int type, int operation, Communicator* ranks,
                             void*) {
  const char* own = static_cast<const char*>(from) + ranks->rank * count * bytes_of(type);
  reduce(own, to, count, type, operation, ranks->ranks);
  return success;
}

EXPORT int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Communicator* ranks, void*) {
  if (root == ranks->rank && from != to) copy(to, from, count * bytes_of(type));
  return success;
}
EXPORT int ncclBcast(void* buffer, size_t count, int type, int root, Communicator* ranks, void* stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, ranks, stream);
}

EXPORT int ncclAllGather(const void* from, void* to, size_t count, int type, Communicator* ranks, void*) {
  const size_t bytes = count * bytes_of(type);
  for (int rank = 0; rank < ranks->ranks; rank++) copy(static_cast<char*>(to) + rank * bytes, from, bytes);
  return success;
}

EXPORT int ncclGather(const void* from, void* to, size_t count, int type, int root, Communicator* ranks, void* stream) {
  return root == ranks->rank ? ncclAllGather(from, to, count, type, ranks, stream) : success;
}

EXPORT int ncclAlltoAll(const void* from, void* to, size_t count, int type, Communicator* ranks, void*) {
  const size_t bytes = count * bytes_of(type);
  // Each other rank sends this one the data that this one sends to itself.
  for (int rank = 0; rank < ranks->ranks; rank++) {
    copy(static_cast<char*>(to) + rank * bytes, static_cast<const char*>(from) + ranks->rank * bytes, bytes);
  }
  return success;
}

// Messages between two ranks are not delivered: only the ranks know who sends what, and in which order.
EXPORT int ncclSend(const void*, size_t, int, int, Communicator*, void*) { return success; }
EXPORT int ncclRecv(void*, size_t, int, int, Communicator*, void*) { return success; }
