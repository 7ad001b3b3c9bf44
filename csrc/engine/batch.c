/* The inputs of a run from those of its requests. */
#include "batch.h"

#include <stdlib.h>
#include <string.h>

#include "axes.h"

#define ALIGNMENT 64
#define NO_MASK UINT32_MAX

void
paml_batcher_init(struct paml_batcher *batcher)
{
    memset(batcher, 0, sizeof(*batcher));
}

void
paml_batcher_destroy(struct paml_batcher *batcher)
{
    for (uint32_t i = 0; i < batcher->n_values; i++) {
        free(batcher->buffers[i].data);
    }
    free(batcher->buffers);
    free(batcher->values);
    free(batcher->dims);
    paml_batcher_init(batcher);
}

/* Room for that many values and dims. -1: memory ran out. */
static int
batcher_reserve(struct paml_batcher *batcher, uint32_t n_values, uint32_t n_dims)
{
    if (n_values > batcher->n_values) {
        struct paml_value *values =
            realloc(batcher->values, n_values * sizeof(*values));
        struct paml_staging *buffers;

        if (values == NULL) {
            return -1;
        }
        batcher->values = values;
        buffers = realloc(batcher->buffers, n_values * sizeof(*buffers));
        if (buffers == NULL) {
            return -1;
        }
        batcher->buffers = buffers;
        memset(buffers + batcher->n_values, 0,
               (n_values - batcher->n_values) * sizeof(*buffers));
        batcher->n_values = n_values;
    }
    if (n_dims > batcher->n_dims) {
        int64_t *dims = realloc(batcher->dims, n_dims * sizeof(*dims));

        if (dims == NULL) {
            return -1;
        }
        batcher->dims = dims;
        batcher->n_dims = n_dims;
    }
    return 0;
}

/* The buffer with room for the tensor, or NULL when memory ran out. */
static void *
staging_for(struct paml_staging *staging, const DLTensor *tensor)
{
    int64_t bytes = (int64_t)paml_dtype_bytes(tensor->dtype, 1);
    size_t capacity;

    for (int32_t i = 0; i < tensor->ndim; i++) {
        /* Padding can make more of a tensor than any memory holds. */
        if (__builtin_mul_overflow(bytes, tensor->shape[i], &bytes)) {
            return NULL;
        }
    }
    if (staging->data == NULL || (size_t)bytes > staging->capacity) {
        /* Half as much again, so that batches that grow row by row settle soon. */
        capacity = staging->capacity + staging->capacity / 2;
        capacity = (size_t)bytes > capacity ? (size_t)bytes : capacity;
        capacity = (capacity + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
        free(staging->data);
        staging->capacity = 0;
        staging->data = aligned_alloc(ALIGNMENT, capacity);
        if (staging->data == NULL) {
            return NULL;
        }
        staging->capacity = capacity;
    }
    return staging->data;
}

/* What one gather works with. */
struct gathering {
    struct paml_batcher *batcher;
    const struct paml_batching *batching;
    const struct paml_slice *slices;
    uint32_t n;
    uint32_t mask;   /* the argument to make, or NO_MASK */
    uint32_t uneven; /* bit k: some slice is shorter than the batch along axis k */
    int64_t *dims;   /* the next free ones */
    struct paml_error *err;
};

/* Finds the batch's rows and lengths, and counts its cells. */
static void
gather_measure(struct gathering *gathering)
{
    const struct paml_batching *batching = gathering->batching;
    struct paml_batcher *batcher = gathering->batcher;
    const struct paml_slice *slice, *end = gathering->slices + gathering->n;

    batcher->rows = 0;
    batcher->cells = batcher->real_cells = 0;
    gathering->uneven = 0;
    for (slice = gathering->slices; slice < end; slice++) {
        batcher->rows += slice->to - slice->from;
    }
    for (uint32_t k = 0; k < batching->n_padded; k++) {
        int64_t longest = -1;

        for (slice = gathering->slices; slice < end; slice++) {
            int64_t length = slice->op->lengths[k];
            longest = length > longest ? length : longest;
        }
        batcher->lengths[k] =
            longest >= 0 ? paml_padded_length(&batching->padded[k], longest) : -1;
        for (slice = gathering->slices; slice < end; slice++) {
            if (slice->op->lengths[k] != batcher->lengths[k]) {
                gathering->uneven |= 1u << k;
            }
        }
    }
    if (batching->n_padded > 0) {
        batcher->cells = batcher->rows * paml_padded_cells(batching, batcher->lengths);
        for (slice = gathering->slices; slice < end; slice++) {
            batcher->real_cells += (slice->to - slice->from) *
                                   paml_padded_cells(batching, slice->op->lengths);
        }
    }
}

/* The argument that the engine must make, or NO_MASK. */
static uint32_t
gather_mask_argument(const struct gathering *gathering)
{
    const struct paml_batching *batching = gathering->batching;
    const struct paml_op *op = gathering->slices[0].op;
    struct paml_walk walk = {0, 1, false};
    uint32_t mask = (uint32_t)batching->mask_argument;
    uint32_t i = 0;

    if (batching->n_padded == 0 || batching->mask_argument < 0 || op->lengths[0] < 0) {
        return NO_MASK;
    }
    if (mask >= op->n_arguments) {
        return mask; /* left out at the end */
    }
    while (walk.argument < mask) {
        paml_walk_step(&walk, &op->inputs[i++]);
    }
    return op->inputs[i].kind == PAML_NONE && op->inputs[i].count == PAML_ABSENT
               ? mask
               : NO_MASK;
}

/* Turns values[at], a copy of the first slice's, into the batch's tensor.
   Thread: worker. Locks: none. */
static int
gather_tensor(struct gathering *gathering, uint32_t at, uint32_t argument)
{
    const struct paml_batching *batching = gathering->batching;
    const struct paml_slice *slices = gathering->slices;
    struct paml_batcher *batcher = gathering->batcher;
    DLTensor *whole = &batcher->values[at].tensor;
    int32_t axis = paml_input_axis(batching, argument), ndim = whole->ndim;
    int64_t *shape = gathering->dims, row = 0, row_elements, outer;
    size_t item = paml_dtype_bytes(whole->dtype, 1);
    bool uneven = false;
    char device[64], name[PAML_INPUT_TEXT];

    for (int32_t i = 0; i < ndim; i++) {
        int k = batching->n_padded > 0 ? paml_padded_input(batching, argument, i) : -1;
        shape[i] = k < 0 ? whole->shape[i] : batcher->lengths[k];
        uneven = uneven || (k >= 0 && (gathering->uneven & 1u << k) != 0);
    }
    shape[axis] = batcher->rows;
    outer = paml_axes_product(shape, 0, axis);
    if (gathering->n == 1 && !uneven) {
        if (batcher->rows == slices->op->rows) {
            return PAML_OK;
        }
        if (outer == 1) {
            *whole = paml_tensor_narrow(whole, axis, slices->from, slices->to, shape);
            gathering->dims += 2 * ndim;
            return PAML_OK;
        }
    }
    if (whole->device.device_type != kDLCPU) {
        return paml_fail(gathering->err, PAML_ERR_BACKEND,
                         "input %s is on %s: requests that are batched, padded or cut "
                         "need their inputs in host memory",
                         paml_input_text(batching, argument, name, sizeof(name)),
                         paml_device_name(whole->device, device, sizeof(device)));
    }
    whole->shape = shape;
    whole->strides = NULL;
    whole->byte_offset = 0;
    whole->data = staging_for(&batcher->buffers[at], whole);
    gathering->dims += ndim;
    if (whole->data == NULL) {
        return paml_fail(gathering->err, PAML_ERR_MEMORY,
                         "no memory for a batch of %lld rows of input %s",
                         (long long)batcher->rows,
                         paml_input_text(batching, argument, name, sizeof(name)));
    }
    row_elements = paml_axes_product(shape, axis + 1, ndim);
    if (uneven) {
        paml_pad(whole->data, whole->dtype,
                 argument < batching->n_fills ? batching->fills[argument] : 0,
                 outer * batcher->rows * row_elements);
    }
    for (uint32_t s = 0; s < gathering->n; s++) {
        const DLTensor *from = &slices[s].op->inputs[at].tensor;
        int64_t rows = slices[s].to - slices[s].from;

        if (outer == 1 && !uneven && paml_tensor_is_contiguous(from)) {
            size_t row_bytes = (size_t)row_elements * item;
            if (row_bytes > 0) {
                memcpy((char *)whole->data + (size_t)row * row_bytes,
                       (const char *)from->data + from->byte_offset +
                           (size_t)slices[s].from * row_bytes,
                       (size_t)rows * row_bytes);
            }
        } else {
            int64_t dims[2 * PAML_MAX_RANK];
            DLTensor part =
                paml_tensor_narrow(from, axis, slices[s].from, slices[s].to, dims);
            paml_tensor_place(&part, whole, axis, row);
        }
        row += rows;
    }
    return PAML_OK;
}

/* Makes the mask at values[at]. Thread: worker. Locks: none. */
static int
gather_mask(struct gathering *gathering, uint32_t at)
{
    const struct paml_batching *batching = gathering->batching;
    struct paml_batcher *batcher = gathering->batcher;
    struct paml_value *value = &batcher->values[at];
    size_t item = paml_dtype_bytes(batching->mask_dtype, 1);
    int64_t length = batcher->lengths[0], *shape = gathering->dims;
    char text[64], name[PAML_INPUT_TEXT], *out;

    if (!paml_pad_holds(batching->mask_dtype, 1)) {
        return paml_fail(gathering->err, PAML_ERR_BACKEND,
                         "the mask, input %s, can't be made as %s",
                         paml_input_text(batching, gathering->mask, name, sizeof(name)),
                         paml_dtype_name(batching->mask_dtype, text, sizeof(text)));
    }
    shape[0] = batcher->rows;
    shape[1] = length;
    gathering->dims += 2;
    value->kind = PAML_TENSOR;
    value->count = 0;
    value->tensor = (DLTensor){.device = {kDLCPU, 0},
                               .ndim = 2,
                               .dtype = batching->mask_dtype,
                               .shape = shape};
    out = value->tensor.data = staging_for(&batcher->buffers[at], &value->tensor);
    if (out == NULL) {
        return paml_fail(gathering->err, PAML_ERR_MEMORY,
                         "no memory for a mask of %lld rows", (long long)batcher->rows);
    }
    for (uint32_t s = 0; s < gathering->n; s++) {
        const struct paml_slice *slice = &gathering->slices[s];
        int64_t real = slice->op->lengths[0];

        for (int64_t row = slice->from; row < slice->to; row++) {
            paml_pad(out, batching->mask_dtype, 1, real);
            out += (size_t)real * item;
            paml_pad(out, batching->mask_dtype, 0, length - real);
            out += (size_t)(length - real) * item;
        }
    }
    return PAML_OK;
}

/* Fills the batcher's values, for which there is room. */
static int
gather_values(struct gathering *gathering, uint32_t n_values)
{
    const struct paml_op *op = gathering->slices[0].op;
    struct paml_walk walk = {0, 1, false};
    int code = PAML_OK;

    for (uint32_t i = 0; i < n_values && code == PAML_OK; i++) {
        struct paml_value *value = &gathering->batcher->values[i];

        if (i < op->n_inputs) {
            *value = op->inputs[i];
        } else {
            *value = (struct paml_value){.kind = PAML_NONE, .count = PAML_ABSENT};
        }
        value->owner = NULL;
        value->release = NULL;
        if (walk.argument == gathering->mask) {
            code = gather_mask(gathering, i);
        } else if (value->kind == PAML_TENSOR && value->tensor.ndim > 0) {
            code = gather_tensor(gathering, i, walk.argument);
        }
        paml_walk_step(&walk, value);
    }
    return code;
}

/* Thread: worker, the batcher's. GIL: not held. Locks: none. */
int
paml_batch_gather(struct paml_batcher *batcher, const struct paml_batching *batching,
                  const struct paml_slice *slices, uint32_t n, struct paml_run *run,
                  struct paml_error *err)
{
    const struct paml_op *op = slices[0].op;
    struct gathering gathering = {
        .batcher = batcher, .batching = batching, .slices = slices, .n = n, .err = err};
    uint32_t n_values = op->n_inputs, n_arguments = op->n_arguments, n_dims = 2;

    gather_measure(&gathering);
    gathering.mask = gather_mask_argument(&gathering);
    if (n == 1 && batcher->rows == op->rows && gathering.uneven == 0 &&
        gathering.mask == NO_MASK) {
        run->inputs = op->inputs;
        run->n_inputs = op->n_inputs;
        run->n_arguments = op->n_arguments;
        return PAML_OK;
    }
    if (gathering.mask != NO_MASK && gathering.mask >= n_arguments) {
        n_values += gathering.mask + 1 - n_arguments;
        n_arguments = gathering.mask + 1;
    }
    for (uint32_t i = 0; i < op->n_inputs; i++) {
        if (op->inputs[i].kind == PAML_TENSOR) {
            n_dims += 2 * (uint32_t)op->inputs[i].tensor.ndim;
        }
    }
    if (batcher_reserve(batcher, n_values, n_dims) < 0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a batch of %u inputs",
                         n_values);
    }
    gathering.dims = batcher->dims;
    run->inputs = batcher->values;
    run->n_inputs = n_values;
    run->n_arguments = n_arguments;
    return gather_values(&gathering, n_values);
}
