/* Running a tiny model in the caller: load(inline_below=).
 *
 * Handing a request to a worker and back costs more than some models do. Where the user
 * allows it, a request that finds its model idle, and whose kind has been taking less
 * time than the bound lately, is run where infer() was called, and its future is done.
 * What runs of each kind of input take is learned from the workers and from the runs
 * here; one that takes too long sends the next ones to the workers again.
 *
 * Thread: the caller's, GIL held.
 */
#include "clock.h"
#include "model_object.h"

static struct inline_cost *
cost_of(ModelObj *self, uint64_t key)
{
    return &self->inline_costs[key % INLINE_COSTS];
}

void
paml_inline_note(ModelObj *self, const struct paml_request *request)
{
    int64_t run_ns = request->op.run_ns;
    struct inline_cost *cost;

    if (request->inline_key == 0 || run_ns == 0) {
        return;
    }
    cost = cost_of(self, request->inline_key);
    if (cost->key != request->inline_key) {
        *cost = (struct inline_cost){request->inline_key, run_ns};
    } else if (run_ns > self->inline_below_ns) {
        cost->ns = run_ns; /* at once: the bound is a promise */
    } else {
        cost->ns += (run_ns - cost->ns) / 8;
    }
}

static int
is_idle(struct paml_model *model)
{
    if (paml_queue_rows(&model->queue) != 0) {
        return 0;
    }
    for (int i = 0; i < model->n_workers; i++) {
        if (atomic_load_explicit(&model->workers[i].stats.running_since_ns,
                                 memory_order_relaxed) != 0) {
            return 0;
        }
    }
    return 1;
}

int
paml_inline_may(ModelObj *self, struct paml_request *request)
{
    const struct paml_batching *batching = &self->model->batching;
    const struct inline_cost *cost;

    /* Python callables take the GIL, which is held here. */
    if (self->inline_below_ns == 0 || self->model->backend == &paml_python_backend) {
        return 0;
    }
    request->inline_key = paml_batch_cost_key(batching, &request->op);
    cost = cost_of(self, request->inline_key);
    return cost->key == request->inline_key && cost->ns < self->inline_below_ns &&
           request->op.session == NULL && self->devices[0].device_type == kDLCPU &&
           (batching->max_rows == 0 ||
            (request->op.rows <= batching->max_rows && batching->n_padded == 0)) &&
           is_idle(self->model);
}

/* On an instance of its own, which keeps no state and leaves the thread's number of
   threads alone. */
static int
run_here(ModelObj *self, struct paml_request *request, struct paml_error *error)
{
    const struct paml_backend *backend = self->model->backend;
    struct paml_op *op = &request->op;
    struct paml_run run = {.inputs = op->inputs,
                           .n_inputs = op->n_inputs,
                           .n_arguments = op->n_arguments,
                           .outputs = &op->outputs,
                           .deadline_ns = op->deadline_ns};
    void *instance;
    int code;

    code = backend->open(self->model->program, self->devices[0], 0, &instance, error);
    if (code == PAML_OK) {
        code = backend->run(instance, &run, error);
        backend->close(instance);
    }
    return code;
}

int
paml_inline_run(ModelObj *self, struct paml_request *request)
{
    struct paml_model *model = self->model;
    const struct paml_entry *entry = paml_model_pin(model);
    struct paml_error error;
    FutureObj *future;
    int64_t begun_ns;
    int code;

    if (entry == NULL) {
        return 0;
    }
    if (entry->stateful || paml_model_status(model, NULL) != PAML_STATUS_READY) {
        paml_model_unpin(model);
        return 0;
    }
    begun_ns = paml_now_ns();
    code = run_here(self, request, &error);
    request->op.run_ns = paml_now_ns() - begun_ns;
    paml_model_unpin(model);
    atomic_fetch_add_explicit(&model->submitted, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(code == PAML_OK ? &model->inlined : &model->inline_failed,
                              1, memory_order_relaxed);
    atomic_fetch_add_explicit(&model->inline_rows, request->op.rows,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&model->inline_ns, (uint64_t)request->op.run_ns,
                              memory_order_relaxed);
    if (code != PAML_OK) {
        paml_op_fail(&request->op, code, error.message);
    }
    future = paml_hub_settle(request->hub, request);
    Py_XDECREF(future);
    return 1;
}
