#include "order.h"

void
paml_order_init(struct paml_order *order)
{
    *order = (struct paml_order){0};
}

bool
paml_order_before(const struct paml_op *op, const struct paml_op *other)
{
    if (op->priority != other->priority) {
        return op->priority > other->priority;
    }
    /* As unsigned, one less: no deadline, 0, becomes the last of all. */
    if (op->deadline_ns != other->deadline_ns) {
        return (uint64_t)op->deadline_ns - 1 < (uint64_t)other->deadline_ns - 1;
    }
    return op->sequence < other->sequence;
}

/* --- the heap --- */

/* Makes one heap of two. A root's sibling and before are NULL, and so are the
   result's. */
static struct paml_op *
heap_merge(struct paml_op *one, struct paml_op *other)
{
    struct paml_op *parent, *child;

    if (one == NULL || other == NULL) {
        return one != NULL ? one : other;
    }
    parent = paml_order_before(one, other) ? one : other;
    child = parent == one ? other : one;
    child->sibling = parent->child;
    if (child->sibling != NULL) {
        child->sibling->before = child;
    }
    child->before = parent;
    parent->child = child;
    return parent;
}

/* Makes one heap of siblings, in the two passes that the amortized bound rests on:
   pairs from the left, then all pairs into one from the right. A loop, since one op may
   have as many children as the heap has ops. */
static struct paml_op *
heap_merge_siblings(struct paml_op *op)
{
    struct paml_op *pairs = NULL, *result = NULL; /* pairs: the last one first */

    while (op != NULL) {
        struct paml_op *other = op->sibling, *rest = NULL, *pair;

        op->sibling = op->before = NULL;
        if (other != NULL) {
            rest = other->sibling;
            other->sibling = other->before = NULL;
        }
        pair = heap_merge(op, other);
        pair->sibling = pairs;
        pairs = pair;
        op = rest;
    }
    while (pairs != NULL) {
        struct paml_op *pair = pairs;

        pairs = pair->sibling;
        pair->sibling = NULL;
        result = heap_merge(result, pair);
    }
    return result;
}

static void
heap_remove(struct paml_order *order, struct paml_op *op)
{
    struct paml_op *orphans = heap_merge_siblings(op->child);

    if (op == order->root) {
        order->root = orphans;
    } else {
        struct paml_op *before = op->before;

        *(before->child == op ? &before->child : &before->sibling) = op->sibling;
        if (op->sibling != NULL) {
            op->sibling->before = before;
        }
        order->root = heap_merge(order->root, orphans);
    }
    op->child = op->sibling = op->before = NULL;
    op->in_heap = false;
}

/* --- the order --- */

/* Thread: any. GIL: any. Locks: the caller holds the queue's. */
void
paml_order_push(struct paml_order *order, struct paml_op *op)
{
    order->count++;
    op->next = op->previous = NULL;
    op->child = op->sibling = op->before = NULL;
    op->in_heap = order->last != NULL && paml_order_before(op, order->last);
    if (op->in_heap) {
        order->root = heap_merge(order->root, op);
        return;
    }
    op->previous = order->last;
    *(order->last != NULL ? &order->last->next : &order->first) = op;
    order->last = op;
}

/* Thread: any. GIL: any. Locks: the caller holds the queue's. */
struct paml_op *
paml_order_peek(const struct paml_order *order)
{
    if (order->first == NULL || order->root == NULL) {
        return order->first != NULL ? order->first : order->root;
    }
    return paml_order_before(order->root, order->first) ? order->root : order->first;
}

/* Thread: any. GIL: any. Locks: the caller holds the queue's. */
struct paml_op *
paml_order_pop(struct paml_order *order)
{
    struct paml_op *op = paml_order_peek(order);

    if (op != NULL) {
        paml_order_remove(order, op);
    }
    return op;
}

/* Thread: any. GIL: any. Locks: the caller holds the queue's. */
void
paml_order_remove(struct paml_order *order, struct paml_op *op)
{
    order->count--;
    if (op->in_heap) {
        heap_remove(order, op);
        return;
    }
    *(op->next != NULL ? &op->next->previous : &order->last) = op->previous;
    *(op->previous != NULL ? &op->previous->next : &order->first) = op->next;
    op->next = op->previous = NULL;
}
