/* Ops in order of urgency: a list for those that come in order, and a heap for those
 * that don't.
 *
 * Priority descending, then deadline ascending (none: last), then sequence ascending,
 * which is what makes the order total: no two ops of one order may share a sequence.
 * Most streams come in order and cost an append; an op that is more urgent than the
 * list's last goes to a pairing heap. The most urgent is one of two: the list's first
 * or the heap's root.
 *
 * Owner: the queue it is part of. Lock: none of its own, the queue's guards it and the
 * links of every op in it. Lifetime: an op is in at most one order, and stays until it
 * is popped or removed; priority, deadline_ns and sequence don't change meanwhile.
 * Nothing is allocated.
 */
#ifndef PAML_ORDER_H
#define PAML_ORDER_H

#include <stddef.h>

#include "op.h"

struct paml_order {
    struct paml_op *first, *last; /* the list: next, previous */
    /* The heap: child, sibling, and `before`, which is the sibling before an op or, of
       a first child, the parent. */
    struct paml_op *root;
    size_t count; /* in both */
};

void paml_order_init(struct paml_order *order);

/* Whether `op` goes before `other`. */
bool paml_order_before(const struct paml_op *op, const struct paml_op *other);

/* O(1). */
void paml_order_push(struct paml_order *order, struct paml_op *op);

/* The most urgent op, NULL where there is none. O(1). */
struct paml_op *paml_order_peek(const struct paml_order *order);

/* Takes it out. O(log n), amortized. */
struct paml_op *paml_order_pop(struct paml_order *order);

/* Takes out any op that is in the order. O(log n), amortized. */
void paml_order_remove(struct paml_order *order, struct paml_op *op);

#endif
