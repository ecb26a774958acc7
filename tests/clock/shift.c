// Shifts the wall clock of a process by BYOKV_SHIFT seconds; all other clocks stay. Preloaded into
// the tool by the tests, which knows nothing of it. Built by `shifted.rs`.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long shift;

__attribute__((constructor)) static void start(void) {
    const char *text = getenv("BYOKV_SHIFT");
    if (text) shift = atol(text);
}

int clock_gettime(clockid_t id, struct timespec *shown) {
    int outcome = syscall(SYS_clock_gettime, id, shown);
    if (outcome == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        shown->tv_sec += shift;
    return outcome;
}
