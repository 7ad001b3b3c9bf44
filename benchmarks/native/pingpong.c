/* The floor under one request alone in flight: a loop thread and a worker that wake
 * each other the way an event loop and a worker pool must, in plain C.
 *
 *     loop -> worker: mutex and condition variable
 *     worker -> loop: eventfd, waited for with epoll
 *
 * Reads "SECONDS PLACEMENT" lines from stdin and answers each with a line of JSON.
 * PLACEMENT says where the two threads run: "free" leaves it to the scheduler, which
 * may well put them on one core, where a switch costs a tenth of a wake-up on another;
 * "apart" pins them to two cores. No spinning on either side.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER;
static int pending, stopping; /* Locks: mutex. */
static int completion_fd;

static int64_t
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static double
cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void *
worker(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (!pending && !stopping) {
            pthread_cond_wait(&posted, &mutex);
        }
        if (stopping) {
            break;
        }
        pending = 0;
        pthread_mutex_unlock(&mutex);
        if (eventfd_write(completion_fd, 1) != 0) {
            abort();
        }
        pthread_mutex_lock(&mutex);
    }
    pthread_mutex_unlock(&mutex);
    return NULL;
}

/* Thread: loop. */
static void
round_trip(int epoll_fd)
{
    struct epoll_event event;
    eventfd_t count;

    pthread_mutex_lock(&mutex);
    pending = 1;
    pthread_mutex_unlock(&mutex);
    pthread_cond_signal(&posted);
    while (epoll_wait(epoll_fd, &event, 1, -1) != 1) {
    }
    if (eventfd_read(completion_fd, &count) != 0) {
        abort();
    }
}

static int
compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void
measure(int epoll_fd, double seconds)
{
    size_t count = 0, capacity = 1024;
    int64_t *latencies = malloc(capacity * sizeof(*latencies));
    int64_t start, end, before, after;
    double cpu = cpu_seconds();

    start = before = now_ns();
    end = start + (int64_t)(seconds * 1e9);
    do {
        round_trip(epoll_fd);
        after = now_ns();
        if (count == capacity) {
            capacity *= 2;
            latencies = realloc(latencies, capacity * sizeof(*latencies));
        }
        if (latencies == NULL) {
            abort();
        }
        latencies[count++] = after - before;
        before = after;
    } while (after < end);
    cpu = cpu_seconds() - cpu;
    qsort(latencies, count, sizeof(*latencies), compare);
    printf("{\"requests\": %zu, \"wall_s\": %.9f, \"cpu_s\": %.9f, "
           "\"p50_us\": %.3f, \"p99_us\": %.3f}\n",
           count, (after - start) * 1e-9, cpu, latencies[count / 2] * 1e-3,
           latencies[count * 99 / 100] * 1e-3);
    fflush(stdout);
    free(latencies);
}

/* Pins `thread` to the index-th CPU of `allowed`, or to all of them if index < 0. */
static void
place(pthread_t thread, const cpu_set_t *allowed, int index)
{
    cpu_set_t one;

    if (index < 0) {
        pthread_setaffinity_np(thread, sizeof(*allowed), allowed);
        return;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, allowed) && index-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(thread, sizeof(one), &one);
        }
    }
}

int
main(void)
{
    struct epoll_event event = {.events = EPOLLIN};
    pthread_t thread;
    cpu_set_t allowed;
    char placement[16];
    double seconds;
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

    completion_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (epoll_fd < 0 || completion_fd < 0 ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, completion_fd, &event) != 0 ||
        sched_getaffinity(0, sizeof(allowed), &allowed) != 0 ||
        pthread_create(&thread, NULL, worker, NULL) != 0) {
        perror("pingpong");
        return 1;
    }
    while (scanf("%lf %15s", &seconds, placement) == 2) {
        const int apart = strcmp(placement, "apart") == 0;

        place(pthread_self(), &allowed, apart ? 0 : -1);
        place(thread, &allowed, apart ? 1 : -1);
        measure(epoll_fd, seconds);
    }
    pthread_mutex_lock(&mutex);
    stopping = 1;
    pthread_mutex_unlock(&mutex);
    pthread_cond_signal(&posted);
    pthread_join(thread, NULL);
    return 0;
}
