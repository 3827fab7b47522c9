// NVRTC reports only its version; profilers (CUPTI) report no events.
#include "export.h"

EXPORT int nvrtcVersion(int* major, int* minor) {
  *major = NULL_GPU_CUDART_VERSION / 1000;
  *minor = NULL_GPU_CUDART_VERSION % 1000 / 10;
  return 0;
}

EXPORT int cuptiGetVersion(unsigned* version) {
  *version = NULL_GPU_CUDART_VERSION / 10;
  return 0;
}
EXPORT int cuptiGetResultString(int, const char** text) {
  *text = "not supported by the null GPU";
  return 0;
}
