/* A bundle: what pyasyncml.export.jax() writes. A member `manifest` says what the
 * program takes and gives; `programs/<i>` is its StableHLO for the i-th batch size;
 * `weights/<i>` and `state/<i>` are arrays that it holds between runs.
 *
 * The program's arguments are the weights, the state, and the leaves of the inputs, in
 * this order and each only where it is kept; its results are the new state and the
 * leaves of the outputs.
 *
 * Owner: one program. Read-only once open; valid until closed.
 */
#ifndef PAML_XLA_BUNDLE_H
#define PAML_XLA_BUNDLE_H

#include <stdbool.h>

#include "archive.h"
#include "dtype.h"
#include "error.h"

#define PAML_XLA_BATCH (-1) /* the first axis of an array with a batch */

struct paml_xla_array {
    const struct paml_xla_dtype *dtype;
    int32_t ndim;
    const int64_t *shape; /* the first may be PAML_XLA_BATCH */
    bool kept; /* the program takes it; what it doesn't need it may leave out */
};

/* A structure in prefix order, as values are (value.h), but that the keys of a dict
   stand at its items. */
struct paml_xla_node {
    uint32_t kind;  /* PAML_TENSOR (an array), PAML_TUPLE, _LIST, _DICT or _NONE */
    uint32_t count; /* items */
    const char *key;
    const struct paml_xla_array *array;
};

struct paml_xla_argument {
    const char *name;
    const struct paml_xla_node *tree;
    uint32_t n_nodes;
};

struct paml_xla_bundle {
    struct paml_xla_archive archive;
    const char *entry, *platform;
    uint32_t n_buckets;     /* 0: shapes are fixed, and there is one program */
    const int64_t *buckets; /* ascending */
    uint32_t n_weights, n_state, n_inputs, n_outputs; /* arrays */
    const struct paml_xla_array *weights, *state, *inputs, *outputs;
    const struct paml_xla_node *state_tree, *output_tree;
    uint32_t n_state_nodes, n_output_nodes;
    uint32_t n_arguments;
    const struct paml_xla_argument *arguments;
    void *storage[5]; /* bundle.c's: what the arrays are in */
};

/* PAML_OK, or PAML_ERR_LOAD or PAML_ERR_MEMORY, with nothing to close. */
int paml_xla_bundle_open(struct paml_xla_bundle *bundle, const char *path,
                         struct paml_error *err);
void paml_xla_bundle_close(struct paml_xla_bundle *bundle);

/* The member `<folder>/<index>`. */
int paml_xla_bundle_member(const struct paml_xla_bundle *bundle, const char *folder,
                           uint32_t index, const unsigned char **data, size_t *size,
                           struct paml_error *err);

/* Bytes of `rows` rows of it, or of all of it where it has no batch. */
static inline size_t
paml_xla_array_bytes(const struct paml_xla_array *array, int64_t rows)
{
    size_t bytes = paml_xla_dtype_size(array->dtype);

    for (int32_t i = 0; i < array->ndim; i++) {
        bytes *= (size_t)(array->shape[i] == PAML_XLA_BATCH ? rows : array->shape[i]);
    }
    return bytes;
}

static inline bool
paml_xla_array_has_batch(const struct paml_xla_array *array)
{
    return array->ndim > 0 && array->shape[0] == PAML_XLA_BATCH;
}

#endif
