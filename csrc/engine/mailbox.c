#include "mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

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
        /* Fails where somebody has set the next one meanwhile. relaxed: what comes with
           the alarm's going off is the mailbox's list, which has its own order. */
        atomic_compare_exchange_strong_explicit(&mailbox->alarm_ns, &alarm_ns, 0,
                                                memory_order_relaxed,
                                                memory_order_relaxed);
    }
}

/* Thread: any with a debt. GIL: not needed. Locks: none. */
void
paml_mailbox_set_alarm(struct paml_mailbox *mailbox, int64_t now_ns)
{
    struct itimerspec when = {.it_value = {0, PAML_ALARM_NS}};

    /* relaxed: two debtors that both find none set it twice, to no harm. alarm_ns is
       never later than the moment it goes off. */
    if (now_ns >= atomic_load_explicit(&mailbox->alarm_ns, memory_order_relaxed)) {
        timerfd_settime(mailbox->alarm_fd, 0, &when, NULL);
        atomic_store_explicit(&mailbox->alarm_ns, now_ns + PAML_ALARM_NS,
                              memory_order_relaxed);
    }
}

/* Thread: any. GIL: not needed. Locks: none. */
bool
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
        /* release: pairs with the acquire in take; the op's results come along. */
    } while (!atomic_compare_exchange_weak_explicit(
        &mailbox->head, &head, op, memory_order_release, memory_order_relaxed));
    if (head == NULL) {
        return true; /* the reference goes with the debt */
    }
    paml_mailbox_unref(mailbox);
    return false;
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
    if (paml_mailbox_post_quietly(mailbox, op)) {
        paml_mailbox_pay(mailbox);
    }
}

/* Thread: the owner's. GIL: any. Locks: none. */
struct paml_op *
paml_mailbox_take(struct paml_mailbox *mailbox)
{
    struct paml_op *op, *next, *oldest = NULL;

    /* acquire: pairs with the release in post. */
    op = atomic_exchange_explicit(&mailbox->head, AWAKE, memory_order_acquire);
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
paml_mailbox_rest(struct paml_mailbox *mailbox)
{
    struct paml_op *expected = AWAKE;

    return atomic_compare_exchange_strong_explicit(&mailbox->head, &expected, NULL,
                                                   memory_order_relaxed,
                                                   memory_order_relaxed) ||
           expected == NULL;
}

/* Thread: the owner's. GIL: any. Locks: none. */
bool
paml_mailbox_has_more(struct paml_mailbox *mailbox)
{
    /* relaxed: a hint; what is there is acquired when it is taken. */
    return atomic_load_explicit(&mailbox->head, memory_order_relaxed) != AWAKE;
}
