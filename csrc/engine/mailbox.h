/* Finished ops on their way to one event loop: a lock-free list and an eventfd.
 *
 * Thread: any may post; one at a time takes (the loop that owns the hub, or whoever
 * reaps after that loop is gone).
 *
 * Ringing costs a system call, so it is done once a burst. The list tells whether it is
 * needed: while the owner is at work it leaves a mark at the list's end that says "I
 * will look again", and only a post that finds the list empty, without the mark, rings.
 *     list empty             the owner sleeps; the next post rings
 *     anything in the list   the eventfd is readable, or the owner sees to it that it
 * is
 *
 * A worker that has more work may owe the ring for a while. The kernel sees to it that
 * it comes all the same: a debtor makes sure that an alarm is set, which wakes the
 * owner however long the debtor's next run takes. Setting one costs as much as a ring,
 * so debtors neither move nor cancel it: it goes off now and then, for nothing.
 *
 * An owner that expects more may set the alarm itself before it sleeps, to an earlier
 * time: the kernel then wakes it on its own processor, and debtors needn't spend
 * anything on it.
 *
 * Lifetime: one reference for the owner and one for each post under way, its ring
 * included, so that a worker can still ring after the owner has already taken its op
 * and gone. The descriptors are closed with the last reference: never while somebody
 * might write to their numbers.
 */
#ifndef PAML_MAILBOX_H
#define PAML_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>

#include "op.h"

struct paml_mailbox {
    _Alignas(64) _Atomic(struct paml_op *)
        head; /* newest first; ends with NULL or the mark */
    _Alignas(64) atomic_int refs;
    /* When the alarm goes off, at the earliest, or went off; 0: it isn't set; odd: a
       debtor is about to set it. Debtors change 0 alone, the owner anything that isn't
       odd. The owner takes after it has made it 0: who finds it set is come for. */
    atomic_int_least64_t alarm_ns;
    int fd;       /* the eventfd */
    int alarm_fd; /* a timerfd: the bell of debtors that are busy */
};

struct paml_mailbox *paml_mailbox_new(void); /* NULL with errno set */
void paml_mailbox_unref(struct paml_mailbox *mailbox);
/* Gives the op away. */
void paml_mailbox_post(struct paml_mailbox *mailbox, struct paml_op *op);
/* The same, but leaves the ringing to the caller. */
enum paml_told {
    PAML_TOLD_LATER, /* somebody else rings, or the owner sees it by itself */
    PAML_TOLD_SOON,  /* the owner is at work: whatever came before this it has taken */
    PAML_NOT_TOLD,   /* a ring is owed, and nobody else will ring meanwhile: pay it now,
                        or see to an alarm and pay it later */
};
enum paml_told paml_mailbox_post_quietly(struct paml_mailbox *mailbox,
                                         struct paml_op *op);
/* Sets the alarm unless one is under way: within PAML_ALARM_NS the owner looks. */
#define PAML_ALARM_NS 5000000
void paml_mailbox_set_alarm(struct paml_mailbox *mailbox, int64_t now_ns);
/* Whether an alarm is under way that goes off by then, or has gone off. */
bool paml_mailbox_has_alarm(struct paml_mailbox *mailbox, int64_t until_ns);
/* How long the answer to this op may lie there before anybody is told of it. */
int64_t paml_mailbox_grace(const struct paml_op *op, int64_t now_ns);
/* Rings, unless the owner has already taken what the ring was owed for. */
void paml_mailbox_pay(struct paml_mailbox *mailbox);
/* Everything posted so far, oldest first, linked by `next`. Leaves the mark: until
   paml_mailbox_rest() says yes, nobody rings. */
struct paml_op *paml_mailbox_take(struct paml_mailbox *mailbox);
/* Whether something was posted since the last take. */
bool paml_mailbox_has_more(struct paml_mailbox *mailbox);
/* True: nothing has come since the last take, and from now on posts ring. False: take
   again (or ring, and leave). Silence the eventfd before, not after. `for_ns` > 0: for
   so long at most, by an alarm. */
bool paml_mailbox_rest(struct paml_mailbox *mailbox, int64_t now_ns, int64_t for_ns);
void paml_mailbox_ring(struct paml_mailbox *mailbox);
/* Makes both descriptors unreadable until the next ring or alarm. */
void paml_mailbox_silence(struct paml_mailbox *mailbox, int64_t now_ns);
/* The alarm's alone, where it has gone off. */
void paml_mailbox_silence_alarm(struct paml_mailbox *mailbox, int64_t now_ns);

#endif
