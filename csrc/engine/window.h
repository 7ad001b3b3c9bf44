/* Ops of one group that may share the next run, out of their order for a while, most
 * urgent first: those that its leader may run with, and of these the ones of similar
 * lengths, where padding would cost too much otherwise.
 *
 * Owner: a schedule, while it takes. Lock: the queue's. An op of the window is in the
 * group's books, but not in its order: it must be claimed, or pushed back.
 */
#ifndef PAML_WINDOW_H
#define PAML_WINDOW_H

#include "batch.h"
#include "cost.h"
#include "order.h"
#include "plan.h"

struct paml_window {
    struct paml_op *ops[PAML_PLAN_MOST];
    uint32_t n;
    int64_t lengths[PAML_PADDED_MOST]; /* the longest of them */
    uint64_t cost_key;                 /* of a run of all, see paml_batch_cost_key() */
};

/* Takes the leader and, as they come, those of its kind out of the order. */
void paml_window_open(struct paml_window *window, const struct paml_batching *batching,
                      struct paml_order *order, struct paml_op *leader, uint32_t most);

/* Whether lengths like the leader's are padded to the longest of the batch. (A bucket
   is padded to in any case: along such an axis all of a group are alike.) */
bool paml_window_is_uneven(const struct paml_batching *batching,
                           const struct paml_op *leader);

/* Puts back into the order what is not for the leader's run: it would be padded too
   much, or make it so. Lowers `*max_rows` to what memory allows requests as long as
   those that are kept. Returns whether any was put back. */
bool paml_window_keep_similar(struct paml_window *window,
                              const struct paml_batching *batching,
                              struct paml_order *order,
                              const struct paml_cost_model *cost, int64_t *max_rows);

/* When the answer must be on its way for the deadline, which there must be. */
int64_t paml_window_due(const struct paml_op *op);

/* Whether all that a full batch would hold are in time. */
bool paml_window_is_in_time(const struct paml_window *window,
                            const struct paml_line *line, int64_t now_ns,
                            int64_t max_rows);

#endif
