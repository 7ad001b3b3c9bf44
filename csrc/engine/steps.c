#include "steps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t
paml_steps_per_epoch(int64_t epoch_rows, int64_t batch_rows)
{
    return (epoch_rows + batch_rows - 1) / batch_rows;
}

static size_t
row_bytes(const DLTensor *array)
{
    int64_t elements = 1;

    for (int32_t i = 1; i < array->ndim; i++) {
        elements *= array->shape[i];
    }
    return paml_dtype_bytes(array->dtype, elements);
}

/* A buffer of batch_rows rows. */
static int
new_batch(struct paml_value *value, const DLTensor *array, int64_t batch_rows)
{
    int64_t shape[PAML_MAX_RANK];

    memcpy(shape, array->shape, (size_t)array->ndim * sizeof(*shape));
    shape[0] = batch_rows;
    return paml_tensor_new(value, array->dtype, array->ndim, shape);
}

int
paml_steps_init(struct paml_steps *steps, struct paml_error *err)
{
    size_t n_values = (size_t)steps->n_steps * steps->n_values;

    atomic_init(&steps->limit, steps->n_steps);
    atomic_init(&steps->done, 0);
    atomic_init(&steps->stop_at, INT64_MAX);
    atomic_init(&steps->watcher, NULL);
    atomic_init(&steps->interval_ns, 0);
    steps->told_ns = 0;
    steps->made_way_ns = 0;
    steps->values = calloc(n_values > 0 ? n_values : 1, sizeof(double));
    steps->batch = calloc(steps->n_arrays, sizeof(*steps->batch));
    if (steps->values == NULL || steps->batch == NULL) {
        goto fail;
    }
    for (uint32_t i = 0; i < steps->n_arrays; i++) {
        if (new_batch(&steps->batch[i], &steps->arrays[i], steps->batch_rows) < 0) {
            goto fail;
        }
    }
    return PAML_OK;

fail:
    paml_steps_destroy(steps);
    return paml_fail(err, PAML_ERR_MEMORY, "no memory for the batches of %lld steps",
                     (long long)steps->n_steps);
}

void
paml_steps_destroy(struct paml_steps *steps)
{
    for (uint32_t i = 0; steps->batch != NULL && i < steps->n_arrays; i++) {
        paml_value_release(&steps->batch[i]);
    }
    free(steps->batch);
    free(steps->values);
    steps->batch = NULL;
    steps->values = NULL;
}

static int64_t
steps_done(const struct paml_steps *steps)
{
    return atomic_load_explicit(&steps->done, memory_order_relaxed);
}

/* Thread: worker, or the maker while the op isn't in flight. Locks: none. */
bool
paml_steps_ended(const struct paml_steps *steps)
{
    int64_t done = steps_done(steps);

    if (done >= atomic_load_explicit(&steps->limit, memory_order_acquire) ||
        done >= atomic_load_explicit(&steps->stop_at, memory_order_relaxed)) {
        return true;
    }
    return steps->stop_when_not_finite && done > 0 &&
           !isfinite(steps->values[(done - 1) * steps->n_values + steps->loss]);
}

static void
gather_rows(const struct paml_steps *steps, const DLTensor *array, int64_t from,
            int64_t rows, char *to)
{
    const char *data = (const char *)array->data + array->byte_offset;
    size_t size = row_bytes(array);

    if (steps->order == NULL) {
        memcpy(to, data + (size_t)(from % steps->epoch_rows) * size,
               (size_t)rows * size);
        return;
    }
    for (int64_t i = 0; i < rows; i++) {
        memcpy(to + (size_t)i * size, data + (size_t)steps->order[from + i] * size,
               size);
    }
}

static void
column_input(const struct paml_steps *steps, int64_t step, uint32_t column,
             struct paml_value *input)
{
    memset(input, 0, sizeof(*input));
    input->kind = PAML_TENSOR;
    input->tensor.data =
        (void *)&steps->table[(size_t)step * steps->n_columns + column];
    input->tensor.device = (DLDevice){kDLCPU, 0};
    input->tensor.dtype = (DLDataType){kDLFloat, 64, 1};
}

/* Thread: worker. GIL: not held. Locks: none. */
void
paml_steps_prepare(struct paml_steps *steps, struct paml_op *op)
{
    int64_t step = steps_done(steps);
    int64_t per_epoch = paml_steps_per_epoch(steps->epoch_rows, steps->batch_rows);
    int64_t first = (step % per_epoch) * steps->batch_rows;
    int64_t left = steps->epoch_rows - first;
    int64_t rows = left < steps->batch_rows ? left : steps->batch_rows;
    int64_t from = (step / per_epoch) * steps->epoch_rows + first;

    for (uint32_t i = 0; i < steps->n_columns; i++) {
        column_input(steps, step, i, &op->inputs[i]);
    }
    for (uint32_t i = 0; i < steps->n_arrays; i++) {
        struct paml_value *input = &op->inputs[steps->n_columns + i];

        steps->batch[i].tensor.shape[0] = rows;
        gather_rows(steps, &steps->arrays[i], from, rows, steps->batch[i].tensor.data);
        *input = steps->batch[i];
        input->owner = NULL; /* the buffer stays ours */
        input->release = NULL;
    }
}

static double
half_to_double(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double magnitude = exponent == 0    ? ldexp(fraction, -24)
                       : exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                                        : ldexp(fraction + 1024, exponent - 25);

    return bits >> 15 ? -magnitude : magnitude;
}

static double
bfloat_to_double(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;

    memcpy(&value, &wide, sizeof(value));
    return value;
}

/* The number that the value is. False: it isn't one. */
static bool
read_number(const struct paml_value *value, double *number)
{
    const DLTensor *tensor = &value->tensor;
    const void *data;

    if (value->kind == PAML_FLOAT) {
        *number = value->real;
        return true;
    }
    if (value->kind == PAML_INT || value->kind == PAML_BOOL) {
        *number = (double)value->integer;
        return true;
    }
    if (value->kind != PAML_TENSOR || paml_tensor_elements(tensor) != 1 ||
        tensor->device.device_type != kDLCPU || tensor->dtype.lanes != 1) {
        return false;
    }
    data = (const char *)tensor->data + tensor->byte_offset;
    switch (tensor->dtype.code << 8 | tensor->dtype.bits) {
    case kDLFloat << 8 | 64:
        *number = *(const double *)data;
        return true;
    case kDLFloat << 8 | 32:
        *number = *(const float *)data;
        return true;
    case kDLFloat << 8 | 16:
        *number = half_to_double(*(const uint16_t *)data);
        return true;
    case kDLBfloat << 8 | 16:
        *number = bfloat_to_double(*(const uint16_t *)data);
        return true;
    case kDLInt << 8 | 64:
        *number = (double)*(const int64_t *)data;
        return true;
    case kDLInt << 8 | 32:
        *number = *(const int32_t *)data;
        return true;
    default:
        return false;
    }
}

/* Thread: worker. GIL: not held. Locks: none. */
int
paml_steps_note(struct paml_steps *steps, const struct paml_outputs *outputs,
                struct paml_error *err)
{
    int64_t step = steps_done(steps);
    double *row = steps->values + step * steps->n_values;
    uint32_t found = 0;

    for (uint32_t i = 0; i < outputs->count && found < steps->n_values; i++) {
        uint32_t kind = outputs->values[i].kind;
        if (kind == PAML_TUPLE || kind == PAML_LIST || kind == PAML_DICT ||
            kind == PAML_STRING) {
            continue; /* what it holds follows; a dict's key */
        }
        if (!read_number(&outputs->values[i], &row[found])) {
            return paml_fail(err, PAML_ERR_BACKEND,
                             "a step's value %u is no number but %s", found,
                             kind == PAML_TENSOR ? "a tensor of several elements"
                                                 : paml_kind_name((int)kind));
        }
        found++;
    }
    if (found < steps->n_values) {
        return paml_fail(err, PAML_ERR_BACKEND,
                         "a step gave %u values where %u were expected", found,
                         steps->n_values);
    }
    atomic_store_explicit(&steps->done, step + 1, memory_order_release);
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: none. */
struct paml_op *
paml_steps_take_watcher(struct paml_steps *steps, int64_t now_ns, bool last)
{
    struct paml_op *watcher;

    /* Relaxed: only whether it is worth the exchange. */
    if (atomic_load_explicit(&steps->watcher, memory_order_relaxed) == NULL ||
        (!last &&
         now_ns - steps->told_ns <
             atomic_load_explicit(&steps->interval_ns, memory_order_relaxed))) {
        return NULL;
    }
    /* acquire: pairs with the release that put it there, for the op's contents. */
    watcher = atomic_exchange_explicit(&steps->watcher, NULL, memory_order_acquire);
    steps->told_ns = now_ns;
    return watcher;
}
