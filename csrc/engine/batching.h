/* What dynamic batching was asked for: which requests may share a run, and how their
 * inputs become one.
 *
 * Owner: the model, from its making on; read-only, so any thread may look.
 */
#ifndef PAML_BATCHING_H
#define PAML_BATCHING_H

#include "backend.h"

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
    const char *const *names; /* of inputs, for messages; NULL where one has none */
    uint32_t n_names;
    void *storage; /* batching.c's: what the arrays are in */
};

/* One thing that the user said about an input or an output, by name or by position.
   What names mean is known once the program is loaded. */
enum paml_setting_kind {
    PAML_SET_INPUT_AXIS,    /* value: the batch axis */
    PAML_SET_OUTPUT_AXIS,   /* value: the batch axis */
    PAML_SET_FILL,          /* value: what padding is filled with */
    PAML_SET_MASK,          /* the input that the engine makes */
    PAML_SET_PADDED_INPUT,  /* value: the axis of padded[which] */
    PAML_SET_PADDED_OUTPUT, /* value: the axis of padded[which] */
    PAML_SET_BUCKET,        /* value: a bucket of padded[which], ascending; no name */
};

struct paml_setting {
    enum paml_setting_kind kind;
    uint32_t which;
    char *name;        /* NULL: by position; owned by whoever made the setting */
    uint32_t position; /* < PAML_PLACES_MOST */
    double value;
};

#define PAML_PLACES_MOST 64 /* inputs, or outputs, of a model that batches */

struct paml_batching_options {
    int64_t max_rows, max_delay_ns; /* max_rows 0: requests never share a run */
    const char *axis_names[PAML_PADDED_MOST];
    uint32_t n_padded;
    DLDataType mask_dtype;
    struct paml_setting *settings;
    uint32_t n_settings;
};

/* Fills `batching` from the options, whose names it looks up in the entry. PAML_OK, or
   PAML_ERR_LOAD: there is no such input. The options must outlive it. */
int paml_batching_build(struct paml_batching *batching,
                        const struct paml_batching_options *options,
                        const struct paml_entry *entry, struct paml_error *err);
void paml_batching_clear(struct paml_batching *batching);

/* A deep copy, and its end. -1: no memory. */
int paml_batching_options_copy(struct paml_batching_options *to,
                               const struct paml_batching_options *from);
void paml_batching_options_clear(struct paml_batching_options *options);

#endif
