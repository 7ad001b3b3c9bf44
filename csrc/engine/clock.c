#include "clock.h"

#include <errno.h>
#include <sched.h>
#include <sys/prctl.h>

/* A timed sleep with minimal slack still wakes up some tens of microseconds late. */
#define WAKE_UP_NS 30000

int
paml_usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        int count = CPU_COUNT(&set);
        return count > 0 ? count : 1;
    }
    return 1;
}

void
paml_sleep_until(int64_t moment_ns)
{
    int64_t early = moment_ns - WAKE_UP_NS;

    if (paml_now_ns() < early) {
        struct timespec until = {early / PAML_SECOND, early % PAML_SECOND};

        prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
        }
    }
    while (paml_now_ns() < moment_ns) {
        paml_cpu_relax();
    }
}
