/* A stand-in libcuda.so.1 for tests, under the real cuda.bindings: the process checkpoint, played in the folder FAKE_CUDA_DIR.
 *   PID.state     exists: this process uses CUDA; 0 running, 1 locked, 2 checkpointed, 3 failed. Written by the calls.
 *   calls         each call that was begun, a line each: `lock 123 500 running`, the last word being what /proc says
 *   done          each call's end: `lock 123 0`, with the CUresult
 *   plays         what goes otherwise, a line each, reread at every call:
 *     version=12040            cuDriverGetVersion
 *     err.CALL[.PID]=999       that call (init, state, lock, checkpoint, restore, unlock) returns this CUresult. After a
 *                              checkpoint or a restore the process is then as the driver leaves it: see below
 *     delay.CALL[.PID]=2000    it takes so many ms first; cannot be interrupted (a slow, or a hung driver)
 *     kill.CALL[.PID]=1        the target dies of it
 *     busy.PID=300             its work on the GPU ends so many ms after a lock was asked for
 * As a driver does, by its documentation and by what is told of it: every call but init and the version returns 3 before
 * init, and for a process without CUDA; 401 in the wrong state; 304 for a process that is not there. State, lock, restore
 * and unlock of a process that is stopped, or frozen in a cgroup, wait until it runs, whatever the time given. A lock that
 * is not had in time returns 600 and changes nothing. A checkpoint that fails with 801 leaves the process locked, any other
 * error failed. After a restore that failed each further one returns 304. No driver was asked. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
typedef int ret_t;
enum { OK = 0, INVAL = 1, UNINIT = 3, OS = 304, STATE = 401, NOTFOUND = 500, NOTREADY = 600, NOTSUP = 801 };
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };
static int inited;
static const char *at(char *b, size_t n, const char *name) { const char *d = getenv("FAKE_CUDA_DIR"); snprintf(b, n, "%s/%s", d ? d : "/nonexistent", name); return b; }
static long long play(const char *what, const char *call, int pid, long long d) {
  char path[512], b[8192], k[96]; size_t n = 0; FILE *f = fopen(at(path, sizeof path, "plays"), "re");
  b[0] = '\n'; if (f) { n = fread(b + 1, 1, sizeof b - 2, f); fclose(f); } b[n + 1] = 0;
  for (int i = 0; i < 2; i++) {
    if (i) snprintf(k, sizeof k, "\n%s%s=", what, call); else snprintf(k, sizeof k, "\n%s%s%s%d=", what, call, *call ? "." : "", pid);
    const char *p = strstr(b, k); if (p) return strtoll(p + strlen(k), NULL, 0);
  }
  return d;
}
static void line(const char *file, const char *text) {
  char path[512]; int fd = open(at(path, sizeof path, file), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd >= 0) { if (write(fd, text, strlen(text)) < 0) abort(); close(fd); }
}
static void wait_ms(long long ms) { struct timespec t = {ms / 1000, (ms % 1000) * 1000000L}; while (nanosleep(&t, &t) && errno == EINTR); }
static long long now_ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000LL + t.tv_nsec / 1000000; }
static const char *seen(int pid) { /* what /proc says of it */
  char name[64], b[512]; snprintf(name, sizeof name, "/proc/%d/stat", pid); FILE *f = fopen(name, "re"); if (!f) return "gone";
  size_t n = fread(b, 1, sizeof b - 1, f); fclose(f); b[n] = 0; char *p = strrchr(b, ')'); if (!p || strchr("ZX", p[2])) return "gone";
  if (strchr("Tt", p[2])) return "stopped";
  snprintf(name, sizeof name, "/proc/%d/cgroup", pid); if (!(f = fopen(name, "re"))) return "gone";
  n = fread(b, 1, sizeof b - 1, f); fclose(f); b[n] = 0; if (!(p = strstr(b, "0::"))) return "running";
  char path[640]; p[strcspn(p, "\n")] = 0; for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "/sys/fs/cgroup%s%s/cgroup.freeze", i ? "/unified" : "", p + 3);
    if ((f = fopen(path, "re"))) { int c = fgetc(f); fclose(f); if (c == '1') return "frozen"; } }
  return "running";
}
static int state(int pid) { char name[32], path[512]; int s = -1; snprintf(name, sizeof name, "%d.state", pid); FILE *f = fopen(at(path, sizeof path, name), "re"); if (f) { if (fscanf(f, "%d", &s) != 1) s = -1; fclose(f); } return s; }
static void become(int pid, int s) {
  char name[32], path[512], fresh[520]; snprintf(name, sizeof name, "%d.state", pid); at(path, sizeof path, name); snprintf(fresh, sizeof fresh, "%s.new", path);
  FILE *f = fopen(fresh, "we"); if (f) { fprintf(f, "%d\n", s); fclose(f); rename(fresh, path); }
}
static ret_t end(const char *call, int pid, ret_t r) { char b[96]; snprintf(b, sizeof b, "%s %d %d\n", call, pid, r); line("done", b); return r; }
/* Up to the state machine: what every call on a process does. `want` is the state that it needs; -1: any. */
static ret_t pre(const char *call, int pid, long long more, int waits, int want) {
  char b[128]; snprintf(b, sizeof b, "%s %d %lld %s\n", call, pid, more, seen(pid)); line("calls", b);
  if (!inited) return UNINIT;
  while (waits && (!strcmp(seen(pid), "stopped") || !strcmp(seen(pid), "frozen"))) wait_ms(2);
  long long v = play("delay.", call, pid, 0); if (v) wait_ms(v);
  if (play("kill.", call, pid, 0)) { kill(pid, SIGKILL); while (strcmp(seen(pid), "gone")) wait_ms(2); }
  if (!strcmp(seen(pid), "gone")) return OS;
  if (state(pid) < 0) return UNINIT;
  return want >= 0 && state(pid) != want ? STATE : OK;
}
ret_t cuInit(unsigned flags) { line("calls", "init\n"); long long v = play("delay.", "init", 0, 0); if (v) wait_ms(v); ret_t r = play("err.", "init", 0, 0); if (!r) inited = 1; return flags ? INVAL : r; }
ret_t cuDriverGetVersion(int *v) { *v = play("version", "", 0, 12080); return OK; }
ret_t cuCheckpointProcessGetState(int pid, int *s) {
  ret_t r = pre("state", pid, 0, 1, -1); if (!r) r = play("err.", "state", pid, 0); if (!r) *s = state(pid); return end("state", pid, r);
}
struct lock { unsigned limit_ms, reserved0; unsigned long long reserved1[7]; };
ret_t cuCheckpointProcessLock(int pid, struct lock *a) {
  ret_t r = pre("lock", pid, a ? a->limit_ms : 0, 1, RUNNING); long long from = now_ms(), busy = play("busy.", "", pid, play("busy", "", pid, 0));
  for (int i = 0; a && i < 7; i++) if (a->reserved1[i]) r = INVAL;
  if (!r) r = play("err.", "lock", pid, 0);
  while (!r && now_ms() - from < busy) { if (a && a->limit_ms && now_ms() - from >= a->limit_ms) r = NOTREADY; else wait_ms(2); }
  if (!r) become(pid, LOCKED); return end("lock", pid, r);
}
ret_t cuCheckpointProcessCheckpoint(int pid, void *a) {
  (void)a; ret_t r = pre("checkpoint", pid, 0, 0, LOCKED), e = play("err.", "checkpoint", pid, 0);
  if (!r && e) { if (e != NOTSUP) become(pid, FAILED); r = e; } else if (!r) become(pid, CHECKPOINTED);
  return end("checkpoint", pid, r);
}
ret_t cuCheckpointProcessRestore(int pid, void *a) {
  (void)a; char name[32], path[512]; snprintf(name, sizeof name, "%d.spoilt", pid); at(path, sizeof path, name);
  ret_t r = pre("restore", pid, 0, 1, CHECKPOINTED), e = play("err.", "restore", pid, 0);
  if (!r && !access(path, F_OK)) r = OS; else if (!r && e) { line(name, "\n"); r = e; } else if (!r) become(pid, LOCKED);
  return end("restore", pid, r);
}
ret_t cuCheckpointProcessUnlock(int pid, void *a) {
  (void)a; ret_t r = pre("unlock", pid, 0, 1, LOCKED); if (!r) r = play("err.", "unlock", pid, 0);
  if (!r) become(pid, RUNNING); return end("unlock", pid, r);
}
/* How the binding finds them. What is not here, a context's making first of all, cannot be called without a test seeing it. */
static const struct { const char *name; void *call; int since; } calls[] = {
  {"cuInit", cuInit, 2000}, {"cuDriverGetVersion", cuDriverGetVersion, 2020}, {"cuCheckpointProcessGetState", cuCheckpointProcessGetState, 12080},
  {"cuCheckpointProcessLock", cuCheckpointProcessLock, 12080}, {"cuCheckpointProcessCheckpoint", cuCheckpointProcessCheckpoint, 12080},
  {"cuCheckpointProcessRestore", cuCheckpointProcessRestore, 12080}, {"cuCheckpointProcessUnlock", cuCheckpointProcessUnlock, 12080}};
ret_t cuGetProcAddress_v2(const char *name, void **call, int version, unsigned long long flags, int *why) {
  (void)version; (void)flags; *call = NULL; if (why) *why = 1; long long has = play("version", "", 0, 12080);
  for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) if (!strcmp(name, calls[i].name) && calls[i].since <= has) { *call = calls[i].call; if (why) *why = 0; }
  if (!strcmp(name, "cuGetProcAddress")) *call = cuGetProcAddress_v2;
  return *call ? OK : NOTFOUND;
}
ret_t cuGetProcAddress(const char *name, void **call, int version, unsigned long long flags) { return cuGetProcAddress_v2(name, call, version, flags, NULL); }
