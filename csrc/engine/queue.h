/* Ops waiting for a worker: a lock-free inbox in front of a schedule.
 *
 * Pushing is one compare-and-swap, so that the loop's thread never waits for a worker
 * that holds the lock. Workers move the inbox to the schedule, and take from that what
 * runs next.
 *
 * Lock: `lock` guards the schedule and the state of every op in it. It is held for as
 * long as a run is chosen, and nothing is called under it. Everything else is atomic.
 *
 * Counting: pushers add to `pushed`, whoever takes an op out adds to `gone`, each on a
 * cache line of its own. What waits is the difference; a pusher looks at `gone` only
 * when the bound seems reached by what it knew of it.
 *
 * Bursts: a thread that is about to push many ops (a loop that runs the callbacks of
 * many results) holds the queue meanwhile. Workers with nothing else to do then let the
 * burst grow, for HOLD_NS at a time, instead of fighting over each op as it comes:
 * cache lines travel once a burst, and batches fill. Held or not, a worker is awake
 * when there is work, so nothing depends on the holder's letting go.
 *
 * Waking: a worker that finds nothing spins for a while, then counts itself into
 * `sleepers`, looks once more, and waits on `wake`. Whoever takes 1 off `sleepers` owes
 * one sem_post. A worker that leaves work behind wakes the next one.
 *
 * Listening: a worker with runs in flight and room for more waits for their ends too,
 * on a bell of its own (bell.h). It hangs that up here, counted by `listening`; it is
 * rung for work that finds no sleeper, who has nothing else to do.
 */
#ifndef PAML_QUEUE_H
#define PAML_QUEUE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "bell.h"
#include "op.h"
#include "schedule.h"

enum paml_when_full { PAML_FULL_WAIT, PAML_FULL_REJECT, PAML_FULL_DROP };

struct paml_queue_limits {
    int64_t max_rows;  /* past it ops are parked, refused, or the lowest are dropped */
    int64_t max_bytes; /* of inputs; refused past this in either case */
    enum paml_when_full when_full;
};

struct paml_amount {
    atomic_int_least64_t rows, bytes;
};

struct paml_queue {
    _Alignas(64) _Atomic(struct paml_op *) inbox; /* newest first, or INBOX_CLOSED */
    struct paml_amount pushed, known_gone;
    atomic_int pusher_cpu;                           /* the last push came from there */
    _Alignas(64) atomic_int_least64_t hold_until_ns; /* 0: not held */
    _Alignas(64) atomic_int sleepers;
    atomic_int spinners;
    atomic_int listening; /* how many of `bells` hang, or are about to */
    sem_t wake;
    struct paml_bells bells;
    _Alignas(64) pthread_mutex_t lock;
    struct paml_amount gone;
    bool emptied;      /* nobody serves it any more */
    atomic_int listed; /* ops in the schedule that may be taken; written under lock */
    struct paml_schedule schedule;
    struct paml_queue_limits limits;
};

/* How long a worker watches the queue before it sleeps: as long as work has been
   arriving soon enough lately for that to pay. Owner: one worker. */
struct paml_patience {
    int64_t limit_ns; /* 0: never spin */
    int64_t usual_ns; /* moving average of the gaps between running dry and new work */
};

void paml_queue_init(struct paml_queue *queue, const struct paml_batching *batching,
                     const struct paml_queue_limits *limits);
void paml_queue_destroy(struct paml_queue *queue); /* must be empty */

/* PAML_OK: the op is the queue's. PAML_ERR_QUEUE (full) or PAML_ERR_CLOSED: it stays
   the caller's. `*dropped`: ops that had to go instead, CLAIMED and the caller's to
   answer, linked by next; the op itself may be among them. */
int paml_queue_push(struct paml_queue *queue, struct paml_op *op,
                    struct paml_op **dropped);

/* What waits, in rows and bytes. */
int64_t paml_queue_rows(struct paml_queue *queue);
int64_t paml_queue_bytes(struct paml_queue *queue);
/* How many of the rows are parked past the bound (PAML_FULL_WAIT). */
int64_t paml_queue_parked_rows(struct paml_queue *queue);

/* Opens a burst or keeps it open, and closes it. */
void paml_queue_hold(struct paml_queue *queue, int64_t now_ns);
void paml_queue_let_go(struct paml_queue *queue);

/* What runs next, in `batch`, without waiting; see paml_schedule_take(). An empty
   batch: there is nothing, or a burst is growing, or a batch waits for more until
   batch->wait_until_ns; `*closed` then says whether there never will be. */
void paml_queue_take(struct paml_queue *queue, const struct paml_taker *taker,
                     struct paml_batch *batch, bool *closed);

/* Whether a take would find something, or the end. */
bool paml_queue_has_news(struct paml_queue *queue);

/* Returns when a take may find something, `batch` being what the last one gave. */
void paml_queue_wait(struct paml_queue *queue, struct paml_patience *patience,
                     const struct paml_batch *batch);

/* The same for a worker with runs in flight, that of the bell, with room for what a
   take finds: returns then, when the bell is rung, or at the moment (INT64_MAX: never).
 */
void paml_queue_listen(struct paml_queue *queue, struct paml_bell *bell,
                       const struct paml_batch *batch, int64_t until_ns);

/* A worker that will take no more: what waits, or will, is another's. */
void paml_queue_hand_on(struct paml_queue *queue);

/* A session's op is through (`fresh`: see session.h): the next one, if there is one, is
   let into its queue, or answered where nobody serves that any more. */
void paml_queue_pass_on(struct paml_session *session, bool fresh);

/* True: the op was WAITING and is the caller's again. False: a worker has it, or had.
 */
bool paml_queue_remove(struct paml_queue *queue, struct paml_op *op);

/* When the op that waits for longest was submitted; INT64_MAX where none waits. */
int64_t paml_queue_oldest(struct paml_queue *queue);

/* No more pushes; workers end once the list is empty. Idempotent. */
void paml_queue_close(struct paml_queue *queue);

/* Of a closed queue that nobody serves any more: takes out everything that waits, the
   caller's, linked by `next`; pass their sessions on. */
struct paml_op *paml_queue_empty(struct paml_queue *queue);

/* Both at once: no worker begins any of it. */
struct paml_op *paml_queue_close_empty(struct paml_queue *queue);

#endif
