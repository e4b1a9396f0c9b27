/* A stand-in libnvidia-ml.so.1 for tests, under the real pynvml. Every call rereads the text file FAKE_NVML_FILE:
 *   count=1                      number of devices, at most 16
 *   0.util=37  0.memutil=5  0.mem_total=25757220864  0.mem_used=1073741824  0.mem_reserved=0
 *   0.minor=0                    of /dev/nvidiaN; without a line the device's number
 *   0.temp=51  0.power=120000 (mW)  0.mig=1  0.name=...  0.uuid=GPU-...
 *   0.proc=PID:BYTES:c           one line per process (c compute, g graphics); repeatable; BYTES -1: not told
 *   0.putil=PID:PERCENT          how busy a process keeps it, while it is not stopped; repeatable; without any line the
 *                                call is not supported
 *   0.throttle=0x20              bits of nvmlDeviceGetCurrentClocksEventReasons; -1: not supported
 *   0.xid=79                     a fault, told once to each event set, and again after it has changed
 *   0.err=15                     every call on device 0 returns this nvmlReturn_t (15 = GPU_IS_LOST)
 *   err.nvmlFoo=999              that function returns this code (0.err wins)
 *   delay.nvmlFoo=2000           that function sleeps so many ms first (a hung driver)
 * nvmlDeviceGetMemoryInfo_v2 has a name of its own there; other names go without their version.
 * Struct layouts and symbols are those that the binding uses; no driver was asked.
 * Write the file with rename(2), so that no reader sees half of it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef int ret_t; typedef struct { int idx; } dev_t_; typedef dev_t_ *nvmlDevice_t;
enum { OK = 0, UNINIT = 1, INVAL = 2, NOTSUP = 3, NOTFOUND = 6, SMALL = 7, NODRIVER = 9, TIMEOUT = 10 };
static dev_t_ devs[16]; static int inited;
static char *slurp(char *buf, size_t n) {
  const char *p = getenv("FAKE_NVML_FILE"); FILE *f = p ? fopen(p, "re") : NULL; size_t k = 0;
  if (f) { k = fread(buf + 1, 1, n - 2, f); fclose(f); }
  buf[0] = '\n'; buf[k + 1] = 0; return buf;
}
static const char *find(const char *b, const char *key) {
  char k[128]; snprintf(k, sizeof k, "\n%s=", key); const char *p = strstr(b, k); return p ? p + strlen(k) : NULL;
}
static long long num(const char *b, const char *key, long long d) { const char *p = find(b, key); return p ? strtoll(p, NULL, 0) : d; }
static void str(const char *b, const char *key, const char *d, char *out, unsigned n) {
  const char *p = find(b, key); size_t l = p ? strcspn(p, "\n") : strlen(d); if (!p) p = d;
  if (l >= n) l = n - 1; memcpy(out, p, l); out[l] = 0;
}
static ret_t pre(char *b, const char *fn, int dev) {
  char k[96]; long long v;
  snprintf(k, sizeof k, "delay.%s", fn);
  if ((v = num(b, k, 0)) > 0) { struct timespec t = {v / 1000, (v % 1000) * 1000000L}; while (nanosleep(&t, &t) && errno == EINTR); }
  if (dev >= 0) { snprintf(k, sizeof k, "%d.err", dev); if ((v = num(b, k, 0))) return v; }
  snprintf(k, sizeof k, "err.%s", fn); return num(b, k, 0);
}
#define BUF char b[16384]; slurp(b, sizeof b); ret_t r_;
#define TOP(f) BUF if ((r_ = pre(b, f, -1))) return r_;
#define DEV(f) BUF if (!inited) return UNINIT; if (d < devs || d >= devs + 16 || d->idx >= num(b, "count", 1)) return INVAL; \
  if ((r_ = pre(b, f, d->idx))) return r_; char k[64]; (void)k;
#define KEY(s) (snprintf(k, sizeof k, "%d." s, d->idx), k)
ret_t nvmlInitWithFlags(unsigned fl) { (void)fl; TOP("nvmlInit") inited++; for (int i = 0; i < 16; i++) devs[i].idx = i; return OK; }
ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
ret_t nvmlInit(void) { return nvmlInitWithFlags(0); }
ret_t nvmlShutdown(void) { TOP("nvmlShutdown") if (!inited) return UNINIT; inited--; return OK; }
const char *nvmlErrorString(ret_t r) { static char s[32]; if (r == 15) return "GPU is lost"; snprintf(s, sizeof s, "fake nvml error %d", r); return s; }
ret_t nvmlSystemGetDriverVersion(char *o, unsigned n) { TOP("nvmlSystemGetDriverVersion") str(b, "driver", "580.00.00", o, n); return OK; }
ret_t nvmlDeviceGetCount_v2(unsigned *c) { TOP("nvmlDeviceGetCount") if (!inited) return UNINIT; *c = num(b, "count", 1); return OK; }
ret_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *d) { TOP("nvmlDeviceGetHandleByIndex") if (!inited) return UNINIT; if (i >= num(b, "count", 1)) return INVAL; *d = &devs[i]; return pre(b, "nvmlDeviceGetHandleByIndex", i); }
ret_t nvmlDeviceGetHandleByUUID(const char *u, nvmlDevice_t *d) {
  TOP("nvmlDeviceGetHandleByUUID") if (!inited) return UNINIT; char k[64], v[96], def[40];
  for (int i = 0; i < num(b, "count", 1); i++) { snprintf(k, sizeof k, "%d.uuid", i); snprintf(def, sizeof def, "GPU-fake-%d", i); str(b, k, def, v, sizeof v); if (!strcmp(u, v)) { *d = &devs[i]; return OK; } }
  return NOTFOUND;
}
ret_t nvmlDeviceGetIndex(nvmlDevice_t d, unsigned *i) { DEV("nvmlDeviceGetIndex") *i = d->idx; return OK; }
ret_t nvmlDeviceGetMinorNumber(nvmlDevice_t d, unsigned *i) { DEV("nvmlDeviceGetMinorNumber") *i = num(b, KEY("minor"), d->idx); return OK; }
struct pci { char old[16]; unsigned domain, bus, device, id, sub; char bus_id[32]; };
ret_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, struct pci *p) { DEV("nvmlDeviceGetPciInfo") memset(p, 0, sizeof *p); p->bus = d->idx + 1; snprintf(p->bus_id, sizeof p->bus_id, "00000000:%02X:00.0", d->idx + 1); return OK; }
ret_t nvmlDeviceGetName(nvmlDevice_t d, char *o, unsigned n) { DEV("nvmlDeviceGetName") str(b, KEY("name"), "Fake GPU", o, n); return OK; }
ret_t nvmlDeviceGetUUID(nvmlDevice_t d, char *o, unsigned n) { DEV("nvmlDeviceGetUUID") char def[40]; snprintf(def, sizeof def, "GPU-fake-%d", d->idx); str(b, KEY("uuid"), def, o, n); return OK; }
ret_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, unsigned *u) { DEV("nvmlDeviceGetUtilizationRates") unsigned g = num(b, KEY("util"), 0), m = num(b, KEY("memutil"), 0); u[0] = g; u[1] = m; return OK; }
ret_t nvmlDeviceGetTemperature(nvmlDevice_t d, int s, unsigned *t) { (void)s; DEV("nvmlDeviceGetTemperature") *t = num(b, KEY("temp"), 40); return OK; }
ret_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned *p) { DEV("nvmlDeviceGetPowerUsage") long long v = num(b, KEY("power"), 30000); if (v < 0) return NOTSUP; *p = v; return OK; }
ret_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, unsigned long long *m) { DEV("nvmlDeviceGetMemoryInfo") m[0] = num(b, KEY("mem_total"), 25757220864LL); m[2] = num(b, KEY("mem_used"), 0); m[1] = m[0] - m[2]; return OK; }
ret_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned *now, unsigned *next) { DEV("nvmlDeviceGetMigMode") long long v = num(b, KEY("mig"), -1); if (v < 0) return NOTSUP; *now = *next = v; return OK; }
struct mem2 { unsigned version; unsigned long long total, reserved, free, used; };
ret_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, struct mem2 *m) { DEV("nvmlDeviceGetMemoryInfo") if ((r_ = num(b, "err.nvmlDeviceGetMemoryInfo_v2", 0))) return r_; if (m->version != (sizeof *m | 2u << 24)) return 25;
  m->total = num(b, KEY("mem_total"), 25757220864LL); m->reserved = num(b, KEY("mem_reserved"), 0); m->used = num(b, KEY("mem_used"), 0); m->free = m->total - m->used - m->reserved; return OK; }
ret_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *t) { DEV("nvmlDeviceGetCurrentClocksEventReasons") long long v = num(b, KEY("throttle"), 0); if (v < 0) return NOTSUP; *t = v; return OK; }
struct set { nvmlDevice_t dev; long long told; }; struct event { nvmlDevice_t dev; unsigned long long type, data; unsigned gi, ci; };
ret_t nvmlEventSetCreate(struct set **s) { TOP("nvmlEventSetCreate") if (!inited) return UNINIT; *s = calloc(1, sizeof **s); return OK; }
ret_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, struct set *s) { DEV("nvmlDeviceRegisterEvents") if (!(types & 8)) return NOTSUP; s->dev = d; return OK; }
ret_t nvmlEventSetWait_v2(struct set *s, struct event *e, unsigned ms) { (void)ms; nvmlDevice_t d = s->dev; if (!d) return INVAL; DEV("nvmlEventSetWait") long long v = num(b, KEY("xid"), 0);
  if (!v || v == s->told) { s->told = v; return TIMEOUT; } s->told = v; memset(e, 0, sizeof *e); e->dev = d; e->type = 8; e->data = v; return OK; }
struct proc { unsigned pid; unsigned long long mem; unsigned gi, ci; };
static ret_t procs(const char *b, int idx, char kind, unsigned *n, struct proc *out) {
  unsigned have = 0, cap = *n; char k[32]; snprintf(k, sizeof k, "\n%d.proc=", idx);
  for (const char *p = b; (p = strstr(p, k)); ) { p += strlen(k); unsigned pid; long long mem; char c = 'c';
    if (sscanf(p, "%u:%lld:%c", &pid, &mem, &c) >= 2 && c == kind) { if (out && have < cap) out[have] = (struct proc){pid, mem < 0 ? ~0ULL : (unsigned long long)mem, ~0u, ~0u}; have++; } }
  *n = have; return have > (out ? cap : 0) ? SMALL : OK;
}
struct util { unsigned pid; unsigned long long at; unsigned sm, mem, enc, dec; };
static int stopped(unsigned pid) {
  char name[40], line[512]; snprintf(name, sizeof name, "/proc/%u/stat", pid); FILE *f = fopen(name, "re"); if (!f) return 1;
  size_t n = fread(line, 1, sizeof line - 1, f); fclose(f); line[n] = 0; char *p = strrchr(line, ')'); if (!p || strchr("TtZX", p[2])) return 1;
  snprintf(name, sizeof name, "/proc/%u/cgroup", pid); if (!(f = fopen(name, "re"))) return 1; /* frozen in a cgroup */
  n = fread(line, 1, sizeof line - 1, f); fclose(f); line[n] = 0; if (!(p = strstr(line, "0::"))) return 0;
  char at[640]; p[strcspn(p, "\n")] = 0; for (int i = 0; i < 2; i++) {
    snprintf(at, sizeof at, "/sys/fs/cgroup%s%s/cgroup.freeze", i ? "/unified" : "", p + 3);
    if ((f = fopen(at, "re"))) { int c = fgetc(f); fclose(f); return c == '1'; } }
  return 0;
}
ret_t nvmlDeviceGetProcessUtilization(nvmlDevice_t d, struct util *out, unsigned *n, unsigned long long since) {
  DEV("nvmlDeviceGetProcessUtilization") struct timespec t; clock_gettime(CLOCK_REALTIME, &t); unsigned have = 0, cap = *n, lines = 0; char w[32];
  snprintf(w, sizeof w, "\n%d.putil=", d->idx);
  for (const char *p = b; (p = strstr(p, w)); ) { p += strlen(w); unsigned pid, percent; lines++;
    if (sscanf(p, "%u:%u", &pid, &percent) != 2 || stopped(pid)) continue;
    if (out && have < cap) out[have] = (struct util){pid, t.tv_sec * 1000000ULL + t.tv_nsec / 1000, percent, 0, 0, 0}; have++; }
  *n = have; return !lines ? NOTSUP : have > (out ? cap : 0) ? SMALL : have ? OK : NOTFOUND;
}
ret_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *n, struct proc *o) { DEV("nvmlDeviceGetComputeRunningProcesses") return procs(b, d->idx, 'c', n, o); }
ret_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned *n, struct proc *o) { DEV("nvmlDeviceGetGraphicsRunningProcesses") return procs(b, d->idx, 'g', n, o); }
