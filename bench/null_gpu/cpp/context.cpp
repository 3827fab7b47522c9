#include "context.h"

#include <unistd.h>

#include <atomic>
#include <string>

#include "card.h"
#include "conditions.h"
#include "ledger.h"
#include "refusals.h"

namespace null_gpu {
namespace {

constexpr int most_devices = 256;
std::atomic<pid_t> starter{0};
std::atomic<bool> contexts[most_devices];
thread_local int device_of_thread = 0;
thread_local cudaError_t last = cudaSuccess;

}  // namespace

cudaError_t begin() {
  pid_t nobody = 0;
  starter.compare_exchange_strong(nobody, getpid());
  if (starter != getpid()) return cudaErrorInitializationError;
  return visible_cards() == 0 ? cudaErrorNoDevice : cudaSuccess;
}

int current_device() { return device_of_thread; }

cudaError_t begin_on(int device) {
  if (device < 0 || device >= visible_cards()) return cudaErrorInvalidDevice;
  if (contexts[device].exchange(true) || take(card_of(device), conditions().context_bytes)) return cudaSuccess;
  contexts[device] = false;
  return cudaErrorMemoryAllocation;
}

cudaError_t use_device(int device) {
  const cudaError_t begun = begin_on(device);
  if (begun == cudaSuccess) device_of_thread = device;
  return begun;
}

bool has_context(int device) { return contexts[device]; }

cudaError_t failed(cudaError_t error) { return last = error; }

}  // namespace null_gpu

using namespace null_gpu;

EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

EXPORT cudaError_t cudaPeekAtLastError() { return last; }

EXPORT const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorInvalidSymbol: return "cudaErrorInvalidSymbol";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorSymbolNotFound: return "cudaErrorSymbolNotFound";
    case cudaErrorPeerAccessAlreadyEnabled: return "cudaErrorPeerAccessAlreadyEnabled";
    case cudaErrorHostMemoryAlreadyRegistered: return "cudaErrorHostMemoryAlreadyRegistered";
    case cudaErrorHostMemoryNotRegistered: return "cudaErrorHostMemoryNotRegistered";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    default: return "cudaErrorUnknown";
  }
}

EXPORT const char* cudaGetErrorString(cudaError_t error) {
  static thread_local std::string text;
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInitializationError: return "initialization error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorInvalidSymbol: return "invalid device symbol";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorSymbolNotFound: return "named symbol not found";
    case cudaErrorPeerAccessAlreadyEnabled: return "peer access is already enabled";
    case cudaErrorHostMemoryAlreadyRegistered: return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered: return "pointer does not correspond to a registered memory region";
    case cudaErrorNotSupported:
      text = "operation not supported";
      if (!last_refused().empty()) text += " (" + last_refused() + " cannot be rehearsed)";
      return text.c_str();
    default: return "unknown error";
  }
}
