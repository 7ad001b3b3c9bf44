#include "serve.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "serving.h"
#include "session.h"
#include "steps.h"
#include "worker.h"

/* Short runs cost little more than noting what they cost: one in so many is. */
#define NOTED_ALWAYS_NS 20000
#define NOTED_EVERY 16

/* --- one run --- */

void
paml_note_run(struct serving *serving, const struct paml_slice *slices, int64_t rows,
              uint32_t requests, int64_t begun_ns, int64_t ended_ns, int code)
{
    struct paml_worker *worker = serving->worker;
    struct paml_model *model = worker->model;
    struct paml_worker_stats *stats = &worker->stats;

    paml_histogram_add(&stats->run, ended_ns - begun_ns);
    paml_count(&stats->runs, 1);
    paml_count(&stats->rows, (uint64_t)rows);
    paml_count(&stats->requests, requests);
    serving->now_ns = worker->last_run_ns = ended_ns;
    serving->run_ns = ended_ns - begun_ns;
    if (code == PAML_STOPPED) {
        return;
    }
    if (code != PAML_OK) {
        paml_model_note_failure(model, serving->error);
        if (code == PAML_ERR_DEVICE) {
            paml_model_lost(worker, serving->error);
        }
        return;
    }
    if (atomic_load_explicit(&model->failing, memory_order_relaxed) != 0) {
        atomic_store_explicit(&model->failing, 0, memory_order_relaxed);
    }
    if (ended_ns - begun_ns > NOTED_ALWAYS_NS ||
        atomic_load_explicit(&stats->runs, memory_order_relaxed) % NOTED_EVERY == 1) {
        paml_cost_observe(&worker->cost,
                          paml_batch_cost_key_of(serving->batching, slices, requests),
                          rows > 0 ? rows : 1, ended_ns - begun_ns);
    }
}

/* The backend's run of those slices, timed and counted; `slices`: of what, there are
   `requests`. PAML_STOPPED: it gave nothing, as nobody wants it any more:
   paml_answer_late() has the answer for each of them. */
static int
timed_run(struct serving *serving, struct paml_run *run,
          const struct paml_slice *slices, int64_t rows, uint32_t requests)
{
    struct paml_worker *worker = serving->worker;
    struct paml_model *model = worker->model;
    struct paml_worker_stats *stats = &worker->stats;
    bool stoppable = paml_backend_can_stop(model->backend);
    int64_t begun, ended;
    int code;

    if (worker->refuses) {
        return paml_fail(serving->error, PAML_ERR_DEVICE,
                         "the model has no device left, until it is loaded again "
                         "(reload): %.900s",
                         model->loss.message);
    }
    begun = paml_worker_before_run(worker) ? paml_now_ns() : serving->now_ns;
    if (stoppable && !paml_stop_begin(worker, serving->instance, slices, requests)) {
        serving->now_ns = paml_now_ns();
        return PAML_STOPPED;
    }
    atomic_store_explicit(&stats->running_since_ns, begun, memory_order_relaxed);
    code = model->backend->run(serving->instance, run, serving->error);
    if (stoppable && paml_stop_end(worker) && code != PAML_OK) {
        code = PAML_STOPPED;
    }
    ended = paml_now_ns();
    atomic_store_explicit(&stats->running_since_ns, 0, memory_order_relaxed);
    paml_count(&stats->busy_ns, (uint64_t)(ended - begun));
    paml_note_run(serving, slices, rows, requests, begun, ended, code);
    return code;
}

/* --- slices --- */

/* In two parts, of which the first has `half` rows, or, where that is 0, half of the
   requests. */
static void
run_halves(struct serving *serving, struct paml_slice *slices, struct job **jobs,
           uint32_t n, int64_t half)
{
    struct paml_slice *second = malloc((n + 1) * sizeof(*second));
    struct job **second_jobs = malloc((n + 1) * sizeof(struct job *));
    int64_t before = 0;
    uint32_t cut = n / 2, rest = 0;

    if (second == NULL || second_jobs == NULL) {
        for (uint32_t i = 0; i < n; i++) {
            paml_answer_failed(serving, jobs[i], PAML_ERR_MEMORY,
                               "no memory to run again");
        }
        goto done;
    }
    if (half > 0) {
        for (cut = 0; before + (slices[cut].to - slices[cut].from) <= half; cut++) {
            before += slices[cut].to - slices[cut].from;
        }
        if (before < half) {
            /* Through the middle of a request. */
            second[rest] = slices[cut];
            second[rest].from += half - before;
            second_jobs[rest++] = jobs[cut];
            slices[cut].to = second[0].from;
            cut++;
        }
    }
    for (uint32_t i = cut; i < n; i++) {
        second[rest] = slices[i];
        second_jobs[rest++] = jobs[i];
    }
    paml_run_slices(serving, slices, jobs, cut);
    paml_run_slices(serving, second, second_jobs, rest);

done:
    free(second);
    free(second_jobs);
}

uint32_t
paml_keep_wanted(struct serving *serving, struct paml_slice *slices, struct job **jobs,
                 uint32_t n)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (!jobs[i]->answered && !paml_answer_late(serving, jobs[i])) {
            slices[kept] = slices[i];
            jobs[kept++] = jobs[i];
        }
    }
    return kept;
}

int64_t
paml_rows_of_a_run(const struct serving *serving, const struct paml_slice *slices,
                   uint32_t n)
{
    int64_t cap = paml_cost_cap(&serving->worker->cost,
                                paml_batch_cost_key_of(serving->batching, slices, n));

    return cap < serving->batching->max_rows ? cap : serving->batching->max_rows;
}

enum paml_remedy
paml_remedy_for(int code, int64_t rows, uint32_t n, bool ran)
{
    if (code == PAML_ERR_MEMORY && rows > 1) {
        return PAML_REMEDY_FEWER;
    }
    return ran && n > 1 && code != PAML_ERR_DEVICE ? PAML_REMEDY_APART
                                                   : PAML_REMEDY_NONE;
}

void
paml_serve_failed(struct serving *serving, struct paml_slice *slices, struct job **jobs,
                  uint32_t n, int64_t rows, int code, enum paml_remedy remedy)
{
    switch (remedy) {
    case PAML_REMEDY_FEWER:
        paml_cost_out_of_memory(&serving->worker->cost,
                                paml_batch_cost_key_of(serving->batching, slices, n),
                                rows);
        run_halves(serving, slices, jobs, n, rows / 2);
        return;
    case PAML_REMEDY_APART:
        run_halves(serving, slices, jobs, n, 0);
        return;
    case PAML_REMEDY_NONE:
        for (uint32_t i = 0; i < n; i++) {
            paml_answer_failed(serving, jobs[i], code, serving->error->message);
        }
    }
}

void
paml_run_slices(struct serving *serving, struct paml_slice *slices, struct job **jobs,
                uint32_t n)
{
    struct paml_worker *worker = serving->worker;
    struct paml_batcher *batcher = &worker->batcher;
    struct paml_outputs whole;
    struct paml_run run = {.outputs = &whole};
    int64_t rows = 0, most;
    bool ran = false;
    int code;

    n = paml_keep_wanted(serving, slices, jobs, n);
    if (n == 0) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        rows += slices[i].to - slices[i].from;
    }
    most = paml_rows_of_a_run(serving, slices, n);
    if (rows > most) {
        /* What they were chosen by didn't know the cap: as many times that as it takes,
           and half of these first. */
        run_halves(serving, slices, jobs, n, ((rows - 1) / most + 1) / 2 * most);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (slices[i].op->session != NULL) {
            paml_session_lend(slices[i].op);
        }
    }
    paml_outputs_init(&whole);
    code =
        paml_batch_gather(batcher, serving->batching, slices, n, &run, serving->error);
    if (code == PAML_OK) {
        serving->now_ns = paml_now_ns(); /* it may have copied much */
        run.deadline_ns = n == 1 ? jobs[0]->op->deadline_ns : 0;
        code = timed_run(serving, &run, slices, rows, n);
        ran = true;
        paml_count(&worker->stats.cells, (uint64_t)batcher->cells);
        paml_count(&worker->stats.real_cells, (uint64_t)batcher->real_cells);
    }
    if (code == PAML_OK) {
        code = paml_batch_scatter(batcher, serving->batching, slices, n, &whole,
                                  serving->error);
        ran = code ==
              PAML_ERR_MEMORY; /* else it is the model's way: no other run helps */
    }
    if (code == PAML_OK) {
        for (uint32_t i = 0; i < n; i++) {
            paml_deliver(serving, jobs[i], &slices[i]);
        }
        return;
    }
    paml_outputs_clear(&whole);
    if (code == PAML_STOPPED) {
        paml_keep_wanted(serving, slices, jobs, n); /* none is */
    } else {
        paml_serve_failed(serving, slices, jobs, n, rows, code,
                          paml_remedy_for(code, rows, n, ran));
    }
}

/* A request of more rows than a run may have, slice by slice. */
static void
run_in_slices(struct serving *serving, struct job *job)
{
    struct paml_slice slice = {.op = job->op};

    while (!job->answered && slice.from < job->op->rows) {
        int64_t left = job->op->rows - slice.from, to;
        int64_t max_rows = paml_rows_of_a_run(serving, &slice, 1); /* slices teach it */
        to = slice.from + (left < max_rows ? left : max_rows);
        slice.to = to;
        paml_run_slices(serving, &slice, &job, 1);
        slice.from = to;
    }
}

void
paml_serve_slices(struct serving *serving, struct paml_slice *slices, struct job **jobs,
                  uint32_t n)
{
    if (n == 1 && slices[0].to > paml_rows_of_a_run(serving, slices, 1)) {
        run_in_slices(serving, jobs[0]);
    } else {
        paml_run_slices(serving, slices, jobs, n);
    }
}

/* --- steps --- */

static void
tell_watcher(struct serving *serving, struct paml_steps *steps, bool last)
{
    struct paml_op *watcher = paml_steps_take_watcher(steps, serving->now_ns, last);

    if (watcher != NULL) {
        paml_worker_post(serving->worker, watcher, serving->now_ns);
    }
}

/* Puts the op back into its queue, for the next step. Until it is there it can't be
   taken out: whoever gives it up leaves that to us. */
static void
go_on(struct serving *serving, struct job *job)
{
    struct paml_op *op = job->op;
    int code;

    op->submitted_ns = serving->now_ns;
    code = paml_model_submit(serving->worker->model, op);
    if (code != PAML_OK) {
        tell_watcher(serving, op->steps, true);
        paml_op_fail(op, code,
                     code == PAML_ERR_QUEUE
                         ? "the queue was full before all steps ran"
                         : "the model was closed before all steps ran");
        paml_answer(serving, job);
    }
}

/* One step. */
static void
serve_step(struct serving *serving, struct job *job)
{
    struct paml_op *op = job->op;
    struct paml_steps *steps = op->steps;
    const struct paml_slice slice = {.op = op, .to = 1};
    struct paml_run run = {.inputs = op->inputs,
                           .n_inputs = op->n_inputs,
                           .n_arguments = op->n_arguments,
                           .outputs = &op->outputs};
    int code;

    serving->now_ns = paml_make_way(&steps->made_way_ns, serving->now_ns);
    if (paml_op_is_given_up(op) || paml_steps_ended(steps)) {
        atomic_fetch_add_explicit(&serving->worker->model->cancelled, 1,
                                  memory_order_relaxed);
        tell_watcher(serving, steps, true);
        paml_answer(serving, job);
        return;
    }
    paml_steps_prepare(steps, op);
    code = timed_run(serving, &run, &slice, 1, 1);
    if (code == PAML_STOPPED) {
        paml_outputs_clear(&op->outputs);
        tell_watcher(serving, steps, true);
        paml_answer(serving, job); /* nobody listens */
        return;
    }
    if (code == PAML_OK) {
        code = paml_steps_note(steps, &op->outputs, serving->error);
    }
    paml_outputs_clear(&op->outputs);
    if (code != PAML_OK) {
        tell_watcher(serving, steps, true);
        paml_answer_failed(serving, job, code, serving->error->message);
        return;
    }
    paml_count(&serving->worker->stats.completed, 1);
    if (paml_op_is_given_up(op) || paml_steps_ended(steps)) {
        tell_watcher(serving, steps, true);
        paml_answer(serving, job);
    } else {
        tell_watcher(serving, steps, false);
        go_on(serving, job);
    }
}

/* --- the batch --- */

void
paml_run_alone(struct serving *serving, struct job *job)
{
    struct paml_op *op = job->op;
    const struct paml_slice slice = {.op = op, .to = 1};
    struct paml_run run = {.inputs = op->inputs,
                           .n_inputs = op->n_inputs,
                           .n_arguments = op->n_arguments,
                           .outputs = &op->outputs,
                           .deadline_ns = op->deadline_ns};
    int code;

    if (paml_answer_late(serving, job)) {
        return;
    }
    if (op->session != NULL) {
        paml_session_lend(op);
    }
    code = timed_run(serving, &run, &slice, 1, 1);
    if (code == PAML_STOPPED) {
        paml_outputs_clear(&op->outputs);
        paml_answer_late(serving, job);
    } else if (code == PAML_OK) {
        paml_answer_served(serving, job);
    } else {
        paml_answer_failed(serving, job, code, serving->error->message);
    }
}

static void
serve_together(struct serving *serving, struct paml_batch *batch)
{
    uint32_t n = batch->n;
    struct job few_jobs[32], *jobs = few_jobs, *few_pointers[32];
    struct job **pointers = few_pointers;
    struct paml_slice few_slices[32], *slices = few_slices;

    if (n > 32) {
        jobs = malloc(n * sizeof(*jobs));
        pointers = malloc(n * sizeof(struct job *));
        slices = malloc(n * sizeof(*slices));
    }
    if (jobs == NULL || pointers == NULL || slices == NULL) {
        for (uint32_t i = 0; i < n; i++) {
            struct job job = {.op = batch->ops[i]};
            paml_answer_failed(serving, &job, PAML_ERR_MEMORY, "no memory for a batch");
        }
    } else {
        for (uint32_t i = 0; i < n; i++) {
            jobs[i] = (struct job){.op = batch->ops[i]};
            pointers[i] = &jobs[i];
            slices[i].op = batch->ops[i];
            slices[i].from = 0;
            slices[i].to = batch->ops[i]->rows;
        }
        paml_serve_slices(serving, slices, pointers, n);
    }
    if (n > 32) {
        free(jobs);
        free(pointers);
        free(slices);
    }
}

/* Says why it isn't even tried. */
static void
fail_hopeless(const struct serving *serving, struct paml_op *op)
{
    uint64_t key = paml_batch_cost_key(serving->batching, op);
    int64_t run_ns = paml_cost_predict(&serving->worker->cost, key, op->rows);
    char message[128];

    snprintf(message, sizeof(message),
             "timeout=%.6g can't be met any more: such a run has been taking %.3g s",
             (double)(op->deadline_ns - op->submitted_ns) / PAML_SECOND,
             (double)run_ns / PAML_SECOND);
    paml_op_fail(op, PAML_ERR_DEADLINE, message);
}

struct serving
paml_serving_of(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    const struct paml_batching *batching = &worker->model->batching;

    return (struct serving){.worker = worker,
                            .batching = batching->max_rows > 0 ? batching : NULL,
                            .instance = instance,
                            .error = error,
                            .now_ns = worker->batch.taken_ns};
}

bool
paml_serving_begin(struct serving *serving)
{
    struct paml_worker *worker = serving->worker;
    struct paml_batch *batch = &worker->batch;
    struct paml_op *op;

    while ((op = batch->hopeless) != NULL) {
        struct job job = {.op = op};
        batch->hopeless = op->next;
        fail_hopeless(serving, op);
        paml_count(&worker->stats.expired, 1);
        paml_answer(serving, &job);
    }
    if (batch->n == 0) {
        return false;
    }
    paml_count(&worker->stats.releases[batch->release], 1);
    for (uint32_t i = 0; i < batch->n; i++) {
        paml_histogram_add(&worker->stats.wait,
                           serving->now_ns - batch->ops[i]->submitted_ns);
    }
    return true;
}

void
paml_serving_run(struct serving *serving)
{
    struct paml_batch *batch = &serving->worker->batch;

    if (batch->ops[0]->steps != NULL) {
        struct job job = {.op = batch->ops[0]};
        serve_step(serving, &job);
    } else if (serving->batching != NULL) {
        serve_together(serving, batch);
        if (batch->n > 1) {
            serving->now_ns = paml_now_ns(); /* after many answers */
        }
    } else {
        struct job job = {.op = batch->ops[0]};
        paml_run_alone(serving, &job);
    }
}

/* Thread: worker. GIL: not held. Locks: none. */
int64_t
paml_serve_batch(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    struct serving serving = paml_serving_of(worker, instance, error);

    if (paml_serving_begin(&serving)) {
        paml_serving_run(&serving);
    }
    return serving.now_ns;
}
