/* Which of the waiting requests go into the next batch, so that the most of them meet
 * their deadlines.
 *
 * A batch's requests all end when it ends, so a tight deadline asks for a small batch,
 * and many tight ones for a large one: what a batch costs beside its rows is paid once.
 * Small batches for the most urgent are right at low load and ruinous at high load,
 * where giving up one request may save several. So a few first batches are tried out,
 * each with the batches that would follow it, and the one is chosen after which the
 * most requests are met: of the highest priority first, then of the next. Of equals it
 * is the one with the most rows that are in time. Where taking them as they come meets
 * all, that is the plan.
 *
 * A request without a deadline is always met, and never passed by a request of lower
 * priority.
 *
 * Pure: a function of its arguments, on any thread, a tenth of a millisecond at worst.
 */
#ifndef PAML_PLAN_H
#define PAML_PLAN_H

#include <stdint.h>

#include "cost.h"

/* So many requests at most are looked at together, and so taken by a run that is
   planned or padded to the longest: to compare them takes the square of their number,
   under the queue's lock, which those who cancel and other workers wait for. */
#define PAML_PLAN_MOST 256

struct paml_plan_item {
    int64_t deadline_ns; /* 0: none */
    uint32_t rows;
    int32_t priority;
};

enum paml_verdict {
    PAML_PLAN_LEAVE,
    PAML_PLAN_TAKE,
    /* Would be late even alone and right now, if `line` is to be trusted. Where that is
       all there is, run one to find out. */
    PAML_PLAN_HOPELESS,
};

/* What so many rows cost, in ns: more than a run may have are several runs. */
int64_t paml_plan_cost(const struct paml_line *line, int64_t rows, int64_t max_rows);

/* `items`, n of them, PAML_PLAN_MOST at most, one group's, in paml_order_before()'s
   order. Fills verdict[n] with enum paml_verdict and returns how many to take: up to
   max_rows together, or one of more rows, which is cut up. `line`: what a run costs;
   all zero: not known, and nothing is late. */
uint32_t paml_plan(const struct paml_plan_item *items, uint32_t n,
                   const struct paml_line *line, int64_t now_ns, int64_t max_rows,
                   uint8_t *verdict);

#endif
