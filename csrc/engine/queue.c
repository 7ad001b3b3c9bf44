#include "queue.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>

#include "clock.h"

/* What `inbox` holds once the queue is closed: no op lives at this address. */
static struct paml_op inbox_closed;
#define INBOX_CLOSED (&inbox_closed)

/* Pauses between two looks of a spinning worker: about a microsecond. */
#define LOOK_EVERY 32

/* How long a burst may keep an idle worker from what has come. */
#define HOLD_NS 50000

/* Spinning workers in the whole process: at least one processor stays free of them. */
static atomic_int spinning;

/* Workers in the whole process that aren't asleep in a queue. */
static atomic_int awake;

static int
usable_cpus(void)
{
    static atomic_int usable; /* 0: not known yet */
    int cpus = atomic_load_explicit(&usable, memory_order_relaxed);

    if (cpus == 0) {
        cpus = paml_usable_cpus();
        atomic_store_explicit(&usable, cpus, memory_order_relaxed);
    }
    return cpus;
}

void
paml_queue_attend(int workers)
{
    atomic_fetch_add_explicit(&awake, workers, memory_order_relaxed);
}

bool
paml_queue_crowded(void)
{
    return atomic_load_explicit(&awake, memory_order_relaxed) >= usable_cpus();
}

void
paml_queue_init(struct paml_queue *queue, const struct paml_queue_limits *limits)
{
    atomic_init(&queue->inbox, NULL);
    atomic_init(&queue->rows, 0);
    atomic_init(&queue->bytes, 0);
    atomic_init(&queue->pusher_cpu, -1);
    atomic_init(&queue->hold_until_ns, 0);
    atomic_init(&queue->sleepers, 0);
    atomic_init(&queue->spinners, 0);
    atomic_init(&queue->listed, 0);
    sem_init(&queue->wake, 0, 0);
    pthread_mutex_init(&queue->lock, NULL);
    queue->first = queue->last = NULL;
    queue->limits = *limits;
}

void
paml_queue_destroy(struct paml_queue *queue)
{
    pthread_mutex_destroy(&queue->lock);
    sem_destroy(&queue->wake);
}

/* Thread: any. Locks: none. */
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
}

/* Thread: any. Locks: none. */
static void
queue_uncount(struct paml_queue *queue, const struct paml_op *op)
{
    atomic_fetch_sub_explicit(&queue->rows, op->rows, memory_order_relaxed);
    atomic_fetch_sub_explicit(&queue->bytes, (int64_t)op->bytes, memory_order_relaxed);
}

/* Thread: any. GIL: any. Locks: none. */
int
paml_queue_push(struct paml_queue *queue, struct paml_op *op)
{
    const struct paml_queue_limits *limits = &queue->limits;
    struct paml_op *head;
    int64_t rows, bytes;

    rows = atomic_fetch_add_explicit(&queue->rows, op->rows, memory_order_relaxed);
    bytes = atomic_fetch_add_explicit(&queue->bytes, (int64_t)op->bytes,
                                      memory_order_relaxed);
    if ((limits->when_full == PAML_FULL_REJECT && rows + op->rows > limits->max_rows) ||
        bytes + (int64_t)op->bytes > limits->max_bytes) {
        queue_uncount(queue, op);
        return PAML_ERR_QUEUE;
    }
    paml_op_set_state(op, PAML_OP_WAITING);
    atomic_store_explicit(&queue->pusher_cpu, sched_getcpu(), memory_order_relaxed);
    head = atomic_load_explicit(&queue->inbox, memory_order_relaxed);
    do {
        if (head == INBOX_CLOSED) {
            paml_op_set_state(op, PAML_OP_NEW);
            queue_uncount(queue, op);
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
    return PAML_OK;
}

/* Thread: any. Locks: the caller holds `lock`. */
static void
queue_insert(struct paml_queue *queue, struct paml_op *op)
{
    struct paml_op *before = queue->last;

    while (before != NULL && before->priority < op->priority) {
        before = before->previous;
    }
    op->previous = before;
    op->next = before != NULL ? before->next : queue->first;
    *(op->next != NULL ? &op->next->previous : &queue->last) = op;
    *(before != NULL ? &before->next : &queue->first) = op;
}

/* Thread: any. Locks: the caller holds `lock`. */
static void
queue_unlink(struct paml_queue *queue, struct paml_op *op)
{
    *(op->next != NULL ? &op->next->previous : &queue->last) = op->previous;
    *(op->previous != NULL ? &op->previous->next : &queue->first) = op->next;
    op->next = op->previous = NULL;
    atomic_fetch_sub_explicit(&queue->listed, 1, memory_order_relaxed);
    queue_uncount(queue, op);
}

/* Moves the inbox, which becomes `left`, to the list. Returns whether the queue is
   closed. Thread: any. Locks: the caller holds `lock`. */
static bool
queue_sort_inbox(struct paml_queue *queue, struct paml_op *left)
{
    struct paml_op *op, *next, *oldest = NULL;
    int count = 0;

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
        queue_insert(queue, oldest);
        oldest = next;
        count++;
    }
    atomic_fetch_add_explicit(&queue->listed, count, memory_order_seq_cst);
    return left == INBOX_CLOSED;
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
    if (atomic_fetch_add_explicit(&spinning, 1, memory_order_relaxed) <
        usable_cpus() - 1) {
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
    atomic_fetch_sub_explicit(&spinning, 1, memory_order_relaxed);
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

/* Lets a burst grow. Thread: worker. Locks: none. */
static void
queue_await_burst(struct paml_queue *queue)
{
    while (queue_is_held(queue)) {
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

/* Thread: worker. Locks: takes `lock`. */
static void
queue_sleep(struct paml_queue *queue)
{
    int sleepers;
    bool news;

    atomic_fetch_add_explicit(&queue->sleepers, 1, memory_order_seq_cst);
    /* Under the lock, so that no op is just then between inbox and list. */
    pthread_mutex_lock(&queue->lock);
    news = paml_queue_has_news(queue);
    pthread_mutex_unlock(&queue->lock);
    if (news) {
        /* Count out again, unless somebody already owes us a post. */
        sleepers = atomic_load_explicit(&queue->sleepers, memory_order_seq_cst);
        while (sleepers > 0) {
            if (atomic_compare_exchange_weak_explicit(
                    &queue->sleepers, &sleepers, sleepers - 1, memory_order_seq_cst,
                    memory_order_seq_cst)) {
                return;
            }
        }
    }
    paml_queue_attend(-1);
    while (sem_wait(&queue->wake) < 0 && errno == EINTR) {
    }
    paml_queue_attend(1);
}

/* Thread: worker. GIL: not held. Locks: takes `lock`. */
struct paml_op *
paml_queue_take(struct paml_queue *queue, bool *closed)
{
    struct paml_op *op;
    bool more;

    *closed = false;
    if (atomic_load_explicit(&queue->listed, memory_order_relaxed) == 0 &&
        queue_is_held(queue)) {
        return NULL;
    }
    pthread_mutex_lock(&queue->lock);
    *closed = queue_sort_inbox(queue, NULL);
    op = queue->first;
    if (op != NULL) {
        queue_unlink(queue, op);
        paml_op_set_state(op, PAML_OP_CLAIMED);
    }
    more = queue->first != NULL;
    pthread_mutex_unlock(&queue->lock);
    if (more) {
        queue_wake_one(queue);
    }
    return op;
}

/* Thread: worker. GIL: not held. Locks: none. */
void
paml_queue_wait(struct paml_queue *queue, struct paml_patience *patience)
{
    int64_t dry_ns = paml_now_ns(), gap;

    if (!paml_queue_has_news(queue) && !queue_spin(queue, patience)) {
        queue_sleep(queue);
    }
    queue_await_burst(queue);
    /* A long silence must not take long to unlearn. */
    gap = paml_now_ns() - dry_ns;
    gap = gap > 8 * patience->limit_ns ? 8 * patience->limit_ns : gap;
    patience->usual_ns += (gap - patience->usual_ns) / 4;
}

/* Thread: any. Locks: takes `lock`. */
bool
paml_queue_remove(struct paml_queue *queue, struct paml_op *op)
{
    bool waiting;

    pthread_mutex_lock(&queue->lock);
    waiting = atomic_load_explicit(&op->state, memory_order_relaxed) == PAML_OP_WAITING;
    if (waiting) {
        queue_sort_inbox(queue, NULL);
        queue_unlink(queue, op);
        paml_op_set_state(op, PAML_OP_NEW);
    }
    pthread_mutex_unlock(&queue->lock);
    return waiting;
}

/* Thread: any. Locks: takes `lock`. */
int64_t
paml_queue_oldest(struct paml_queue *queue)
{
    int64_t oldest = INT64_MAX;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, NULL);
    for (const struct paml_op *op = queue->first; op != NULL; op = op->next) {
        oldest = op->submitted_ns < oldest ? op->submitted_ns : oldest;
    }
    pthread_mutex_unlock(&queue->lock);
    return oldest;
}

/* Thread: any. Locks: takes `lock`. */
void
paml_queue_close(struct paml_queue *queue)
{
    int sleepers;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, INBOX_CLOSED);
    pthread_mutex_unlock(&queue->lock);
    sleepers = atomic_exchange_explicit(&queue->sleepers, 0, memory_order_seq_cst);
    while (sleepers-- > 0) {
        sem_post(&queue->wake);
    }
}

/* Thread: any. Locks: takes `lock`. */
struct paml_op *
paml_queue_empty(struct paml_queue *queue)
{
    struct paml_op *op, *list;

    pthread_mutex_lock(&queue->lock);
    queue_sort_inbox(queue, NULL);
    list = queue->first;
    for (op = list; op != NULL; op = op->next) {
        paml_op_set_state(op, PAML_OP_CLAIMED);
        queue_uncount(queue, op);
    }
    queue->first = queue->last = NULL;
    atomic_store_explicit(&queue->listed, 0, memory_order_relaxed);
    pthread_mutex_unlock(&queue->lock);
    return list;
}
