/* The op: everything that runs is one. An inference request, a model's opening, its
 * closing and a Python call are the same struct in the same queues, finished through
 * the same mailbox.
 *
 * Ownership moves in one direction and is never shared:
 *     maker -> queue -> worker -> mailbox -> the hub that takes the mailbox -> freed
 * paml_queue_remove() is the one short cut: it hands a WAITING op straight back to the
 * caller. A pointer to an op that is elsewhere may be kept only to ask for that.
 *
 * `user` and everything after it belong to the maker's side; the engine never looks.
 */
#ifndef PAML_OP_H
#define PAML_OP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "batching.h"
#include "error.h"
#include "value.h"

struct paml_mailbox;
struct paml_group;
struct paml_queue;
struct paml_session;
struct paml_steps;
struct paml_worker;

#define PAML_STATES_MOST 4 /* inputs of a session that are state */

enum paml_place { PAML_NOWHERE, PAML_ADMITTED, PAML_PARKED, PAML_HELD };

enum paml_op_state {
    PAML_OP_NEW,     /* the maker's */
    PAML_OP_WAITING, /* in a queue */
    PAML_OP_CLAIMED, /* a worker's, on the way to DONE */
    PAML_OP_DONE,    /* in its mailbox, or taken from it */
};

struct paml_op {
    /* What every run touches comes first, in as few cache lines as it takes: they
       travel between the loop's processor and the worker's. */

    /* Inbox, queue and mailbox links: an op is in one of them at a time. */
    struct paml_op *next, *previous;
    /* enum paml_op_state. Changes between WAITING and CLAIMED under the queue's lock,
       elsewhere by the owner alone; relaxed, since ownership moves by other means. */
    atomic_int state;
    int code;         /* enum paml_code; how it ended */
    int32_t priority; /* larger = more urgent */
    uint32_t rows;    /* along the batch axis; 1 without batching */
    /* Nobody waits for it any more, though it couldn't be taken back: what of it hasn't
       begun needn't. Any thread, relaxed: a hint. */
    atomic_bool given_up;
    bool in_heap;          /* order.h's */
    bool fresh;            /* session.h's: it starts from the session's beginning */
    enum paml_place place; /* schedule.h's */
    size_t bytes;          /* of the inputs; what the queue's bound counts */
    int64_t submitted_ns, deadline_ns; /* CLOCK_MONOTONIC; deadline 0: none */
    struct paml_mailbox *mailbox;
    struct paml_value *inputs;
    uint32_t n_inputs, n_arguments; /* values in all; values at the top level */
    /* order.h's and schedule.h's: the place in the order of arrival, how many runs had
       begun by then, the group, and the neighbours by arrival. */
    uint64_t sequence, runs_before;
    struct paml_group *group;
    struct paml_op *older, *newer;
    struct paml_queue *queue;     /* that it was pushed to */
    struct paml_session *session; /* a reference, or NULL */
    struct paml_steps *steps; /* runs over and over (steps.h); the maker's, or NULL */
    /* Requests share a run when their keys are equal and not 0. */
    uint64_t batch_key;
    /* stop.h's: who runs it, or ran it last; NULL: nobody yet, or nobody who can be
       stopped. */
    _Atomic(struct paml_worker *) runner;
    int64_t run_ns; /* what the run that served it took */
    struct paml_outputs outputs;

    char *message; /* malloc'ed; of a failure, or NULL */
    void *user;
    int64_t lengths[PAML_PADDED_MOST];        /* along each padded axis */
    struct paml_op *child, *sibling, *before; /* order.h's heap */
    uint32_t slots[PAML_STATES_MOST]; /* session.h's: the inputs that are state */
};

static inline void
paml_op_set_state(struct paml_op *op, enum paml_op_state state)
{
    atomic_store_explicit(&op->state, state, memory_order_relaxed);
}

/* What it counts for in a queue: its rows. One without takes a place all the same, or
   there would be no bound to how many of them wait. */
static inline int64_t
paml_op_places(const struct paml_op *op)
{
    return op->rows > 0 ? op->rows : 1;
}

void paml_op_init(struct paml_op *op, struct paml_mailbox *mailbox);
/* Ends a run badly: code and a copy of the message. Thread: the op's owner. */
void paml_op_fail(struct paml_op *op, int code, const char *message);
/* Releases outputs, message and session. Inputs are the maker's to release. */
void paml_op_clear(struct paml_op *op);

#endif
