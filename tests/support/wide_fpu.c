/* For LD_PRELOAD with User-Mode Linux, whose buffer for a process's FPU state is smaller than the state of a processor
 * with AMX. The host writes such a state back only whole: so read it whole, lay the kernel's part over it, write it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static char whole[1 << 16];

long ptrace(enum __ptrace_request request, ...) {
  static long (*real)(enum __ptrace_request, ...);
  if (!real) real = dlsym(RTLD_NEXT, "ptrace");
  va_list given;
  va_start(given, request);
  int pid = va_arg(given, int);
  void *place = va_arg(given, void *), *data = va_arg(given, void *);
  va_end(given);
  if (request == PTRACE_SETREGSET && place == (void *)NT_X86_XSTATE) {
    struct iovec *part = data, all = {whole, sizeof whole};
    if (real(PTRACE_GETREGSET, pid, place, &all) == 0 && all.iov_len > part->iov_len) {
      memcpy(whole, part->iov_base, part->iov_len);
      return real(PTRACE_SETREGSET, pid, place, &all);
    }
  }
  return real(request, pid, place, data);
}
