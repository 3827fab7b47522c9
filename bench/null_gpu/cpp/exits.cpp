// How processes and threads end.
#include <dlfcn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "export.h"
#include "launches.h"

// Processes that end by _exit, as forked workers do, run no destructors.
EXPORT [[noreturn]] void _exit(int status) {
  null_gpu::write_launches();
  for (;;) syscall(SYS_exit_group, status);
}

// Real values (see inside/) are a Python object that autograd's threads let go of a moment after a backward pass. If
// Python is ending by then, before version 3.14 it ends the thread with this function, which C++ takes for an error and
// aborts the process. Later versions leave such threads waiting until the process is gone, and so does this.
EXPORT [[noreturn]] void pthread_exit(void* value) {
  char name[16] = "";
  prctl(PR_GET_NAME, name);
  while (strncmp(name, "pt_autograd", strlen("pt_autograd")) == 0) pause();
  const auto real = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_NEXT, "pthread_exit"));
  real(value);
  __builtin_unreachable();
}
