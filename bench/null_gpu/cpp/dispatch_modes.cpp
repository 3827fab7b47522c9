// If a Python dispatch mode is active, torch's autograd adds gradients out of place, which needs memory. The null GPU's
// own mode (inside/real_values.py), which is below all others in each thread, must not count.
#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstring>

namespace {

template <class Function>
Function of_torch(const char *name) {
  void *core = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);  // the caller has loaded it
  return reinterpret_cast<Function>(dlsym(core, name));
}

struct Range {
  uintptr_t begin = 0, end = 0;
};

// The addresses of the library with autograd and the operators; torch's Python part needs the true answer.
Range of_operators() {
  Range found;
  dl_iterate_phdr(
      [](dl_phdr_info *library, size_t, void *range) {
        if (!strstr(library->dlpi_name, "libtorch_cpu.so")) return 0;
        for (int index = 0; index < library->dlpi_phnum; ++index) {
          const auto &segment = library->dlpi_phdr[index];
          if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
          const uintptr_t begin = library->dlpi_addr + segment.p_vaddr;
          *static_cast<Range *>(range) = {begin, begin + segment.p_memsz};
        }
        return 1;
      },
      &found);
  return found;
}

}  // namespace

namespace c10::impl {

__attribute__((visibility("default"))) bool dispatch_mode_enabled() {
  static const auto any = of_torch<bool (*)()>("_ZN3c104impl21dispatch_mode_enabledEv");
  if (!any()) return false;
  static const Range operators = of_operators();
  const auto asking = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  if (asking < operators.begin || asking >= operators.end) return true;
  static const auto modes = of_torch<int64_t (*)()>("_ZN3c104impl20TorchDispatchModeTLS9stack_lenEv");
  return modes() > 1;
}

}  // namespace c10::impl
