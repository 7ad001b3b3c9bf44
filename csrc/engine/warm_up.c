/* First runs are slow: kernels are picked, graphs specialised. They are made before
 * anybody waits, in each shape that batches will have, and tell what such runs cost.
 */
#include <stdlib.h>
#include <string.h>

#include "axes.h"
#include "clock.h"
#include "serve.h"

/* What is warmed up, and with what. */
struct warming {
    struct paml_worker *worker;
    const struct paml_batching *batching; /* NULL: requests run alone */
    void *instance;
    int runs; /* of each size */
    struct paml_error *error;
};

/* So many copies of the op in one run. */
static int
warm_size(const struct warming *warming, const struct paml_op *op,
          const struct paml_slice *slices, uint32_t copies)
{
    struct paml_worker *worker = warming->worker;
    struct paml_outputs outputs;
    int64_t begun, rows = (int64_t)copies * (op->rows > 0 ? op->rows : 1);
    int code = PAML_OK;

    for (int i = 0; i < warming->runs && code == PAML_OK; i++) {
        struct paml_run run = {.inputs = op->inputs,
                               .n_inputs = op->n_inputs,
                               .n_arguments = op->n_arguments,
                               .outputs = &outputs};
        if (warming->batching != NULL) {
            code = paml_batch_gather(&worker->batcher, warming->batching, slices,
                                     copies, &run, warming->error);
        }
        if (code != PAML_OK) {
            break;
        }
        paml_outputs_init(&outputs);
        begun = paml_now_ns();
        code = worker->model->backend->run(warming->instance, &run, warming->error);
        worker->last_run_ns = paml_now_ns();
        paml_outputs_clear(&outputs);
        if (code == PAML_OK && i == warming->runs - 1) {
            paml_cost_observe(&worker->cost, paml_batch_cost_key(warming->batching, op),
                              rows, worker->last_run_ns - begun);
        }
    }
    return code;
}

/* One copy, two, four, … and a full batch. */
static int
warm_op(const struct warming *warming, struct paml_op *op)
{
    const struct paml_batching *batching = warming->batching;
    uint32_t copies = 1, most = 1;
    struct paml_slice *slices;
    int code;

    if (batching != NULL && op->batch_key != 0 && op->rows < batching->max_rows) {
        most = (uint32_t)(batching->max_rows / op->rows);
    }
    slices = calloc(most, sizeof(*slices));
    if (slices == NULL) {
        return paml_fail(warming->error, PAML_ERR_MEMORY, "no memory for the warm-up");
    }
    for (uint32_t i = 0; i < most; i++) {
        slices[i].op = op;
        slices[i].to = op->rows;
    }
    while ((code = warm_size(warming, op, slices, copies)) == PAML_OK &&
           copies < most) {
        copies = copies <= most / 2 ? 2 * copies : most;
    }
    free(slices);
    return code;
}

/* The tensor with one axis of another size, all zeros. */
static int
stretch(struct paml_value *value, int32_t axis, int64_t size)
{
    int64_t shape[PAML_MAX_RANK];
    const DLTensor *tensor = &value->tensor;

    memcpy(shape, tensor->shape, (size_t)tensor->ndim * sizeof(*shape));
    shape[axis] = size;
    if (paml_tensor_new(value, tensor->dtype, tensor->ndim, shape) < 0) {
        return -1;
    }
    memset(value->tensor.data, 0,
           paml_dtype_bytes(tensor->dtype, paml_tensor_elements(tensor)));
    return 0;
}

/* The example as it would be in a bucket, in `op`, whose inputs have room for it. */
static int
stretch_example(const struct warming *warming, const struct paml_op *example,
                int64_t length, struct paml_op *op)
{
    struct paml_walk walk = {0, 1, false};

    for (uint32_t i = 0; i < example->n_inputs; i++) {
        struct paml_value *value = &op->inputs[op->n_inputs++];
        *value = example->inputs[i];
        value->owner = NULL;
        value->release = NULL;
        for (int32_t axis = 0; value->kind == PAML_TENSOR && axis < value->tensor.ndim;
             axis++) {
            if (paml_padded_input(warming->batching, walk.argument, axis) == 0 &&
                stretch(value, axis, length) < 0) {
                return paml_fail(warming->error, PAML_ERR_MEMORY,
                                 "no memory for the warm-up");
            }
        }
        paml_walk_step(&walk, value);
    }
    op->n_arguments = example->n_arguments;
    return paml_batch_classify(warming->batching, op, warming->error);
}

static int
warm_bucket(const struct warming *warming, const struct paml_op *example,
            int64_t length)
{
    struct paml_op op;
    int code;

    paml_op_init(&op, NULL);
    op.inputs = calloc(example->n_inputs, sizeof(*op.inputs));
    if (op.inputs == NULL) {
        return paml_fail(warming->error, PAML_ERR_MEMORY, "no memory for the warm-up");
    }
    code = stretch_example(warming, example, length, &op);
    if (code == PAML_OK) {
        code = warm_op(warming, &op);
    }
    for (uint32_t i = 0; i < op.n_inputs; i++) {
        paml_value_release(&op.inputs[i]);
    }
    free(op.inputs);
    paml_op_clear(&op);
    return code;
}

/* Thread: the worker's. GIL: never. Locks: none. */
int
paml_serve_warm_up(struct paml_worker *worker, void *instance,
                   const struct paml_op *example, int runs, struct paml_error *error)
{
    const struct paml_batching *batching = &worker->model->batching;
    struct warming warming = {.worker = worker,
                              .batching = batching->max_rows > 0 ? batching : NULL,
                              .instance = instance,
                              .runs = runs,
                              .error = error};
    /* Every worker has the same example: what is found out about it is its own. */
    struct paml_op op = *example;
    int code = PAML_OK;

    if (warming.batching == NULL) {
        return warm_op(&warming, &op);
    }
    code = paml_batch_classify(batching, &op, error);
    if (code == PAML_OK && (batching->n_padded == 0 || op.lengths[0] < 0 ||
                            batching->padded[0].n_buckets == 0)) {
        return warm_op(&warming, &op);
    }
    for (uint32_t i = 0; code == PAML_OK && i < batching->padded[0].n_buckets; i++) {
        code = warm_bucket(&warming, &op, batching->padded[0].buckets[i]);
    }
    return code;
}
