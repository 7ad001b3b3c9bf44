/* Steps: one op that runs over and over, each time on the next rows of some arrays. A
 * training run without a trip to Python between two steps.
 *
 * After each run the worker either puts the op back into its queue, behind what waits
 * there, or answers it: at the limit, after a stop, or after a failure. What
 * else waits for the processor therefore gets in between two steps.
 *
 * Inputs of a step are, in this order, `n_columns` numbers (0-d float64 tensors: the
 * learning rates) out of a table with a row a step, and a batch of rows of each array,
 * gathered into buffers that are used again for the next step. Of what a step gives,
 * the first `n_values` tensors of one element are kept as numbers; one of them is the
 * loss.
 *
 * Owner: the maker, who keeps it for as long as the op is in flight; `order`, `table`
 * and the arrays' memory are borrowed. Threads: everything up to `values` is read-only
 * once made; `inputs` and `values` are the worker's that runs the op; the atomics are
 * anybody's. Lock: none.
 */
#ifndef PAML_STEPS_H
#define PAML_STEPS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "op.h"
#include "value.h"

struct paml_steps {
    uint32_t n_arrays, n_columns, n_values;
    uint32_t loss;          /* which of the values it is */
    const DLTensor *arrays; /* C-contiguous, in host memory, of one length */
    const int64_t *order;   /* which row comes when; NULL: as they are */
    const double *table;    /* n_steps × n_columns */
    int64_t epoch_rows;     /* an epoch's, at most the arrays' */
    int64_t batch_rows;
    int64_t n_steps;
    bool stop_when_not_finite; /* the loss */
    struct paml_value *batch;  /* owned: a buffer for each array */
    double *values;            /* owned: n_steps × n_values; written up to `done` */
    /* So many may run: the table's rows up to it are there. Release, by the maker,
       pairs with the worker's acquire. */
    atomic_int_least64_t limit;
    /* Steps that have ended. Release: pairs with whoever reads `values` up to it. */
    atomic_int_least64_t done;
    /* Nothing begins any more once so many are done; relaxed, a wish. */
    atomic_int_least64_t stop_at;
    /* An op to be answered once there is news, `told_ns` and at least `interval_ns`
       after the last: exchanged, so that whoever gets it owns it. */
    _Atomic(struct paml_op *) watcher;
    int64_t told_ns;
    atomic_int_least64_t interval_ns;
    int64_t made_way_ns; /* paml_make_way() */
};

/* How many steps an epoch has. */
int64_t paml_steps_per_epoch(int64_t epoch_rows, int64_t batch_rows);

/* Allocates what is owned; everything else is set. PAML_OK or PAML_ERR_MEMORY. */
int paml_steps_init(struct paml_steps *steps, struct paml_error *err);
void paml_steps_destroy(struct paml_steps *steps);

/* Whether nothing is to be done for now. */
bool paml_steps_ended(const struct paml_steps *steps);

/* Fills the op's inputs, `n_columns + n_arrays` of them, with the next step's. They
   stay valid until the next call. Thread: worker. */
void paml_steps_prepare(struct paml_steps *steps, struct paml_op *op);

/* Keeps a step's values and counts it. Thread: worker. */
int paml_steps_note(struct paml_steps *steps, const struct paml_outputs *outputs,
                    struct paml_error *err);

/* The watcher, if it is to be answered now: the caller's then. `last`: there won't be
   another chance. Thread: worker. */
struct paml_op *paml_steps_take_watcher(struct paml_steps *steps, int64_t now_ns,
                                        bool last);

#endif
