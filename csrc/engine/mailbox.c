#include "mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "crowd.h"

/* The end of a list whose owner is awake: no op lives at this address. */
static struct paml_op awake;
#define AWAKE (&awake)

struct paml_mailbox *
paml_mailbox_new(void)
{
    struct paml_mailbox *mailbox = aligned_alloc(64, sizeof(*mailbox));

    if (mailbox == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    mailbox->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    mailbox->alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (mailbox->fd < 0 || mailbox->alarm_fd < 0) {
        int error = errno;
        if (mailbox->fd >= 0) {
            close(mailbox->fd);
        }
        if (mailbox->alarm_fd >= 0) {
            close(mailbox->alarm_fd);
        }
        free(mailbox);
        errno = error;
        return NULL;
    }
    atomic_init(&mailbox->alarm_ns, 0);
    atomic_init(&mailbox->head, NULL);
    atomic_init(&mailbox->refs, 1);
    return mailbox;
}

void
paml_mailbox_unref(struct paml_mailbox *mailbox)
{
    /* acq_rel: what every other holder did to the mailbox happens before the close. */
    if (atomic_fetch_sub_explicit(&mailbox->refs, 1, memory_order_acq_rel) == 1) {
        close(mailbox->fd);
        close(mailbox->alarm_fd);
        free(mailbox);
    }
}

void
paml_mailbox_ring(struct paml_mailbox *mailbox)
{
    eventfd_t one = 1;

    /* EAGAIN: the counter is full, so it is readable; anything else can't happen. */
    while (write(mailbox->fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* Thread: the owner's. GIL: any. Locks: none. */
void
paml_mailbox_silence(struct paml_mailbox *mailbox, int64_t now_ns)
{
    uint64_t count;

    while (read(mailbox->fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
    paml_mailbox_silence_alarm(mailbox, now_ns);
}

/* Thread: the owner's. GIL: any. Locks: none. */
void
paml_mailbox_silence_alarm(struct paml_mailbox *mailbox, int64_t now_ns)
{
    int64_t alarm_ns = atomic_load_explicit(&mailbox->alarm_ns, memory_order_relaxed);
    uint64_t count;
    ssize_t got;

    if (alarm_ns != 0 && now_ns >= alarm_ns) {
        while ((got = read(mailbox->alarm_fd, &count, sizeof(count))) < 0 &&
               errno == EINTR) {
        }
        if (got < 0) {
            /* It was set a little later than alarm_ns says, and has yet to go off: what
               went off must be read, or the owner is called for ever. */
            return;
        }
        /* Who set it may not have said so yet, and won't any more. seq_cst, as the take
           that follows: see paml_mailbox_has_alarm. */
        atomic_store_explicit(&mailbox->alarm_ns, 0, memory_order_seq_cst);
    }
}

#define BEING_SET INT64_C(1) /* in alarm_ns: a debtor is about to set it */

/* From `from` to `to`, unless it was something else.
   Thread: any. GIL: not needed. Locks: none. */
static bool
change_alarm(struct paml_mailbox *mailbox, int64_t from, int64_t to)
{
    return atomic_compare_exchange_strong_explicit(
        &mailbox->alarm_ns, &from, to, memory_order_seq_cst, memory_order_seq_cst);
}

static void
start_alarm(struct paml_mailbox *mailbox, int64_t in_ns)
{
    struct itimerspec when = {.it_value = {0, in_ns}};

    timerfd_settime(mailbox->alarm_fd, 0, &when, NULL);
}

/* Thread: any with a debt. GIL: not needed. Locks: none. */
void
paml_mailbox_set_alarm(struct paml_mailbox *mailbox, int64_t now_ns)
{
    int64_t alarm_ns = (now_ns + PAML_ALARM_NS) & ~BEING_SET;

    if (change_alarm(mailbox, 0, alarm_ns | BEING_SET)) {
        start_alarm(mailbox, PAML_ALARM_NS);
        change_alarm(mailbox, alarm_ns | BEING_SET, alarm_ns);
    }
}

/* Thread: any with a debt. GIL: not needed. Locks: none. */
bool
paml_mailbox_has_alarm(struct paml_mailbox *mailbox, int64_t until_ns)
{
    /* seq_cst, as the post before it: who still finds the alarm set has posted before
       the owner, which has made it 0 first, takes. */
    int64_t alarm_ns = atomic_load_explicit(&mailbox->alarm_ns, memory_order_seq_cst);

    return alarm_ns != 0 && alarm_ns <= until_ns;
}

/* A fraction of the time that the request has taken so far, so that nobody's latency
   grows by more than that, a larger one where a worker must make way for the owner; and
   of the time that its deadline leaves, so that nobody is late for that. */
#define GRACE_SHARE 4
#define GRACE_SHARE_CROWDED 2
#define GRACE_MOST_NS 2000000

/* Thread: any that has the op. GIL: not needed. Locks: none. */
int64_t
paml_mailbox_grace(const struct paml_op *op, int64_t now_ns)
{
    int64_t grace_ns = (now_ns - op->submitted_ns) /
                       (paml_crowded() ? GRACE_SHARE_CROWDED : GRACE_SHARE);

    if (op->deadline_ns != 0 && (op->deadline_ns - now_ns) / GRACE_SHARE < grace_ns) {
        grace_ns = (op->deadline_ns - now_ns) / GRACE_SHARE;
    }
    return grace_ns < GRACE_MOST_NS ? grace_ns : GRACE_MOST_NS;
}

/* Thread: any. GIL: not needed. Locks: none. */
enum paml_told
paml_mailbox_post_quietly(struct paml_mailbox *mailbox, struct paml_op *op)
{
    struct paml_op *head;

    /* The op is not posted yet, so the owner is still there: it can't have counted the
       op as arrived. After the exchange below it may be gone; this reference stays. */
    atomic_fetch_add_explicit(&mailbox->refs, 1, memory_order_relaxed);
    paml_op_set_state(op, PAML_OP_DONE);
    head = atomic_load_explicit(&mailbox->head, memory_order_relaxed);
    do {
        op->next = head;
        /* seq_cst: a release that pairs with the acquire in take, so that the op's
           results come along; and ordered before the look at the alarm. */
    } while (!atomic_compare_exchange_weak_explicit(
        &mailbox->head, &head, op, memory_order_seq_cst, memory_order_relaxed));
    if (head == NULL) {
        return PAML_NOT_TOLD; /* the reference goes with the debt */
    }
    paml_mailbox_unref(mailbox);
    return head == AWAKE ? PAML_TOLD_SOON : PAML_TOLD_LATER;
}

/* Thread: any. GIL: not needed. Locks: none. */
void
paml_mailbox_pay(struct paml_mailbox *mailbox)
{
    /* relaxed: of what this thread has posted it can't see less; once that is taken the
       owner has been awake since, and whoever posts next rings for itself. */
    struct paml_op *head = atomic_load_explicit(&mailbox->head, memory_order_relaxed);

    if (head != NULL && head != AWAKE) {
        paml_mailbox_ring(mailbox);
    }
    paml_mailbox_unref(mailbox);
}

/* Thread: any. GIL: not needed. Locks: none. */
void
paml_mailbox_post(struct paml_mailbox *mailbox, struct paml_op *op)
{
    if (paml_mailbox_post_quietly(mailbox, op) == PAML_NOT_TOLD) {
        paml_mailbox_pay(mailbox);
    }
}

/* Thread: the owner's. GIL: any. Locks: none. */
struct paml_op *
paml_mailbox_take(struct paml_mailbox *mailbox)
{
    struct paml_op *op, *next, *oldest = NULL;

    /* seq_cst: an acquire that pairs with the release in post; and ordered after the
       silencing of the alarm. */
    op = atomic_exchange_explicit(&mailbox->head, AWAKE, memory_order_seq_cst);
    while (op != NULL && op != AWAKE) {
        next = op->next;
        op->next = oldest;
        oldest = op;
        op = next;
    }
    return oldest;
}

/* Thread: the owner's. GIL: any. Locks: none. */
bool
paml_mailbox_rest(struct paml_mailbox *mailbox, int64_t now_ns, int64_t for_ns)
{
    struct paml_op *expected = AWAKE;
    int64_t before_ns = atomic_load_explicit(&mailbox->alarm_ns, memory_order_relaxed);
    int64_t alarm_ns = (now_ns + for_ns) & ~BEING_SET;
    bool ours, rests;

    /* Said before, so that whoever posts next counts on it, and set after, as something
       may come in the time that this takes. */
    ours = for_ns > 0 && (before_ns == 0 || before_ns > alarm_ns) &&
           !(before_ns & BEING_SET) && change_alarm(mailbox, before_ns, alarm_ns);
    /* seq_cst: a release of what the alarm is now, for whoever finds the list empty. */
    rests = atomic_compare_exchange_strong_explicit(&mailbox->head, &expected, NULL,
                                                    memory_order_seq_cst,
                                                    memory_order_relaxed) ||
            expected == NULL;
    if (ours && rests) {
        start_alarm(mailbox, for_ns);
    } else if (ours) {
        /* Who counted on it has posted before the owner takes again. */
        atomic_store_explicit(&mailbox->alarm_ns, before_ns, memory_order_seq_cst);
    }
    return rests;
}

/* Thread: the owner's. GIL: any. Locks: none. */
bool
paml_mailbox_has_more(struct paml_mailbox *mailbox)
{
    /* relaxed: a hint; what is there is acquired when it is taken. */
    return atomic_load_explicit(&mailbox->head, memory_order_relaxed) != AWAKE;
}
