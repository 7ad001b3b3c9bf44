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
    atomic_init(&mailbox->alarmed, false);
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

/* Goes off once, after so long; 0: not. */
static void
alarm_set(struct paml_mailbox *mailbox, int64_t after_ns)
{
    struct itimerspec when = {
        .it_value = {after_ns / 1000000000, after_ns % 1000000000}};

    timerfd_settime(mailbox->alarm_fd, 0, &when, NULL);
}

void
paml_mailbox_ring(struct paml_mailbox *mailbox)
{
    eventfd_t one = 1;

    /* EAGAIN: the counter is full, so it is readable; anything else can't happen. */
    while (write(mailbox->fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

void
paml_mailbox_silence(struct paml_mailbox *mailbox)
{
    eventfd_t count;

    while (read(mailbox->fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
    /* An alarm whose flag isn't seen yet goes on ringing until it is. */
    if (atomic_exchange_explicit(&mailbox->alarmed, false, memory_order_acq_rel)) {
        alarm_set(mailbox, 0); /* also forgets one that went off */
    }
}

/* Thread: any with a debt. GIL: not needed. Locks: none. */
void
paml_mailbox_set_alarm(struct paml_mailbox *mailbox, int64_t after_ns)
{
    alarm_set(mailbox, after_ns);
    atomic_store_explicit(&mailbox->alarmed, true, memory_order_release);
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
    paml_mailbox_ring(mailbox);
    paml_mailbox_unref(mailbox);
}

void
paml_mailbox_forgive(struct paml_mailbox *mailbox)
{
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
