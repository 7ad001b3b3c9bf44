#include "clock.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

/* --- how many processors --- */

#define PATH_SIZE 4096

/* The numbers that a file begins with, two at most; returns how many there are. */
__attribute__((format(printf, 3, 4))) static int
read_numbers(long long *one, long long *other, const char *format, ...)
{
    char path[PATH_SIZE];
    va_list arguments;
    FILE *file;
    int found, length;

    va_start(arguments, format);
    length = vsnprintf(path, sizeof(path), format, arguments);
    va_end(arguments);
    file = length < (int)sizeof(path) ? fopen(path, "re") : NULL;
    if (file == NULL) {
        return 0;
    }
    found = fscanf(file, "%lld %lld", one, other);
    fclose(file);
    return found;
}

/* The quota of one group. None is "max" in version 2 of control groups, -1 in 1. */
static int
group_cpus(const char *mounts, const char *controllers, const char *group)
{
    long long quota = 0, period = 0, none, cpus;
    bool known;

    if (*controllers == '\0') {
        known = read_numbers(&quota, &period, "%s%s/cpu.max", mounts, group) == 2;
    } else {
        known = read_numbers(&quota, &none, "%s/%s%s/cpu.cfs_quota_us", mounts,
                             controllers, group) >= 1 &&
                read_numbers(&period, &none, "%s/%s%s/cpu.cfs_period_us", mounts,
                             controllers, group) >= 1;
    }
    if (!known || quota <= 0 || period <= 0) {
        return INT_MAX;
    }
    cpus = quota / period + (quota % period != 0);
    return cpus < INT_MAX ? (int)cpus : INT_MAX;
}

static bool
has_cpu(const char *controllers)
{
    while (strncmp(controllers, "cpu", 3) != 0 ||
           (controllers[3] != ',' && controllers[3] != '\0')) {
        controllers = strchr(controllers, ',');
        if (controllers == NULL) {
            return false;
        }
        controllers++;
    }
    return true;
}

int
paml_quota_cpus(const char *groups, const char *mounts)
{
    FILE *file = fopen(groups, "re");
    char line[PATH_SIZE];
    int least = INT_MAX;

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        /* hierarchy:controllers:path; version 2 names no controllers, and version 1 is
           mounted under their names. */
        char *controllers = strchr(line, ':'), *group, *end;

        group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) {
            continue;
        }
        controllers++;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (*controllers != '\0' && !has_cpu(controllers)) {
            continue;
        }
        /* Each group above limits as well. In a container the path may be the host's,
           of which only the last step up, to the container's own root, exists. */
        do {
            int cpus;

            end = strrchr(group, '/');
            if (end != NULL && end[1] == '\0') {
                *end = '\0'; /* the root is a bare slash */
            }
            cpus = group_cpus(mounts, controllers, group);
            least = cpus < least ? cpus : least;
            end = strrchr(group, '/');
            if (end != NULL) {
                *end = '\0';
            }
        } while (end != NULL);
    }
    if (file != NULL) {
        fclose(file);
    }
    return least;
}

int
paml_usable_cpus(void)
{
    int quota = paml_quota_cpus("/proc/self/cgroup", "/sys/fs/cgroup"), count = 1;
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        count = CPU_COUNT(&set);
    }
    return quota < count ? quota : count;
}

/* --- sleeping --- */

/* A timed sleep with minimal slack still wakes up some tens of microseconds late, how
   many depends on the machine: each thread learns it, and sleeps so much less. */
#define LATE_FIRST_NS 30000
#define LATE_MOST_NS 100000
#define LATE_MARGIN_NS 15000

void
paml_sleep_until(int64_t moment_ns)
{
    static _Thread_local int64_t late_ns = LATE_FIRST_NS;
    int64_t early = moment_ns - late_ns - LATE_MARGIN_NS, late;

    if (paml_now_ns() < early) {
        struct timespec until = {early / PAML_SECOND, early % PAML_SECOND};

        prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
        }
        late = paml_now_ns() - early;
        late = late < LATE_MOST_NS ? late : LATE_MOST_NS;
        late_ns += (late - late_ns) / 8;
    }
    while (paml_now_ns() < moment_ns) {
        paml_cpu_relax();
    }
}
