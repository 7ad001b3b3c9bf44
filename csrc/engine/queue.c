#include "queue.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>

#include "clock.h"
#include "crowd.h"
#include "mailbox.h"
#include "session.h"

/* What `inbox` holds once the queue is closed: no op lives at this address. */
static struct paml_op inbox_closed;
#define INBOX_CLOSED (&inbox_closed)

/* Pauses between two looks of a spinning worker: about a microsecond. */
#define LOOK_EVERY 32

/* How long a burst may keep an idle worker from what has come. */
#define HOLD_NS 50000

/* The lock is held for less time than it takes to sleep and be woken: who finds it
   taken looks again a few times first. */
static void
lock_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;

    pthread_mutexattr_init(&attributes);
#ifdef __GLIBC__
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
    pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static void
amount_init(struct paml_amount *amount)
{
    atomic_init(&amount->rows, 0);
    atomic_init(&amount->bytes, 0);
}

void
paml_queue_init(struct paml_queue *queue, const struct paml_batching *batching,
                const struct paml_queue_limits *limits)
{
    atomic_init(&queue->inbox, NULL);
    amount_init(&queue->pushed);
    amount_init(&queue->known_gone);
    amount_init(&queue->gone);
    atomic_init(&queue->pusher_cpu, -1);
    atomic_init(&queue->hold_until_ns, 0);
    atomic_init(&queue->sleepers, 0);
    atomic_init(&queue->spinners, 0);
    atomic_init(&queue->listening, 0);
    atomic_init(&queue->listed, 0);
    sem_init(&queue->wake, 0, 0);
    paml_bells_init(&queue->bells);
    lock_init(&queue->lock);
    paml_schedule_init(&queue->schedule, batching,
                       limits->when_full == PAML_FULL_WAIT ? limits->max_rows
                                                           : INT64_MAX / 2);
    queue->limits = *limits;
    queue->emptied = false;
}

void
paml_queue_destroy(struct paml_queue *queue)
{
    paml_schedule_destroy(&queue->schedule);
    pthread_mutex_destroy(&queue->lock);
    paml_bells_destroy(&queue->bells);
    sem_destroy(&queue->wake);
}

/* Rings for whoever listened for longest. False: nobody does.
   Thread: any. Locks: those of bells. */
static bool
queue_ring_one(struct paml_queue *queue)
{
    if (atomic_load_explicit(&queue->listening, memory_order_seq_cst) > 0 &&
        paml_bells_ring_one(&queue->bells)) {
        atomic_fetch_sub_explicit(&queue->listening, 1, memory_order_seq_cst);
        return true;
    }
    return false;
}

/* Thread: any. Locks: those of bells, where one is rung. */
static void
queue_wake_one(struct paml_queue *queue)
{
    int sleepers = atomic_load_explicit(&queue->sleepers, memory_order_seq_cst);

    while (sleepers > 0) {
        if (atomic_compare_exchange_weak_explicit(&queue->sleepers, &sleepers,
                                                  sleepers - 1, memory_order_seq_cst,
                                                  memory_order_seq_cst)) {
            sem_post(&queue->wake);
            return;
        }
    }
    queue_ring_one(queue);
}

/* Thread: any. Locks: as queue_wake_one. */
void
paml_queue_hand_on(struct paml_queue *queue)
{
    /* It may have been woken for what it leaves, or have kept the time of a batch that
       waits for more: whoever wakes looks at all of it. */
    queue_wake_one(queue);
}

/* --- counting: all relaxed, since the counts stand for themselves --- */

static int64_t
amount_get(const atomic_int_least64_t *count)
{
    return atomic_load_explicit(count, memory_order_relaxed);
}

static void
amount_add(atomic_int_least64_t *count, int64_t more)
{
    atomic_fetch_add_explicit(count, more, memory_order_relaxed);
}

/* An op has left. Thread: any. Locks: the caller holds `lock`. */
static void
queue_uncount(struct paml_queue *queue, const struct paml_op *op)
{
    /* Written under the lock alone: no need for a locked instruction. */
    atomic_store_explicit(&queue->gone.rows,
                          amount_get(&queue->gone.rows) + paml_op_places(op),
                          memory_order_relaxed);
    atomic_store_explicit(&queue->gone.bytes,
                          amount_get(&queue->gone.bytes) + (int64_t)op->bytes,
                          memory_order_relaxed);
}

/* Thread: any. Locks: none. */
int64_t
paml_queue_rows(struct paml_queue *queue)
{
    int64_t gone = amount_get(&queue->gone.rows);

    return amount_get(&queue->pushed.rows) - gone;
}

/* Thread: any. Locks: none. */
int64_t
paml_queue_bytes(struct paml_queue *queue)
{
    int64_t gone = amount_get(&queue->gone.bytes);

    return amount_get(&queue->pushed.bytes) - gone;
}

/* Whether `pushed`, less what has gone, is past the bound. */
static bool
amount_is_past(int64_t pushed, int64_t most, const atomic_int_least64_t *gone,
               atomic_int_least64_t *known)
{
    if (pushed - amount_get(known) <= most) {
        return false;
    }
    atomic_store_explicit(known, amount_get(gone), memory_order_relaxed);
    return pushed - amount_get(known) > most;
}

/* Counts an op in. PAML_ERR_QUEUE: it isn't. `*excess`: there is no room for its rows.
   Thread: any. Locks: none. */
static int
queue_count(struct paml_queue *queue, const struct paml_op *op, bool *excess)
{
    const struct paml_queue_limits *limits = &queue->limits;
    int64_t places = paml_op_places(op), rows, bytes;
    bool full;

    rows = places +
           atomic_fetch_add_explicit(&queue->pushed.rows, places, memory_order_relaxed);
    bytes = (int64_t)op->bytes + atomic_fetch_add_explicit(&queue->pushed.bytes,
                                                           (int64_t)op->bytes,
                                                           memory_order_relaxed);
    full = amount_is_past(bytes, limits->max_bytes, &queue->gone.bytes,
                          &queue->known_gone.bytes);
    *excess = limits->when_full != PAML_FULL_WAIT &&
              amount_is_past(rows, limits->max_rows, &queue->gone.rows,
                             &queue->known_gone.rows);
    /* One that never fits isn't worth what would be dropped for it. */
    full = full || (*excess && limits->when_full == PAML_FULL_REJECT) ||
           (*excess && op->rows > limits->max_rows);
    if (full) {
        amount_add(&queue->pushed.rows, -paml_op_places(op));
        amount_add(&queue->pushed.bytes, -(int64_t)op->bytes);
        return PAML_ERR_QUEUE;
    }
    return PAML_OK;
}

/* Locks: the caller holds `lock`. */
static void
queue_publish(struct paml_queue *queue)
{
    atomic_store_explicit(&queue->listed, (int)queue->schedule.count,
                          memory_order_seq_cst);
}

/* Moves the inbox, which becomes `left`, to the schedule. Returns whether the queue is
   closed. Thread: any. Locks: the caller holds `lock`. */
static bool
queue_sort_inbox(struct paml_queue *queue, struct paml_op *left)
{
    struct paml_op *op, *next, *oldest = NULL;

    op = atomic_load_explicit(&queue->inbox, memory_order_seq_cst);
    if (op == INBOX_CLOSED) {
        return true;
    }
    if (op == NULL && left == NULL) {
        return false;
    }
    do {
        op = atomic_load_explicit(&queue->inbox, memory_order_relaxed);
        if (op == INBOX_CLOSED) {
            return true;
        }
        /* seq_cst: an acquire of the ops' contents, paired with the push. */
    } while (!atomic_compare_exchange_weak_explicit(
        &queue->inbox, &op, left, memory_order_seq_cst, memory_order_relaxed));
    while (op != NULL) {
        next = op->next;
        op->next = oldest;
        oldest = op;
        op = next;
    }
    while (oldest != NULL) {
        next = oldest->next;
        paml_schedule_add(&queue->schedule, oldest);
        oldest = next;
    }
    queue_publish(queue);
    return left == INBOX_CLOSED;
}

/* The least urgent go until what waits is within the bound.
   Thread: any. Locks: takes `lock`. */
static struct paml_op *
queue_drop(struct paml_queue *queue)
{
    struct paml_op *dropped = NULL, *op;
    enum paml_place place;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, NULL);
    while (paml_queue_rows(queue) > queue->limits.max_rows &&
           (op = paml_schedule_least(&queue->schedule)) != NULL) {
        place = op->place;
        if (!paml_schedule_remove(&queue->schedule, op)) {
            break; /* its session is letting it in */
        }
        queue_uncount(queue, op);
        paml_op_set_state(op, PAML_OP_CLAIMED);
        op->place = place; /* tells whether its session was busy with it */
        op->next = dropped;
        dropped = op;
    }
    queue_publish(queue);
    pthread_mutex_unlock(&queue->lock);
    return dropped;
}

/* Thread: any. GIL: any. Locks: takes `lock` where ops must be dropped. */
int
paml_queue_push(struct paml_queue *queue, struct paml_op *op, struct paml_op **dropped)
{
    struct paml_op *head;
    bool excess;

    *dropped = NULL;
    if (queue_count(queue, op, &excess) != PAML_OK) {
        return PAML_ERR_QUEUE;
    }
    paml_op_set_state(op, PAML_OP_WAITING);
    op->queue = queue;
    atomic_store_explicit(&queue->pusher_cpu, sched_getcpu(), memory_order_relaxed);
    head = atomic_load_explicit(&queue->inbox, memory_order_relaxed);
    do {
        if (head == INBOX_CLOSED) {
            paml_op_set_state(op, PAML_OP_NEW);
            amount_add(&queue->pushed.rows, -paml_op_places(op));
            amount_add(&queue->pushed.bytes, -(int64_t)op->bytes);
            return PAML_ERR_CLOSED;
        }
        op->next = head;
        /* seq_cst: a release for the op's contents, paired with the exchange in
           queue_sort_inbox; and ordered before the loads of spinners and sleepers,
           which pair with the worker's stores to them before its last look here. */
    } while (!atomic_compare_exchange_weak_explicit(
        &queue->inbox, &head, op, memory_order_seq_cst, memory_order_relaxed));
    /* A spinning worker sees a first op by itself. It counts itself out before it
       takes, so an op pushed after that finds spinners at 0 and wakes a sleeper. */
    if (head != NULL ||
        atomic_load_explicit(&queue->spinners, memory_order_seq_cst) == 0) {
        queue_wake_one(queue);
    }
    if (excess) {
        *dropped = queue_drop(queue);
    }
    return PAML_OK;
}

/* Thread: worker. Locks: none. Whether a look under the lock would find something. */
bool
paml_queue_has_news(struct paml_queue *queue)
{
    return atomic_load_explicit(&queue->inbox, memory_order_seq_cst) != NULL ||
           atomic_load_explicit(&queue->listed, memory_order_seq_cst) > 0;
}

/* Thread: worker. Locks: none. Returns true as soon as there are news. */
static bool
queue_spin(struct paml_queue *queue, const struct paml_patience *patience)
{
    int64_t until;
    bool news = false, shared;

    if (patience->limit_ns == 0 || patience->usual_ns > patience->limit_ns) {
        return false;
    }
    if (paml_crowd_spin()) {
        atomic_fetch_add_explicit(&queue->spinners, 1, memory_order_seq_cst);
        until = paml_now_ns() + patience->limit_ns;
        /* Looking takes the inbox's cache line from whoever pushes: look rarely enough
           for a burst to come in one piece. */
        do {
            for (int i = 0; i < LOOK_EVERY; i++) {
                paml_cpu_relax();
            }
            news = paml_queue_has_news(queue);
            /* Whoever pushes can't while we spin on its processor. */
            shared = sched_getcpu() ==
                     atomic_load_explicit(&queue->pusher_cpu, memory_order_relaxed);
        } while (!news && !shared && paml_now_ns() < until);
        atomic_fetch_sub_explicit(&queue->spinners, 1, memory_order_seq_cst);
        news = news || paml_queue_has_news(queue);
    }
    paml_crowd_spun();
    return news;
}

/* Thread: any. Locks: none. */
void
paml_queue_hold(struct paml_queue *queue, int64_t now_ns)
{
    if (now_ns >= atomic_load_explicit(&queue->hold_until_ns, memory_order_relaxed)) {
        atomic_store_explicit(&queue->hold_until_ns, now_ns + HOLD_NS,
                              memory_order_relaxed);
    }
}

/* Thread: any. Locks: none. */
void
paml_queue_let_go(struct paml_queue *queue)
{
    atomic_store_explicit(&queue->hold_until_ns, 0, memory_order_relaxed);
}

/* Relaxed: the hold is advice, the inbox carries the ops.
   Thread: worker. Locks: none. */
static bool
queue_is_held(struct paml_queue *queue)
{
    int64_t until = atomic_load_explicit(&queue->hold_until_ns, memory_order_relaxed);

    return until != 0 && paml_now_ns() < until;
}

/* Lets a burst grow, unless the bell (NULL: there is none) is rung.
   Thread: worker. Locks: none. */
static void
queue_await_burst(struct paml_queue *queue, struct paml_bell *bell)
{
    while (queue_is_held(queue) && (bell == NULL || !paml_bell_is_rung(bell))) {
        if (sched_getcpu() ==
            atomic_load_explicit(&queue->pusher_cpu, memory_order_relaxed)) {
            sched_yield(); /* we are on its processor: it can't push meanwhile */
            continue;
        }
        for (int i = 0; i < LOOK_EVERY; i++) {
            paml_cpu_relax();
        }
    }
}

/* Waits on `wake`, until the moment (0: for ever). */
static int
queue_doze(struct paml_queue *queue, int64_t until_ns)
{
    struct timespec until = {until_ns / PAML_SECOND, until_ns % PAML_SECOND};

    return until_ns == 0 ? sem_wait(&queue->wake)
                         : sem_clockwait(&queue->wake, CLOCK_MONOTONIC, &until);
}

/* Takes oneself off `sleepers`. False: somebody has, and posts. */
static bool
queue_count_out(struct paml_queue *queue)
{
    int sleepers = atomic_load_explicit(&queue->sleepers, memory_order_seq_cst);

    while (sleepers > 0) {
        if (atomic_compare_exchange_weak_explicit(&queue->sleepers, &sleepers,
                                                  sleepers - 1, memory_order_seq_cst,
                                                  memory_order_seq_cst)) {
            return true;
        }
    }
    return false;
}

/* Whether ops have come since that take. Locks: the caller holds `lock`. */
static bool
queue_has_more(struct paml_queue *queue, const struct paml_batch *batch)
{
    return atomic_load_explicit(&queue->inbox, memory_order_seq_cst) != NULL ||
           queue->schedule.sequence != batch->seen;
}

/* Thread: worker. Locks: takes `lock`. */
static void
queue_sleep(struct paml_queue *queue, const struct paml_batch *batch)
{
    int64_t until_ns = batch->wait_until_ns;
    bool news;

    atomic_fetch_add_explicit(&queue->sleepers, 1, memory_order_seq_cst);
    /* Under the lock, so that no op is just then between inbox and list. Where what is
       listed waits too, somebody else (another worker, a cancel, a look at the health)
       may have listed more since this worker chose: those are news. */
    pthread_mutex_lock(&queue->lock);
    news = until_ns == 0 ? paml_queue_has_news(queue) : queue_has_more(queue, batch);
    pthread_mutex_unlock(&queue->lock);
    if (news && queue_count_out(queue)) {
        return;
    }
    paml_crowd_attend(-1);
    while (queue_doze(queue, until_ns) < 0) {
        if (errno == ETIMEDOUT && queue_count_out(queue)) {
            break;
        }
        if (errno == ETIMEDOUT) {
            until_ns = 0; /* the post is on its way */
        }
    }
    paml_crowd_attend(1);
}

/* Thread: worker. GIL: not held. Locks: takes `lock`. */
void
paml_queue_take(struct paml_queue *queue, const struct paml_taker *taker,
                struct paml_batch *batch, bool *closed)
{
    bool more;

    *closed = false;
    batch->n = 0;
    batch->hopeless = NULL;
    batch->wait_until_ns = 0;
    if (atomic_load_explicit(&queue->listed, memory_order_relaxed) == 0 &&
        queue_is_held(queue)) {
        return;
    }
    pthread_mutex_lock(&queue->lock);
    *closed = queue_sort_inbox(queue, NULL);
    if (queue->schedule.count > 0) {
        batch->taken_ns = paml_now_ns();
        paml_schedule_take(&queue->schedule, taker, batch->taken_ns, *closed, batch);
        for (uint32_t i = 0; i < batch->n; i++) {
            queue_uncount(queue, batch->ops[i]);
        }
        for (struct paml_op *op = batch->hopeless; op != NULL; op = op->next) {
            queue_uncount(queue, op);
        }
        queue_publish(queue);
    }
    batch->seen = queue->schedule.sequence;
    more = queue->schedule.count > 0;
    *closed = *closed && !more;
    pthread_mutex_unlock(&queue->lock);
    if (more && batch->n > 0) {
        queue_wake_one(queue);
    }
}

/* Thread: worker. GIL: not held. Locks: takes `lock`. */
void
paml_queue_wait(struct paml_queue *queue, struct paml_patience *patience,
                const struct paml_batch *batch)
{
    int64_t dry_ns = paml_now_ns(), gap;

    if (batch->wait_until_ns != 0) {
        queue_sleep(queue, batch); /* what is listed waits too */
        return;
    }
    if (!paml_queue_has_news(queue) && !queue_spin(queue, patience)) {
        queue_sleep(queue, batch);
    }
    queue_await_burst(queue, NULL);
    /* A long silence must not take long to unlearn. */
    gap = paml_now_ns() - dry_ns;
    gap = gap > 8 * patience->limit_ns ? 8 * patience->limit_ns : gap;
    patience->usual_ns += (gap - patience->usual_ns) / 4;
}

/* Whether a take would find something by now. That the queue is closed is no news in
   itself: whoever has runs in flight ends after them. Locks: the caller holds `lock`.
 */
static bool
queue_has_work(struct paml_queue *queue, const struct paml_batch *batch)
{
    if (atomic_load_explicit(&queue->inbox, memory_order_seq_cst) == INBOX_CLOSED) {
        return queue->schedule.count > 0;
    }
    return batch->wait_until_ns == 0 ? paml_queue_has_news(queue)
                                     : queue_has_more(queue, batch);
}

/* Thread: worker. GIL: not held. Locks: takes `lock`, then the bells'. */
void
paml_queue_listen(struct paml_queue *queue, struct paml_bell *bell,
                  const struct paml_batch *batch, int64_t until_ns)
{
    bool work;

    if (batch->wait_until_ns != 0 && batch->wait_until_ns < until_ns) {
        until_ns = batch->wait_until_ns;
    }
    /* seq_cst: before the look for work, as with sleepers. */
    atomic_fetch_add_explicit(&queue->listening, 1, memory_order_seq_cst);
    paml_bells_hang(&queue->bells, bell);
    pthread_mutex_lock(&queue->lock);
    work = queue_has_work(queue, batch);
    pthread_mutex_unlock(&queue->lock);
    if (work) {
        paml_bell_hush(bell);
    } else {
        paml_crowd_attend(-1);
        paml_bell_wait(bell, until_ns);
        paml_crowd_attend(1);
    }
    if (paml_bells_take(&queue->bells, bell)) {
        atomic_fetch_sub_explicit(&queue->listening, 1, memory_order_seq_cst);
    } else {
        work = true; /* that is what it was taken off for */
    }
    if (work) {
        queue_await_burst(queue, bell);
    }
}

/* Gives a session's next op to its queue. Returns it where that is emptied.
   Thread: any. Locks: takes `lock` of that queue. */
static struct paml_op *
queue_admit_next(struct paml_op *op)
{
    struct paml_queue *queue = op->queue;
    bool emptied;

    pthread_mutex_lock(&queue->lock);
    emptied = queue->emptied;
    paml_schedule_add_next(&queue->schedule, op);
    if (emptied) {
        paml_schedule_remove(&queue->schedule, op);
        queue_uncount(queue, op);
        paml_op_set_state(op, PAML_OP_CLAIMED);
    }
    queue_publish(queue);
    if (!emptied) {
        queue_wake_one(queue); /* under the lock: without it the queue may be gone */
    }
    pthread_mutex_unlock(&queue->lock);
    return emptied ? op : NULL;
}

/* Ops of a queue that nobody serves, one session's after the other.
   Thread: any. Locks: as paml_queue_pass_on. */
static void
queue_answer_closed(struct paml_op *op)
{
    struct paml_session *session;
    bool fresh;

    while (op != NULL) {
        session = op->session;
        fresh = op->fresh;
        atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);
        paml_op_fail(op, PAML_ERR_CLOSED,
                     "the model was closed before the request ran");
        paml_mailbox_post(op->mailbox, op);
        op = paml_session_next(session, fresh);
        op = op != NULL ? queue_admit_next(op) : NULL;
        paml_session_unref(session);
    }
}

/* Thread: any. Locks: takes the session's, then `lock` of the next op's queue. */
void
paml_queue_pass_on(struct paml_session *session, bool fresh)
{
    struct paml_op *next = paml_session_next(session, fresh);

    if (next != NULL) {
        queue_answer_closed(queue_admit_next(next));
    }
}

/* Thread: any. Locks: takes `lock`. */
bool
paml_queue_remove(struct paml_queue *queue, struct paml_op *op)
{
    struct paml_op *next = NULL;
    bool waiting, leads = false, more = false;
    uint64_t sequence;

    pthread_mutex_lock(&queue->lock);
    waiting = atomic_load_explicit(&op->state, memory_order_relaxed) == PAML_OP_WAITING;
    if (waiting) {
        queue_sort_inbox(queue, NULL);
        leads = op->session != NULL && op->place != PAML_HELD;
        sequence = queue->schedule.sequence;
        waiting = paml_schedule_remove(&queue->schedule, op);
    }
    if (waiting) {
        queue_uncount(queue, op);
        paml_op_set_state(op, PAML_OP_NEW);
        if (leads && (next = paml_session_next(op->session, op->fresh)) != NULL &&
            next->queue == queue) {
            /* At once, or the workers of a closed queue might leave before. */
            paml_schedule_add_next(&queue->schedule, next);
            next = NULL;
        }
        more = queue->schedule.sequence != sequence; /* some were let in instead */
        queue_publish(queue);
    }
    pthread_mutex_unlock(&queue->lock);
    if (next != NULL) {
        queue_answer_closed(queue_admit_next(next));
    }
    if (more) {
        queue_wake_one(queue);
    }
    return waiting;
}

/* Thread: any. Locks: takes `lock`. */
int64_t
paml_queue_oldest(struct paml_queue *queue)
{
    const struct paml_op *oldest;
    int64_t submitted_ns;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, NULL);
    oldest = queue->schedule.oldest;
    submitted_ns = oldest != NULL ? oldest->submitted_ns : INT64_MAX;
    pthread_mutex_unlock(&queue->lock);
    return submitted_ns;
}

/* Thread: any. Locks: takes `lock`. */
int64_t
paml_queue_parked_rows(struct paml_queue *queue)
{
    int64_t rows;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, NULL);
    rows = queue->schedule.parked_rows;
    pthread_mutex_unlock(&queue->lock);
    return rows;
}

/* Everything that waits, CLAIMED. Locks: the caller holds `lock`. */
static struct paml_op *
queue_take_all(struct paml_queue *queue)
{
    struct paml_op *op, *list = paml_schedule_take_all(&queue->schedule);

    for (op = list; op != NULL; op = op->next) {
        paml_op_set_state(op, PAML_OP_CLAIMED);
        queue_uncount(queue, op);
    }
    queue->emptied = true;
    queue_publish(queue);
    return list;
}

/* The workers see that the queue is closed. Thread: any. Locks: those of bells. */
static void
queue_wake_all(struct paml_queue *queue)
{
    int sleepers = atomic_exchange_explicit(&queue->sleepers, 0, memory_order_seq_cst);
    while (sleepers-- > 0) {
        sem_post(&queue->wake);
    }
    while (queue_ring_one(queue)) {
    }
}

/* Thread: any. Locks: takes `lock`. */
void
paml_queue_close(struct paml_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, INBOX_CLOSED);
    pthread_mutex_unlock(&queue->lock);
    queue_wake_all(queue);
}

/* Thread: any. Locks: takes `lock`. */
struct paml_op *
paml_queue_empty(struct paml_queue *queue)
{
    struct paml_op *list;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, NULL);
    list = queue_take_all(queue);
    pthread_mutex_unlock(&queue->lock);
    return list;
}

/* Thread: any. Locks: takes `lock`. */
struct paml_op *
paml_queue_close_empty(struct paml_queue *queue)
{
    struct paml_op *list;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, INBOX_CLOSED);
    list = queue_take_all(queue);
    pthread_mutex_unlock(&queue->lock);
    queue_wake_all(queue);
    return list;
}
