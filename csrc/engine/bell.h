/* What a worker sleeps on while it has runs in flight: whoever has something for it,
 * work or the end of a run, rings.
 *
 * Owner: one worker, which alone waits. Lock: `lock`, innermost of all. Ringing is done
 * within it, so a bell may go once its owner has had the lock after the last reason to
 * ring (paml_bell_destroy does).
 *
 * Bells of workers that listen for the same work hang together (struct paml_bells);
 * one that is rung for work is taken off first, so that the next piece is for another.
 */
#ifndef PAML_BELL_H
#define PAML_BELL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct paml_bell {
    pthread_mutex_t lock;
    pthread_cond_t heard; /* CLOCK_MONOTONIC */
    atomic_bool rung;     /* since the last wait; written under lock */
    /* paml_bells': lock. */
    struct paml_bell *next;
    bool hangs;
};

/* Owner: a queue. Lock: `lock` guards the list, and is held while one of it is rung. */
struct paml_bells {
    pthread_mutex_t lock;
    struct paml_bell *first;
};

void paml_bell_init(struct paml_bell *bell);
void paml_bell_destroy(struct paml_bell *bell);

/* Thread: any. Locks: takes `lock`. */
void paml_bell_ring(struct paml_bell *bell);
/* The same. Thread: any. Locks: the caller holds `lock`. */
void paml_bell_ring_held(struct paml_bell *bell);

/* Whether a wait would return at once. Thread: any. Locks: none. */
static inline bool
paml_bell_is_rung(struct paml_bell *bell)
{
    return atomic_load_explicit(&bell->rung, memory_order_relaxed);
}

/* Returns when it is rung, or was since the last wait, or at the moment (INT64_MAX:
   never). Thread: the owner. Locks: takes `lock`. */
void paml_bell_wait(struct paml_bell *bell, int64_t until_ns);
/* What it was rung for is known. Thread: the owner. Locks: takes `lock`. */
void paml_bell_hush(struct paml_bell *bell);

void paml_bells_init(struct paml_bells *bells);
void paml_bells_destroy(struct paml_bells *bells); /* none hangs any more */

/* Hangs a bell up, behind the others. Thread: its owner. Locks: takes `lock`. */
void paml_bells_hang(struct paml_bells *bells, struct paml_bell *bell);
/* Takes it off, if nobody has. True: nobody had. Thread: its owner. Locks: takes
 * `lock`.
 */
bool paml_bells_take(struct paml_bells *bells, struct paml_bell *bell);
/* Takes off the one that has hung for longest, and rings it. False: none hangs.
   Thread: any. Locks: takes `lock`, and the bell's within. */
bool paml_bells_ring_one(struct paml_bells *bells);

#endif
