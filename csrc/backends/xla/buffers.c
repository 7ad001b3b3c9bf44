#include "buffers.h"

#include <stdlib.h>
#include <string.h>

/* Thread: worker. */
void *
paml_xla_staging_reserve(struct paml_xla_staging *staging, size_t bytes)
{
    size_t capacity =
        (bytes + PAML_XLA_ALIGNMENT) / PAML_XLA_ALIGNMENT * PAML_XLA_ALIGNMENT;

    if (staging->capacity < capacity) {
        free(staging->data);
        staging->data = aligned_alloc(PAML_XLA_ALIGNMENT, capacity);
        staging->capacity = staging->data != NULL ? capacity : 0;
    }
    return staging->data;
}

static bool
is_contiguous(const DLTensor *tensor)
{
    int64_t expected = 1;

    if (tensor->strides == NULL) {
        return true;
    }
    for (int32_t i = tensor->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] != 1 && tensor->strides[i] != expected) {
            return false;
        }
        expected *= tensor->shape[i];
    }
    return true;
}

/* Copies what is strided to memory that isn't; returns where that ends. */
static char *
gather(const DLTensor *tensor, int32_t axis, const char *from, size_t item, char *to)
{
    int64_t stride;

    if (axis == tensor->ndim) {
        memcpy(to, from, item);
        return to + item;
    }
    stride = tensor->strides[axis] * (int64_t)item;
    if (axis == tensor->ndim - 1 && stride == (int64_t)item) {
        memcpy(to, from, item * (size_t)tensor->shape[axis]);
        return to + item * (size_t)tensor->shape[axis];
    }
    for (int64_t i = 0; i < tensor->shape[axis]; i++) {
        to = gather(tensor, axis + 1, from + i * stride, item, to);
    }
    return to;
}

/* Where the part's copy belongs. NULL: memory ran out. */
static char *
place_of(const struct paml_xla_array *array, const struct paml_xla_part *part,
         struct paml_xla_staging *staging)
{
    const bool batch = paml_xla_array_has_batch(array);
    char *data;

    /* All parts ask for all of it: what the others lie in stays where it is. */
    data = paml_xla_staging_reserve(staging, paml_xla_array_bytes(array, part->in_all));
    return data != NULL && batch ? data + paml_xla_array_bytes(array, part->before)
                                 : data;
}

/* Thread: worker. Locks: none. */
const void *
paml_xla_rows(const struct paml_xla_array *array, const DLTensor *tensor,
              const struct paml_xla_part *part, struct paml_xla_staging *staging)
{
    const bool batch = paml_xla_array_has_batch(array);
    const size_t item = paml_xla_dtype_size(array->dtype);
    const size_t bytes = paml_xla_array_bytes(array, part->rows);
    const size_t whole = paml_xla_array_bytes(array, part->bucket);
    const char *data = (const char *)tensor->data + tensor->byte_offset;
    DLTensor cut = *tensor;
    int64_t shape[PAML_MAX_RANK];
    char *copy;

    if (is_contiguous(tensor)) {
        data += batch ? (size_t)part->from * paml_xla_array_bytes(array, 1) : 0;
        if (bytes == whole && bytes > 0) {
            return data;
        }
        copy = place_of(array, part, staging);
        if (copy != NULL && bytes > 0) {
            memcpy(copy, data, bytes);
        }
    } else {
        if (batch) {
            memcpy(shape, tensor->shape, (size_t)tensor->ndim * sizeof(*shape));
            shape[0] = part->rows;
            cut.shape = shape;
            data += part->from * tensor->strides[0] * (int64_t)item;
        }
        copy = place_of(array, part, staging);
        /* What all parts share is there since the first, which may be reading it. */
        if (copy != NULL && bytes > 0 && (batch || part->before == 0)) {
            gather(&cut, 0, data, item, copy);
        }
    }
    if (copy != NULL) {
        memset(copy + bytes, 0, whole - bytes);
    }
    return copy;
}

/* The array's sizes with that many rows. */
static const int64_t *
dims_of(const struct paml_xla_array *array, int64_t rows, int64_t *dims)
{
    if (!paml_xla_array_has_batch(array)) {
        return array->shape;
    }
    memcpy(dims, array->shape, (size_t)array->ndim * sizeof(*dims));
    dims[0] = rows;
    return dims;
}

/* Thread: worker. Locks: the latch's. */
int
paml_xla_buffer_new(const struct paml_xla_array *array, const void *data, int64_t rows,
                    bool lasts, struct pjrt_device *device,
                    struct paml_xla_latch *latch, struct pjrt_buffer **buffer,
                    struct paml_error *err)
{
    PJRT_ARGS(buffer_from_host_buffer, from);
    int64_t dims[PAML_MAX_RANK];
    int code;

    from.client = paml_xla_client()->client;
    from.data = data;
    from.type = array->dtype->type;
    from.dims = dims_of(array, rows, dims);
    from.n_dims = (size_t)array->ndim;
    from.semantics = !lasts ? PJRT_IMMUTABLE_ONLY_DURING_CALL
                     : (uintptr_t)data % PAML_XLA_ALIGNMENT == 0
                         ? PJRT_IMMUTABLE_ZERO_COPY
                         : PJRT_IMMUTABLE_UNTIL_TRANSFER_COMPLETES;
    from.device = device;
    code = paml_xla_report(paml_xla_client()->api,
                           paml_xla_call(PJRT_CLIENT_BUFFER_FROM_HOST_BUFFER, &from),
                           PAML_ERR_BACKEND, "XLA can't take an input", err);
    if (code == PAML_OK) {
        *buffer = from.buffer;
        paml_xla_latch_add(latch, from.done_with_host_buffer);
    }
    return code;
}

void
paml_xla_buffer_destroy(struct pjrt_buffer *buffer)
{
    PJRT_ARGS(buffer_destroy, destroy);
    struct paml_error ignored;

    if (buffer != NULL) {
        destroy.buffer = buffer;
        paml_xla_report(paml_xla_client()->api,
                        paml_xla_call(PJRT_BUFFER_DESTROY, &destroy), PAML_ERR_BACKEND,
                        "", &ignored);
    }
}

/* Thread: worker. Locks: the latch's. */
int
paml_xla_buffer_fetch(struct pjrt_buffer *buffer, const struct paml_xla_array *array,
                      int64_t rows, void *to, struct paml_xla_latch *latch,
                      struct paml_error *err)
{
    PJRT_ARGS(buffer_to_host_buffer, fetch);
    struct pjrt_layout layout = {.struct_size = sizeof(layout)};
    int64_t minor_to_major[PAML_MAX_RANK];
    int code;

    /* Said, since a device may have it otherwise: TPUs do. */
    for (int32_t i = 0; i < array->ndim; i++) {
        minor_to_major[i] = array->ndim - 1 - i;
    }
    layout.tiled.struct_size = sizeof(layout.tiled);
    layout.tiled.minor_to_major = minor_to_major;
    layout.tiled.n_minor_to_major = (size_t)array->ndim;
    fetch.buffer = buffer;
    fetch.layout = &layout;
    fetch.to = to;
    fetch.to_size = paml_xla_array_bytes(array, rows);
    code = paml_xla_report(paml_xla_client()->api,
                           paml_xla_call(PJRT_BUFFER_TO_HOST_BUFFER, &fetch),
                           PAML_ERR_BACKEND, "XLA can't give an output", err);
    if (code == PAML_OK) {
        paml_xla_latch_add(latch, fetch.event);
    }
    return code;
}

int
paml_xla_output_new(const struct paml_xla_array *array, int64_t rows,
                    struct paml_value *value)
{
    /* The shape, then the data: one allocation. */
    size_t head = ((size_t)array->ndim * sizeof(int64_t) + PAML_XLA_ALIGNMENT) /
                  PAML_XLA_ALIGNMENT * PAML_XLA_ALIGNMENT;
    size_t bytes = paml_xla_array_bytes(array, rows);
    char *block = aligned_alloc(PAML_XLA_ALIGNMENT,
                                head + (bytes + PAML_XLA_ALIGNMENT) /
                                           PAML_XLA_ALIGNMENT * PAML_XLA_ALIGNMENT);

    if (block == NULL) {
        return -1;
    }
    memset(value, 0, sizeof(*value));
    value->kind = PAML_TENSOR;
    value->tensor.data = block + head;
    value->tensor.device = (DLDevice){kDLCPU, 0};
    value->tensor.dtype = array->dtype->dlpack;
    value->tensor.ndim = array->ndim;
    value->tensor.shape = (int64_t *)block;
    if (array->ndim > 0) {
        memcpy(block, array->shape, (size_t)array->ndim * sizeof(int64_t));
        if (array->shape[0] == PAML_XLA_BATCH) {
            value->tensor.shape[0] = rows;
        }
    }
    value->owner = block;
    value->release = free;
    return 0;
}
