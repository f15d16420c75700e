/* For a node whose clock is wrong: preloaded, it makes Python's wall clock run SECONDS_AHEAD.

   Only Python's: a library that waits until a time of the wall clock would wait for hours, for the kernel's
   clock is right. The monotonic clock is right as well, as it is everywhere. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int is_python(void *caller)
{
    Dl_info found;
    if (!dladdr(caller, &found) || !found.dli_fname)
        return 0;
    const char *name = strrchr(found.dli_fname, '/');
    return strstr(name ? name : found.dli_fname, "python") != NULL;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    const char *ahead = getenv("SECONDS_AHEAD");
    if (!failed && clock == CLOCK_REALTIME && ahead && is_python(__builtin_return_address(0)))
        now->tv_sec += atol(ahead);
    return failed;
}
