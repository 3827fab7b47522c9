// Streams are always finished. Events report the host's time, since the null GPU needs none.
#include <ctime>

#include "context.h"
#include "refusals.h"

using namespace null_gpu;

namespace {

struct Stream {
  unsigned flags;
  int priority;
  int device;
};

struct Event {
  unsigned flags;
  bool recorded;
  timespec at;
};

// The default streams are small numbers, not addresses.
bool is_default(const Stream* stream) { return reinterpret_cast<uintptr_t>(stream) <= 2; }

cudaError_t create(Stream** stream, unsigned flags, int priority) {
  BEGIN;
  USE(current_device());
  *stream = new Stream{flags, priority, current_device()};
  return cudaSuccess;
}

}  // namespace

EXPORT cudaError_t cudaStreamCreate(Stream** stream) { return create(stream, 0, 0); }
EXPORT cudaError_t cudaStreamCreateWithFlags(Stream** stream, unsigned flags) { return create(stream, flags, 0); }
EXPORT cudaError_t cudaStreamCreateWithPriority(Stream** stream, unsigned flags, int priority) {
  return create(stream, flags, priority);
}

EXPORT cudaError_t cudaStreamDestroy(Stream* stream) {
  if (!is_default(stream)) delete stream;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetPriority(Stream* stream, int* priority) {
  *priority = is_default(stream) ? 0 : stream->priority;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetFlags(Stream* stream, unsigned* flags) {
  *flags = is_default(stream) ? 0 : stream->flags;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetDevice(Stream* stream, int* device) {
  *device = is_default(stream) ? current_device() : stream->device;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetId(Stream* stream, unsigned long long* id) {
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamQuery(Stream*) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(Stream*) {
  BEGIN;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(Stream*, Event*, unsigned) { return cudaSuccess; }

EXPORT cudaError_t cudaLaunchHostFunc(Stream*, void (*function)(void*), void* data) {
  function(data);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamAddCallback(Stream* stream, void (*function)(Stream*, cudaError_t, void*), void* data,
                                         unsigned) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}

// Graphs are refused where capture begins, so nothing is ever being captured.
EXPORT cudaError_t cudaStreamIsCapturing(Stream*, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(Stream*, cudaStreamCaptureStatus* status, unsigned long long* id) {
  *status = cudaStreamCaptureStatusNone;
  if (id != nullptr) *id = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo_v2(Stream* stream, cudaStreamCaptureStatus* status,
                                               unsigned long long* id) {
  return cudaStreamGetCaptureInfo(stream, status, id);
}

EXPORT cudaError_t cudaStreamGetCaptureInfo_v3(Stream* stream, cudaStreamCaptureStatus* status,
                                               unsigned long long* id) {
  return cudaStreamGetCaptureInfo(stream, status, id);
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

EXPORT cudaError_t cudaStreamBeginCapture(Stream*, cudaStreamCaptureMode) {
  return failed(static_cast<cudaError_t>(refuse("cudaStreamBeginCapture (CUDA graphs)", cudaErrorNotSupported)));
}

EXPORT cudaError_t cudaEventCreateWithFlags(Event** event, unsigned flags) {
  BEGIN;
  USE(current_device());
  *event = new Event{flags, false, {}};
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreate(Event** event) { return cudaEventCreateWithFlags(event, 0); }

EXPORT cudaError_t cudaEventDestroy(Event* event) {
  delete event;
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecord(Event* event, Stream*) {
  event->recorded = true;
  clock_gettime(CLOCK_MONOTONIC, &event->at);
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecordWithFlags(Event* event, Stream* stream, unsigned) {
  return cudaEventRecord(event, stream);
}

EXPORT cudaError_t cudaEventQuery(Event*) { return cudaSuccess; }
EXPORT cudaError_t cudaEventSynchronize(Event*) { return cudaSuccess; }

EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, Event* start, Event* end) {
  if (!start->recorded || !end->recorded || ((start->flags | end->flags) & cudaEventDisableTiming) != 0) {
    return failed(cudaErrorInvalidResourceHandle);
  }
  *milliseconds = static_cast<float>((end->at.tv_sec - start->at.tv_sec) * 1e3 +
                                     (end->at.tv_nsec - start->at.tv_nsec) * 1e-6);
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
  return cudaEventElapsedTime(milliseconds, start, end);
}

EXPORT cudaError_t cudaProfilerStart() { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop() { return cudaSuccess; }
