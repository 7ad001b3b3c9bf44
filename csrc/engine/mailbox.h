/* Finished ops on their way to one event loop: a lock-free list and an eventfd.
 *
 * Thread: any may post; one at a time takes (the loop that owns the hub, or whoever
 * reaps after that loop is gone). One write(2) per burst: only the post that finds the
 * list empty rings.
 *
 * Lifetime: one reference for the owner and one for each post under way, so that a
 * worker can still ring after the owner has already taken its op and gone. The eventfd
 * is closed with the last reference: never while somebody might write to its number.
 */
#ifndef PAML_MAILBOX_H
#define PAML_MAILBOX_H

#include <stdatomic.h>

#include "op.h"

struct paml_mailbox {
    _Alignas(64) _Atomic(struct paml_op *) head; /* newest first */
    _Alignas(64) atomic_int refs;
    int fd;
};

struct paml_mailbox *paml_mailbox_new(void); /* NULL with errno set */
void paml_mailbox_unref(struct paml_mailbox *mailbox);
/* Gives the op away. */
void paml_mailbox_post(struct paml_mailbox *mailbox, struct paml_op *op);
/* Everything posted so far, oldest first, linked by `next`. */
struct paml_op *paml_mailbox_take(struct paml_mailbox *mailbox);
void paml_mailbox_ring(struct paml_mailbox *mailbox);
/* Makes the eventfd unreadable until the next ring. */
void paml_mailbox_silence(struct paml_mailbox *mailbox);

#endif
