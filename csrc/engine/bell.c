#include "bell.h"

#include <errno.h>
#include <time.h>

#include "clock.h"

void
paml_bell_init(struct paml_bell *bell)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&bell->lock, NULL);
    pthread_cond_init(&bell->heard, &attributes);
    pthread_condattr_destroy(&attributes);
    atomic_init(&bell->rung, false);
    bell->next = NULL;
    bell->hangs = false;
}

void
paml_bell_destroy(struct paml_bell *bell)
{
    /* Who rings does so under the lock: once we had it, they are out. */
    pthread_mutex_lock(&bell->lock);
    pthread_mutex_unlock(&bell->lock);
    pthread_mutex_destroy(&bell->lock);
    pthread_cond_destroy(&bell->heard);
}

void
paml_bell_ring_held(struct paml_bell *bell)
{
    if (!paml_bell_is_rung(bell)) {
        atomic_store_explicit(&bell->rung, true, memory_order_relaxed);
        pthread_cond_signal(&bell->heard);
    }
}

void
paml_bell_ring(struct paml_bell *bell)
{
    pthread_mutex_lock(&bell->lock);
    paml_bell_ring_held(bell);
    pthread_mutex_unlock(&bell->lock);
}

void
paml_bell_wait(struct paml_bell *bell, int64_t until_ns)
{
    struct timespec until = {until_ns / PAML_SECOND, until_ns % PAML_SECOND};
    bool late = false;

    pthread_mutex_lock(&bell->lock);
    while (!paml_bell_is_rung(bell) && !late) {
        if (until_ns == INT64_MAX) {
            pthread_cond_wait(&bell->heard, &bell->lock);
        } else {
            late =
                pthread_cond_timedwait(&bell->heard, &bell->lock, &until) == ETIMEDOUT;
        }
    }
    atomic_store_explicit(&bell->rung, false, memory_order_relaxed);
    pthread_mutex_unlock(&bell->lock);
}

void
paml_bell_hush(struct paml_bell *bell)
{
    pthread_mutex_lock(&bell->lock);
    atomic_store_explicit(&bell->rung, false, memory_order_relaxed);
    pthread_mutex_unlock(&bell->lock);
}

void
paml_bells_init(struct paml_bells *bells)
{
    pthread_mutex_init(&bells->lock, NULL);
    bells->first = NULL;
}

void
paml_bells_destroy(struct paml_bells *bells)
{
    pthread_mutex_destroy(&bells->lock);
}

void
paml_bells_hang(struct paml_bells *bells, struct paml_bell *bell)
{
    struct paml_bell **link = &bells->first;

    pthread_mutex_lock(&bells->lock);
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = bell;
    bell->next = NULL;
    bell->hangs = true;
    pthread_mutex_unlock(&bells->lock);
}

bool
paml_bells_take(struct paml_bells *bells, struct paml_bell *bell)
{
    struct paml_bell **link = &bells->first;
    bool hung;

    pthread_mutex_lock(&bells->lock);
    hung = bell->hangs;
    if (hung) {
        while (*link != bell) {
            link = &(*link)->next;
        }
        *link = bell->next;
        bell->hangs = false;
    }
    pthread_mutex_unlock(&bells->lock);
    return hung;
}

bool
paml_bells_ring_one(struct paml_bells *bells)
{
    struct paml_bell *bell;

    pthread_mutex_lock(&bells->lock);
    bell = bells->first;
    if (bell != NULL) {
        bells->first = bell->next;
        bell->hangs = false;
        paml_bell_ring(bell);
    }
    pthread_mutex_unlock(&bells->lock);
    return bell != NULL;
}
