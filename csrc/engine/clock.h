/* Time and the processor: nanoseconds that never go back, a polite busy wait, and how
 * many processors this process may use. */
#ifndef PAML_CLOCK_H
#define PAML_CLOCK_H

#include <sched.h>
#include <stdint.h>
#include <time.h>

#define PAML_SECOND INT64_C(1000000000)

static inline int64_t
paml_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * PAML_SECOND + now.tv_nsec;
}

/* So long a thread computes before it makes way again: a yield that nobody wanted costs
   half a microsecond. */
#define PAML_MAKE_WAY_EVERY_NS 100000

/* Lets threads run that wait for this processor, the loop's above all; gives the time.
   `last_ns`: when the caller last did, 0 at first.

   For work without an end, training: where more threads want to run than there are
   processors, one that computes all the time keeps its processor for a whole slice of
   the scheduler's, 3 to 4 ms, and so late is a loop that shares it. A yield ends
   the slice; Linux 6.18 also counts all of it as used, so that training comes after
   whoever else computes there (measured: a tenth of the share of one such thread, where
   a slice of 0.1 ms by sched_setattr gives it 0.6, and the loop waits of 0.5 ms). A
   nice value instead was measured to leave the lag, longer slices as well, and
   SCHED_IDLE to starve the training. */
static inline int64_t
paml_make_way(int64_t *last_ns, int64_t now_ns)
{
    if (now_ns - *last_ns >= PAML_MAKE_WAY_EVERY_NS) {
        sched_yield();
        *last_ns = now_ns = paml_now_ns();
    }
    return now_ns;
}

static inline void
paml_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/* How many processors this process may use, at least 1: by affinity, and by the quotas
   of its control groups, rounded up. Reads files; keep the answer. */
int paml_usable_cpus(void);

/* The part of it that quotas decide, INT_MAX where there is none. `groups` is
   /proc/self/cgroup and `mounts` is /sys/fs/cgroup but for tests. */
int paml_quota_cpus(const char *groups, const char *mounts);

/* Sleeps until the moment, exactly: the kernel's timer slack is taken off by sleeping
   short and spinning the rest. */
void paml_sleep_until(int64_t moment_ns);

#endif
