/* Batches: which requests may share a run, how their inputs become one, and how its
 * outputs become theirs again.
 *
 * A run serves slices: rows [from, to) of a request each, mostly all of them. A request
 * of more rows than a run may have is cut into consecutive slices, and the outputs of
 * those are joined.
 *     classify (at submit) -> gather -> the backend's run -> scatter (-> join)
 * each in the file of its name, but for the gather, which is in batch.c.
 * Everywhere here batching->max_rows > 0, but for paml_batch_classify().
 *
 * Owners: a batcher is one worker's. Staging buffers are reused by its next run, so a
 * backend keeps no input. Slices and their outputs are the caller's; outputs that are
 * views keep the run's buffers alive and may be dropped on any thread.
 */
#ifndef PAML_BATCH_H
#define PAML_BATCH_H

#include <stdbool.h>

#include "backend.h"
#include "batching.h"
#include "op.h"

/* Rows of one request. */
struct paml_slice {
    struct paml_op *op;
    int64_t from, to;
    struct paml_outputs outputs; /* written by the scatter only */
};

struct paml_staging {
    void *data; /* 64-byte aligned */
    size_t capacity;
};

/* What one worker gathers with. Grows only. */
struct paml_batcher {
    struct paml_value *values;    /* of the run, where it can't have a request's own */
    struct paml_staging *buffers; /* one for each value, used where it is a copy */
    int64_t *dims;                /* shapes of copies; shapes and strides of views */
    uint32_t n_values, n_dims;    /* room, not use */

    /* Of the last gather. */
    int64_t rows;
    int64_t lengths[PAML_PADDED_MOST]; /* after padding; -1: no input has the axis */
    int64_t cells, real_cells;         /* paml_padded_cells() of all rows, with and
                                          without padding */
};

/* Finds rows, lengths and batch_key of an op: once, before it is queued. lengths[i] is
   -1 where no input has the axis (optional ones are missing). The key is 0 when the op
   runs alone: it has no tensor with axes, or no rows, or values that can't be compared
   or copied here (objects; tensors on a device). PAML_OK or PAML_ERR_INPUT. */
int paml_batch_classify(const struct paml_batching *batching, struct paml_op *op,
                        struct paml_error *err);

/* What an op costs by the row is learned and looked up under this key: its batch_key
   and, where padding is to the longest, about how long it is; for one that runs alone
   the shapes of its inputs. `batching` may be NULL where batch_key is 0. */
uint64_t paml_batch_cost_key(const struct paml_batching *batching,
                             const struct paml_op *op);
/* The same, of a run that is padded to those lengths. */
uint64_t paml_batch_cost_key_at(const struct paml_batching *batching,
                                const struct paml_op *op, const int64_t *lengths);
/* The same, of a run of those slices. */
uint64_t paml_batch_cost_key_of(const struct paml_batching *batching,
                                const struct paml_slice *slices, uint32_t n);

/* Whether two ops with equal keys, not 0, may share a run indeed: keys are hashes. */
bool paml_batch_same(const struct paml_batching *batching, const struct paml_op *a,
                     const struct paml_op *b);

void paml_batcher_init(struct paml_batcher *batcher);
void paml_batcher_destroy(struct paml_batcher *batcher);

/* Fills the run's inputs: views of the ops' own where one slice needs nothing else,
   copies otherwise. Valid until the batcher's next gather, while the ops' inputs live.
   PAML_OK, PAML_ERR_BACKEND (a copy of what isn't in host memory) or PAML_ERR_MEMORY.
 */
int paml_batch_gather(struct paml_batcher *batcher,
                      const struct paml_batching *batching,
                      const struct paml_slice *slices, uint32_t n, struct paml_run *run,
                      struct paml_error *err);

/* Takes the outputs of the run that the batcher gathered last, for the same slices, and
   fills theirs, whatever those held. `whole` is left empty; on failure all are.
   PAML_OK, PAML_ERR_BACKEND (the outputs don't follow the batch) or PAML_ERR_MEMORY. */
int paml_batch_scatter(struct paml_batcher *batcher,
                       const struct paml_batching *batching, struct paml_slice *slices,
                       uint32_t n, struct paml_outputs *whole, struct paml_error *err);

/* Makes one structure of the outputs of a request's consecutive slices, in `to`,
   whatever that held. The parts are left empty; on failure `to` is too.
   PAML_OK, PAML_ERR_BACKEND (they don't fit together) or PAML_ERR_MEMORY. */
int paml_batch_join(const struct paml_batching *batching, struct paml_outputs *parts,
                    uint32_t n, struct paml_outputs *to, struct paml_error *err);

#endif
