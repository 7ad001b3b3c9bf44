/* Which of the waiting ops run next, and together.
 *
 * Ops that may share a run form a group, by their batch_key; those that run alone
 * (key 0) are one group too. Within a group ops are in order of urgency (order.h). The
 * next run is led by the most urgent op of all, and filled from its group:
 *   - up to max_rows, or what memory allows, with no look at other groups;
 *   - where axes are padded, by requests of similar lengths, most urgent first;
 *   - where deadlines are tight, by those that plan.h picks; what can't be met any more
 *     is handed out to be answered instead of run.
 * Ageing: an op that has seen 64 runs begin without it leads every eighth run, the
 * oldest first, whatever its priority: so nothing starves.
 *
 * Past max_rows, with PAML_FULL_WAIT, ops are parked, first come first served, and
 * admitted as room is made.
 *
 * Of a session one op at a time is scheduled, the others are held (session.h).
 *
 * Owner: a queue. Lock: the queue's guards all of it, and every op in it.
 */
#ifndef PAML_SCHEDULE_H
#define PAML_SCHEDULE_H

#include "batch.h"
#include "cost.h"
#include "order.h"

#define PAML_GROUP_CHAINS 64
#define PAML_BATCH_MOST 4096 /* requests of one run */

/* Why a run began when it did. */
enum paml_release {
    PAML_RELEASE_ALONE,    /* it may not share */
    PAML_RELEASE_FULL,     /* no room for more rows */
    PAML_RELEASE_DRAINED,  /* an instance was free, and nothing more was waiting */
    PAML_RELEASE_DELAY,    /* max_delay had passed */
    PAML_RELEASE_SHAPE,    /* what waits besides would need too much padding */
    PAML_RELEASE_DEADLINE, /* more rows would have made somebody late */
    PAML_RELEASES,
};

struct paml_group {
    struct paml_group *chain, *next, *previous; /* by key; all that aren't empty */
    uint64_t key;
    struct paml_order order;
    size_t count;     /* members, those in a window (schedule.c) included */
    int64_t rows;     /* theirs */
    int64_t since_ns; /* about when its longest waiting op was submitted */
    /* The earliest deadline of its members, and the earliest moment at which half of
       the time for one is over; INT64_MAX: none. Where batches wait for more only.
       Stale: one that these came from has left. */
    int64_t deadline_ns, halfway_ns;
    bool stale;
};

struct paml_schedule {
    const struct paml_batching *batching; /* NULL: nothing shares */
    int64_t max_rows;                     /* admitted; past it ops are parked */
    struct paml_group alone;
    struct paml_group *chains[PAML_GROUP_CHAINS], *groups;
    struct paml_group *spare;
    struct paml_op *oldest, *newest; /* admitted, by arrival */
    struct paml_op *parked_first, *parked_last;
    struct paml_op *held; /* by their sessions; older, newer */
    int64_t rows;         /* admitted; paml_op_places() of each */
    int64_t parked_rows;
    size_t count; /* admitted */
    uint64_t sequence, runs;
};

/* What a worker takes. Owner: the worker. */
struct paml_batch {
    struct paml_op **ops; /* CLAIMED, PAML_BATCH_MOST at most; grows only */
    uint32_t n, capacity;
    int64_t rows;
    enum paml_release release;
    struct paml_op *hopeless; /* CLAIMED, linked by next: to be answered */
    uint64_t seen;            /* schedule.sequence when it was taken */
    int64_t taken_ns;         /* when that was; or is by now, after some answers */
    int64_t wait_until_ns;    /* n == 0: a batch will be released then; 0: none */
};

/* The instance that a batch is taken for. Owner: its worker. */
struct paml_taker {
    const struct paml_cost_model *cost;
    int64_t last_run_ns; /* when it ran last */
    /* How long its device is expected to be at work still, 0: it is idle. While it is
       not, a run is begun only where some group has a full batch: others had better
       grow. */
    int64_t busy_ns;
};

void paml_schedule_init(struct paml_schedule *schedule,
                        const struct paml_batching *batching, int64_t max_rows);
void paml_schedule_destroy(struct paml_schedule *schedule); /* must be empty */

void paml_schedule_add(struct paml_schedule *schedule, struct paml_op *op);
/* One that its session was holding, and is busy with now. */
void paml_schedule_add_next(struct paml_schedule *schedule, struct paml_op *op);
/* False: its session is just handing it over (only then). */
bool paml_schedule_remove(struct paml_schedule *schedule, struct paml_op *op);

/* The op that is dropped first: the last to come of the lowest priority. NULL: none. */
struct paml_op *paml_schedule_least(const struct paml_schedule *schedule);

/* Everything, parked and held too, linked by next; the schedule is empty then, but for
   what a session is just handing over. */
struct paml_op *paml_schedule_take_all(struct paml_schedule *schedule);

/* Fills the batch, which is empty. `at_once`: no batch waits for more (the queue is
   closed). -1 when memory ran out before anything was taken. */
int paml_schedule_take(struct paml_schedule *schedule, const struct paml_taker *taker,
                       int64_t now_ns, bool at_once, struct paml_batch *batch);

void paml_batch_init(struct paml_batch *batch);
void paml_batch_destroy(struct paml_batch *batch);

#endif
