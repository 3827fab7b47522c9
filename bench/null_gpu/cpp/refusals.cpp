#include "refusals.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>

#include "export.h"

namespace null_gpu {
namespace {

thread_local std::string last;
std::mutex lock;

}  // namespace

std::string note_path(const std::string& name) {
  const char* folder = getenv("NULL_GPU_NOTES");
  return folder == nullptr || *folder == '\0' ? "" : std::string(folder) + "/" + name;
}

int refuse(const char* function, int status) {
  last = function;
  std::lock_guard<std::mutex> guard(lock);
  static std::set<std::string> told;
  if (!told.insert(function).second) return status;
  fprintf(stderr, "null GPU: %s cannot be rehearsed, and failed\n", function);
  const std::string path = note_path("refused");
  if (!path.empty()) {
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0) {
      dprintf(file, "%s\n", function);
      close(file);
    }
  }
  return status;
}

const std::string& last_refused() { return last; }

void fatal(const std::string& message) {
  fprintf(stderr, "%s\n", message.c_str());
  abort();
}

}  // namespace null_gpu

// The refused functions are in C, in a file that is generated when the library is built.
extern "C" int null_gpu_refuse(const char* function, int status) { return null_gpu::refuse(function, status); }
