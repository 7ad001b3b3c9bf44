/* The outputs of a request that was cut, from those of its slices. */
#include "batch.h"

#include <string.h>

#include "axes.h"

/* Whether two parts may be one value: the same structure, tensors that differ along
   the batch axis at most, and everything else alike. */
static bool
values_fit(const struct paml_value *a, const struct paml_value *b, int32_t batch_axis)
{
    if (a->kind != b->kind || a->count != b->count) {
        return false;
    }
    switch (a->kind) {
    case PAML_TENSOR:
        if (memcmp(&a->tensor.dtype, &b->tensor.dtype, sizeof(a->tensor.dtype)) != 0 ||
            a->tensor.ndim != b->tensor.ndim || batch_axis >= a->tensor.ndim) {
            return false;
        }
        for (int32_t axis = 0; axis < a->tensor.ndim; axis++) {
            if (axis != batch_axis && a->tensor.shape[axis] != b->tensor.shape[axis]) {
                return false;
            }
        }
        return true;
    case PAML_BOOL:
    case PAML_INT:
    case PAML_FLOAT: /* keys of dicts; by their bits */
        return a->integer == b->integer;
    case PAML_STRING:
    case PAML_BYTES:
        return a->string.size == b->string.size &&
               (a->string.size == 0 ||
                memcmp(a->string.data, b->string.data, a->string.size) == 0);
    default:
        return true;
    }
}

/* Makes `to` the values[index] of all parts, which fit, one after the other. */
static int
join_tensor(const struct paml_outputs *parts, uint32_t n, uint32_t index,
            int32_t batch_axis, struct paml_value *to, struct paml_error *err)
{
    const DLTensor *first = &parts[0].values[index].tensor;
    int64_t shape[PAML_MAX_RANK], row = 0;
    char text[64];

    memcpy(shape, first->shape, (size_t)first->ndim * sizeof(int64_t));
    shape[batch_axis] = 0;
    for (uint32_t p = 0; p < n; p++) {
        const DLTensor *part = &parts[p].values[index].tensor;
        if (part->device.device_type != kDLCPU) {
            return paml_fail(
                err, PAML_ERR_BACKEND,
                "outputs are on %s: a request of more rows than batching= allows a run "
                "needs them in host memory",
                paml_device_name(part->device, text, sizeof(text)));
        }
        shape[batch_axis] += part->shape[batch_axis];
    }
    if (paml_tensor_new(to, first->dtype, first->ndim, shape) < 0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for outputs of %lld rows",
                         (long long)shape[batch_axis]);
    }
    for (uint32_t p = 0; p < n; p++) {
        const DLTensor *part = &parts[p].values[index].tensor;
        paml_tensor_place(part, &to->tensor, batch_axis, row);
        row += part->shape[batch_axis];
    }
    if (paml_dtype_is_strings(first->dtype)) {
        /* So far it points to the bytes that the parts own. */
        struct paml_value pointers = *to;
        int status = paml_tensor_clone(&pointers.tensor, to);
        paml_value_release(&pointers);
        if (status < 0) {
            memset(to, 0, sizeof(*to));
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for outputs of %lld rows",
                             (long long)row);
        }
    }
    return PAML_OK;
}

static int
misfit(struct paml_error *err)
{
    return paml_fail(err, PAML_ERR_BACKEND,
                     "the outputs for parts of a request differ in structure, dtype or "
                     "shape: batching= cut it, as it has more rows than a run may, and "
                     "can't join them");
}

/* Fills `to`, which is empty. */
static int
join_values(const struct paml_batching *batching, struct paml_outputs *parts,
            uint32_t n, struct paml_outputs *to, struct paml_error *err)
{
    uint32_t tensors = 0, count = parts[0].count;
    struct paml_value *values;
    int code = PAML_OK;

    for (uint32_t p = 1; p < n; p++) {
        if (parts[p].count != count) {
            return misfit(err);
        }
    }
    values = paml_outputs_append(to, count);
    if (values == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for %u output values", count);
    }
    for (uint32_t i = 0; i < count && code == PAML_OK; i++) {
        struct paml_value *first = &parts[0].values[i];
        int32_t batch_axis = paml_output_axis(batching, tensors);

        for (uint32_t p = 1; p < n; p++) {
            if (!values_fit(first, &parts[p].values[i], batch_axis)) {
                return misfit(err);
            }
        }
        if (first->kind == PAML_TENSOR) {
            code = join_tensor(parts, n, i, batch_axis, &values[i], err);
            tensors++;
        } else {
            values[i] = *first;
            first->release = NULL;
        }
    }
    return code;
}

/* Thread: worker. GIL: not held. Locks: none. */
int
paml_batch_join(const struct paml_batching *batching, struct paml_outputs *parts,
                uint32_t n, struct paml_outputs *to, struct paml_error *err)
{
    int code = PAML_OK;

    if (n == 1) {
        paml_outputs_move(&parts[0], to);
        return PAML_OK;
    }
    paml_outputs_init(to);
    code = join_values(batching, parts, n, to, err);
    if (code != PAML_OK) {
        paml_outputs_clear(to);
    }
    for (uint32_t p = 0; p < n; p++) {
        paml_outputs_clear(&parts[p]);
    }
    return code;
}
