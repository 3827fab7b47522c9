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

// The mode with real values (see inside/) is a Python object that autograd's threads release a moment after a backward
// pass. If Python is shutting down by then, versions before 3.14 end the thread with this function, which C++ treats as
// an error that aborts the process. Later versions let such threads wait until the process ends, and so does this.
EXPORT [[noreturn]] void pthread_exit(void* value) {
  char name[16] = "";
  prctl(PR_GET_NAME, name);
  while (strncmp(name, "pt_autograd", strlen("pt_autograd")) == 0) pause();
  const auto real = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_NEXT, "pthread_exit"));
  real(value);
  __builtin_unreachable();
}
