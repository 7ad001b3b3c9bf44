#include "thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "clock.h"

struct thread {
    struct thread *next;
    pthread_t id;
    bool leaving; /* `lock` */
    void (*main)(void *);
    void *argument;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed; /* some thread is leaving; CLOCK_MONOTONIC */
static struct thread *threads; /* `lock` */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_bool started, forked;
static _Thread_local struct thread *self;

static void
after_fork_in_child(void)
{
    if (atomic_load_explicit(&started, memory_order_relaxed)) {
        atomic_store_explicit(&forked, true, memory_order_relaxed);
    }
}

static void
initialise(void)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

static void *
thread_main(void *argument)
{
    self = argument;
    self->main(self->argument);
    return NULL;
}

/* Thread: any. Locks: takes `lock`. */
int
paml_thread_start(void (*main)(void *), void *argument, const char *name)
{
    struct thread *thread = calloc(1, sizeof(*thread));
    char short_name[16] = {0};
    sigset_t all, before;
    int error;

    if (thread == NULL) {
        return ENOMEM;
    }
    pthread_once(&once, initialise);
    atomic_store_explicit(&started, true, memory_order_relaxed);
    thread->main = main;
    thread->argument = argument;
    sigfillset(&all);
    pthread_mutex_lock(&lock);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread->id, NULL, thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) {
        for (size_t i = 0; i < sizeof(short_name) - 1 && name[i] != '\0'; i++) {
            short_name[i] = name[i];
        }
        pthread_setname_np(thread->id, short_name);
        thread->next = threads;
        threads = thread;
    } else {
        free(thread);
    }
    pthread_mutex_unlock(&lock);
    return error;
}

/* Thread: worker. Locks: takes `lock`. */
void
paml_thread_leaving(void)
{
    pthread_mutex_lock(&lock);
    self->leaving = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Thread: any. Locks: takes `lock`, joins without it. */
void
paml_threads_reap(void)
{
    struct thread **link, *thread, *leaving = NULL;

    pthread_mutex_lock(&lock);
    for (link = &threads; (thread = *link) != NULL;) {
        if (thread->leaving) {
            *link = thread->next;
            thread->next = leaving;
            leaving = thread;
        } else {
            link = &thread->next;
        }
    }
    pthread_mutex_unlock(&lock);
    while ((thread = leaving) != NULL) {
        leaving = thread->next;
        pthread_join(thread->id, NULL);
        free(thread);
    }
}

/* Thread: any but a worker. Locks: takes `lock`. */
bool
paml_threads_join(int64_t until_ns)
{
    struct timespec until = {until_ns / PAML_SECOND, until_ns % PAML_SECOND};
    struct thread *thread;
    bool none, late = false;

    for (;;) {
        paml_threads_reap();
        pthread_mutex_lock(&lock);
        for (thread = threads; thread != NULL && !thread->leaving;
             thread = thread->next) {
        }
        none = threads == NULL;
        if (!none && thread == NULL && !late) {
            late = pthread_cond_timedwait(&changed, &lock, &until) == ETIMEDOUT;
        }
        pthread_mutex_unlock(&lock);
        if (none || late) {
            return none;
        }
    }
}

bool
paml_threads_forked(void)
{
    return atomic_load_explicit(&forked, memory_order_relaxed);
}
