/* From a batch to answers: what a worker does with what it took.
 *
 * A batch that fails is run again in halves until what is at fault fails alone, with
 * its own error; one that runs out of memory is too, by rows, and teaches the cost
 * model how many rows fit. A request of more rows than a run may have is cut into
 * slices, one after the other, and what they give is joined.
 */
#ifndef PAML_SERVE_H
#define PAML_SERVE_H

#include "model.h"

/* Answers every op of worker->batch. Returns the time, to within what an answer takes:
   clocks are read no more often than need be. Thread: the worker's. GIL: never. Locks:
   none. */
int64_t paml_serve_batch(struct paml_worker *worker, void *instance,
                         struct paml_error *error);

/* warm_up.c: runs the example a few times, in the sizes and buckets that batches will
   have, so that kernels are picked and costs known before anybody waits. */
int paml_serve_warm_up(struct paml_worker *worker, void *instance,
                       const struct paml_op *example, int runs,
                       struct paml_error *error);

/* worker.c: gives an answered op to its mailbox. Before a run rings for those that were
   answered outside one: nobody else would, for as long as it takes; that takes a while
   itself. */
void paml_worker_post(struct paml_worker *worker, struct paml_op *op, int64_t now_ns);
bool paml_worker_before_run(struct paml_worker *worker); /* whether it did */

#endif
