/* The outputs of each request from those of a run. */
#include "batch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "axes.h"

/* A slice keeps the whole run's tensor alive where its part is at least that much of
   it: one kept row mustn't pin a batch. */
#define VIEW_FRACTION 4

/* --- views --- */

/* A tensor of a run that several outputs look at. */
struct shared {
    atomic_uint refs;
    void *owner;
    void (*release)(void *owner);
};

struct view {
    struct shared *shared;
    int64_t dims[]; /* shape, strides */
};

/* Thread: any. GIL: any. Locks: none. */
static void
shared_unref(struct shared *shared)
{
    /* acq_rel: the last one's release comes after all that the others did. */
    if (atomic_fetch_sub_explicit(&shared->refs, 1, memory_order_acq_rel) == 1) {
        if (shared->release != NULL) {
            shared->release(shared->owner);
        }
        free(shared);
    }
}

/* Thread: any. GIL: any. Locks: none. */
static void
view_release(void *owner)
{
    struct view *view = owner;

    shared_unref(view->shared);
    free(view);
}

/* Takes over what `value` owns, with one reference for the caller. NULL: memory ran
   out, and the value has it still. */
static struct shared *
shared_new(struct paml_value *value)
{
    struct shared *shared = malloc(sizeof(*shared));

    if (shared != NULL) {
        atomic_init(&shared->refs, 1);
        shared->owner = value->owner;
        shared->release = value->release;
        value->release = NULL;
    }
    return shared;
}

/* Makes `value` the tensor `part`, with a reference of its own. -1: memory ran out. */
static int
view_new(struct shared *shared, const DLTensor *part, struct paml_value *value)
{
    size_t bytes = (size_t)part->ndim * sizeof(int64_t);
    struct view *view = malloc(sizeof(*view) + 2 * bytes);

    if (view == NULL) {
        return -1;
    }
    atomic_fetch_add_explicit(&shared->refs, 1, memory_order_relaxed);
    view->shared = shared;
    memcpy(view->dims, part->shape, bytes);
    memcpy(view->dims + part->ndim, part->strides, bytes);
    value->kind = PAML_TENSOR;
    value->count = 0;
    value->tensor = *part;
    value->tensor.shape = view->dims;
    value->tensor.strides = view->dims + part->ndim;
    value->owner = view;
    value->release = view_release;
    return 0;
}

/* --- do the outputs follow the batch? --- */

struct scattering {
    const struct paml_batcher *batcher;
    const struct paml_batching *batching;
    struct paml_slice *slices;
    uint32_t n;
    struct paml_error *err;
};

#define MUST_FOLLOW                                                                    \
    "batching= needs a model whose outputs follow the batch axis of its inputs"

static int
check_tensor(const struct scattering *scattering, const DLTensor *tensor, uint32_t at)
{
    const struct paml_batching *batching = scattering->batching;
    const struct paml_batcher *batcher = scattering->batcher;
    int32_t axis = paml_output_axis(batching, at);
    char text[256];

    if (axis >= tensor->ndim || tensor->shape[axis] != batcher->rows) {
        return paml_fail(scattering->err, PAML_ERR_BACKEND,
                         "output %u of the model has shape %s, expected %lld rows "
                         "along axis %d: " MUST_FOLLOW,
                         at, paml_shape_text(tensor, text, sizeof(text)),
                         (long long)batcher->rows, axis);
    }
    if (!paml_dtype_is_bytes(tensor->dtype)) {
        return paml_fail(scattering->err, PAML_ERR_BACKEND,
                         "output %u of the model is %s: batching= needs elements of "
                         "whole bytes",
                         at, paml_dtype_name(tensor->dtype, text, sizeof(text)));
    }
    for (uint32_t k = 0; k < batching->n_padded; k++) {
        const struct paml_padded_axis *padded = &batching->padded[k];
        for (uint32_t i = 0; i < padded->n_outputs; i++) {
            axis = padded->outputs[i].axis;
            if (padded->outputs[i].position == at && batcher->lengths[k] >= 0 &&
                (axis >= tensor->ndim || tensor->shape[axis] != batcher->lengths[k])) {
                return paml_fail(scattering->err, PAML_ERR_BACKEND,
                                 "output %u of the model has shape %s, expected length "
                                 "%lld along axis %d ('%s'), as the padded inputs have",
                                 at, paml_shape_text(tensor, text, sizeof(text)),
                                 (long long)batcher->lengths[k], axis, padded->name);
            }
        }
    }
    return PAML_OK;
}

/* Checks values[*at] and what it holds, and moves on past it. */
static int
check_value(const struct scattering *scattering, const struct paml_value *values,
            uint32_t *at, uint32_t *tensors, bool is_key)
{
    const struct paml_value *value = &values[(*at)++];
    uint32_t items = 0;
    int code = PAML_OK;

    switch (value->kind) {
    case PAML_TENSOR:
        return check_tensor(scattering, &value->tensor, (*tensors)++);
    case PAML_TUPLE:
    case PAML_LIST:
        items = value->count;
        break;
    case PAML_DICT:
        items = 2 * value->count;
        break;
    case PAML_NONE:
    case PAML_STRING:
    case PAML_BYTES:
        break;
    default: /* a number could be an aggregate over everybody's rows */
        if (!is_key || value->kind == PAML_OBJECT) {
            return paml_fail(scattering->err, PAML_ERR_BACKEND,
                             "the model gives %s among its outputs, expected tensors "
                             "of %lld rows: " MUST_FOLLOW,
                             paml_kind_name((int)value->kind),
                             (long long)scattering->batcher->rows);
        }
    }
    for (uint32_t i = 0; i < items && code == PAML_OK; i++) {
        code = check_value(scattering, values, at, tensors,
                           value->kind == PAML_DICT && i % 2 == 0);
    }
    return code;
}

/* --- taking apart --- */

static int
no_memory(const struct scattering *scattering)
{
    return paml_fail(scattering->err, PAML_ERR_MEMORY,
                     "no memory for the outputs of a batch of %lld rows",
                     (long long)scattering->batcher->rows);
}

/* The rows [row, …) of output tensor `at` that are the slice's, without padding. */
static DLTensor
part_of(const struct scattering *scattering, const DLTensor *whole, uint32_t at,
        const struct paml_slice *slice, int64_t row, int64_t *dims)
{
    const struct paml_batching *batching = scattering->batching;
    DLTensor part = paml_tensor_narrow(whole, paml_output_axis(batching, at), row,
                                       row + slice->to - slice->from, dims);

    for (uint32_t k = 0; k < batching->n_padded; k++) {
        const struct paml_padded_axis *padded = &batching->padded[k];
        for (uint32_t i = 0; i < padded->n_outputs; i++) {
            if (padded->outputs[i].position == at &&
                scattering->batcher->lengths[k] >= 0) {
                part.shape[padded->outputs[i].axis] = slice->op->lengths[k];
            }
        }
    }
    return part;
}

/* The only slice's: padding is cut off by a view. `value` stays where it is. */
static int
unpad(const struct scattering *scattering, struct paml_value *value, uint32_t at)
{
    int64_t dims[2 * PAML_MAX_RANK];
    DLTensor part =
        part_of(scattering, &value->tensor, at, &scattering->slices[0], 0, dims);
    struct shared *shared;
    int status;

    if (memcmp(part.shape, value->tensor.shape, (size_t)part.ndim * sizeof(int64_t)) ==
        0) {
        return PAML_OK;
    }
    shared = shared_new(value);
    if (shared == NULL) {
        return no_memory(scattering);
    }
    status = view_new(shared, &part, value);
    shared_unref(shared); /* the view has its own; without a view, that was all */
    return status < 0 ? no_memory(scattering) : PAML_OK;
}

/* Gives every slice its part of tensor whole, the slices' values[index]. */
static int
scatter_tensor(const struct scattering *scattering, struct paml_value *whole,
               uint32_t index, uint32_t at)
{
    int64_t dims[2 * PAML_MAX_RANK], row = 0;
    size_t bytes = paml_tensor_nbytes(&whole->tensor);
    struct shared *shared = NULL;
    int code = PAML_OK;

    for (uint32_t s = 0; s < scattering->n && code == PAML_OK; s++) {
        struct paml_slice *slice = &scattering->slices[s];
        struct paml_value *value = &slice->outputs.values[index];
        DLTensor part = part_of(scattering, &whole->tensor, at, slice, row, dims);
        size_t part_bytes = paml_tensor_nbytes(&part);

        if (whole->tensor.device.device_type == kDLCPU &&
            part_bytes < (bytes + VIEW_FRACTION - 1) / VIEW_FRACTION) {
            if (paml_tensor_clone(&part, value) < 0) {
                code = no_memory(scattering);
            }
        } else if ((shared == NULL && (shared = shared_new(whole)) == NULL) ||
                   view_new(shared, &part, value) < 0) {
            code = no_memory(scattering);
        }
        row += slice->to - slice->from;
    }
    if (shared != NULL) {
        shared_unref(shared);
    }
    return code;
}

/* Gives every slice a copy of what isn't a tensor. */
static int
scatter_other(const struct scattering *scattering, const struct paml_value *whole,
              uint32_t index)
{
    bool text = whole->kind == PAML_STRING || whole->kind == PAML_BYTES;

    for (uint32_t s = 0; s < scattering->n; s++) {
        struct paml_value *value = &scattering->slices[s].outputs.values[index];
        char *data = NULL;

        if (text && whole->string.size > 0) {
            data = malloc(whole->string.size);
            if (data == NULL) {
                return no_memory(scattering);
            }
            memcpy(data, whole->string.data, whole->string.size);
        }
        *value = *whole;
        value->owner = data;
        value->release = data != NULL ? free : NULL;
        if (data != NULL) {
            value->string.data = data;
        }
    }
    return PAML_OK;
}

static int
scatter_values(const struct scattering *scattering, struct paml_outputs *whole)
{
    uint32_t tensors = 0;
    int code = PAML_OK;

    if (scattering->n > 1) {
        for (uint32_t s = 0; s < scattering->n; s++) {
            if (paml_outputs_append(&scattering->slices[s].outputs, whole->count) ==
                NULL) {
                return no_memory(scattering);
            }
        }
    }
    for (uint32_t i = 0; i < whole->count && code == PAML_OK; i++) {
        struct paml_value *value = &whole->values[i];
        bool is_tensor = value->kind == PAML_TENSOR;

        if (scattering->n > 1) {
            code = is_tensor ? scatter_tensor(scattering, value, i, tensors)
                             : scatter_other(scattering, value, i);
        } else if (is_tensor && scattering->batching->n_padded > 0) {
            code = unpad(scattering, value, tensors);
        }
        tensors += is_tensor;
    }
    if (scattering->n == 1 && code == PAML_OK) {
        paml_outputs_move(whole, &scattering->slices[0].outputs);
    }
    return code;
}

/* Thread: worker, the batcher's. GIL: not held. Locks: none. */
int
paml_batch_scatter(struct paml_batcher *batcher, const struct paml_batching *batching,
                   struct paml_slice *slices, uint32_t n, struct paml_outputs *whole,
                   struct paml_error *err)
{
    struct scattering scattering = {batcher, batching, slices, n, err};
    uint32_t at = 0, tensors = 0;
    int code = PAML_OK;

    for (uint32_t s = 0; s < n; s++) {
        paml_outputs_init(&slices[s].outputs);
    }
    while (at < whole->count && code == PAML_OK) {
        code = check_value(&scattering, whole->values, &at, &tensors, false);
    }
    if (code == PAML_OK) {
        code = scatter_values(&scattering, whole);
    }
    if (code != PAML_OK) {
        for (uint32_t s = 0; s < n; s++) {
            paml_outputs_clear(&slices[s].outputs);
        }
    }
    paml_outputs_clear(whole);
    return code;
}
