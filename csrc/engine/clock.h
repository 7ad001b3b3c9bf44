/* Time and the processor: nanoseconds that never go back, a polite busy wait, and how
 * many processors this process may use. */
#ifndef PAML_CLOCK_H
#define PAML_CLOCK_H

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
