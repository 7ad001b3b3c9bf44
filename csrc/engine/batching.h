/* What dynamic batching was asked for: which requests may share a run, and how their
 * inputs become one.
 *
 * Owner: the model, from its making on; read-only, so any thread may look.
 */
#ifndef PAML_BATCHING_H
#define PAML_BATCHING_H

#include "value.h"

#define PAML_PADDED_MOST 2 /* named axes of one model */

/* An axis of one tensor: of the top-level argument `position` for inputs, of the
   `position`th tensor, in prefix order, for outputs. */
struct paml_axis_place {
    uint32_t position;
    int32_t axis; /* never the batch axis */
};

/* One named axis whose sizes may differ between requests: padded to the longest of the
   batch, or to the smallest bucket that holds it, and cut off again from outputs. */
struct paml_padded_axis {
    const char *name;
    uint32_t n_inputs, n_outputs, n_buckets;
    const struct paml_axis_place *inputs, *outputs; /* inputs: one at least */
    const int64_t *buckets; /* ascending; a longer request fits none of them */
};

struct paml_batching {
    int64_t max_rows;     /* of a run; a longer request is cut into several. 0: off */
    int64_t max_delay_ns; /* how long a batch that isn't full may wait for more */
    /* The batch axis by top-level argument and by output tensor; 0 beyond the end. */
    const int32_t *input_axes, *output_axes;
    uint32_t n_input_axes, n_output_axes;
    uint32_t n_padded;
    const struct paml_padded_axis *padded;
    /* What padding is filled with, by top-level argument; 0 beyond the end. */
    const double *fills;
    uint32_t n_fills;
    /* The argument that the engine makes where the caller leaves it out (PAML_ABSENT):
       1 for what is real along padded[0], 0 for padding; shape (rows, length). -1:
       none. */
    int32_t mask_argument;
    DLDataType mask_dtype;
};

#endif
