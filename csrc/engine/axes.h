/* The axes of a batch: where they are, how tensors are cut and laid down along them,
 * and what padding is made of.
 *
 * Functions of their arguments alone: any thread, no locks.
 */
#ifndef PAML_AXES_H
#define PAML_AXES_H

#include <stdbool.h>

#include "batching.h"

/* Goes through a structure in prefix order and knows the top-level value that each
   value belongs to. Starts as {0, 1, false}; one step after each value. */
struct paml_walk {
    uint32_t argument;
    uint32_t open; /* values of the argument that are still to come */
    bool inside;   /* its first value was passed */
};

static inline void
paml_walk_step(struct paml_walk *walk, const struct paml_value *value)
{
    walk->open--;
    walk->inside = true;
    if (value->kind == PAML_TUPLE || value->kind == PAML_LIST) {
        walk->open += value->count;
    } else if (value->kind == PAML_DICT) {
        walk->open += 2 * value->count;
    }
    if (walk->open == 0) {
        walk->argument++;
        walk->open = 1;
        walk->inside = false;
    }
}

static inline int32_t
paml_input_axis(const struct paml_batching *batching, uint32_t argument)
{
    return argument < batching->n_input_axes ? batching->input_axes[argument] : 0;
}

static inline int32_t
paml_output_axis(const struct paml_batching *batching, uint32_t tensor)
{
    return tensor < batching->n_output_axes ? batching->output_axes[tensor] : 0;
}

/* Which padded axis an input's axis is, or -1. */
int paml_padded_input(const struct paml_batching *batching, uint32_t argument,
                      int32_t axis);
/* The smallest bucket that holds the length: -1 where none does, the length itself
   where there are no buckets. */
int64_t paml_padded_length(const struct paml_padded_axis *padded, int64_t length);

/* How many elements a row of the padded inputs has, of those lengths (-1: nobody has
   the axis): along two axes the area where one input has both, and otherwise their sum.
 */
int64_t paml_padded_cells(const struct paml_batching *batching, const int64_t *lengths);

/* Of the sizes of axes [from, to). */
static inline int64_t
paml_axes_product(const int64_t *shape, int32_t from, int32_t to)
{
    int64_t product = 1;

    for (int32_t i = from; i < to; i++) {
        product *= shape[i];
    }
    return product;
}

/* Writes the strides that the shape has when nothing is between the elements. */
void paml_dense_strides(int32_t ndim, const int64_t *shape, int64_t *strides);
/* A view of [from, to) along the axis; `dims`, room for 2 * ndim, becomes its shape
   and strides. */
DLTensor paml_tensor_narrow(const DLTensor *tensor, int32_t axis, int64_t from,
                            int64_t to, int64_t *dims);
/* Copies a tensor to `row` and on along the axis of a C-contiguous one, at the start
   of the other axes where the tensor is the shorter. */
void paml_tensor_place(const DLTensor *from, const DLTensor *whole, int32_t axis,
                       int64_t row);
bool paml_dtype_is_bytes(DLDataType dtype);

/* Whether padding of that dtype can be `fill`, exactly for integers. */
bool paml_pad_holds(DLDataType dtype, double fill);
/* Writes `count` elements of padding; paml_pad_holds() must have said yes. */
void paml_pad(void *to, DLDataType dtype, double fill, int64_t count);

/* "'mask'", or "1" where it has no name, written to text. */
const char *paml_input_text(const struct paml_batching *batching, uint32_t argument,
                            char *text, size_t size);
#define PAML_INPUT_TEXT 80

/* "[1, 10]", written to text. */
const char *paml_shape_text(const DLTensor *tensor, char *text, size_t size);

#endif
