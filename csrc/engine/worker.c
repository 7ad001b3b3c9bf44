#include "worker.h"

#include "clock.h"
#include "mailbox.h"
#include "thread.h"

/* Loads the program (worker 0) or waits for it. NULL: there will be none.
   Thread: worker. Locks: takes the model's; not held while the backend loads. */
static void *
worker_program(struct paml_worker *worker)
{
    struct paml_model *model = worker->model;
    struct paml_load_spec spec = {.path = model->path,
                                  .entry = model->entry_name,
                                  .options = model->backend_options};
    struct paml_error error = {0};
    void *program = NULL;

    if (worker->index == 0) {
        if (model->backend->load(&spec, &program, &error) != 0) {
            paml_model_failed(model, &error);
            return NULL;
        }
        pthread_mutex_lock(&model->lock);
        model->program = program;
        model->entry = model->backend->describe(program);
        pthread_cond_broadcast(&model->loaded);
        pthread_mutex_unlock(&model->lock);
        return program;
    }
    pthread_mutex_lock(&model->lock);
    while (model->program == NULL && model->status == PAML_STATUS_LOADING) {
        pthread_cond_wait(&model->loaded, &model->lock);
    }
    program = model->program;
    pthread_mutex_unlock(&model->lock);
    return program;
}

/* First calls are slow (kernels are picked, graphs specialised): make them before
   anybody waits. The example's op stays in `opening` until every instance is warm.
   Thread: worker. Locks: none. */
static int
worker_warm_up(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    struct paml_model *model = worker->model;
    struct paml_op *example;
    struct paml_outputs outputs;
    int code = PAML_OK;

    pthread_mutex_lock(&model->lock);
    example = model->opening;
    pthread_mutex_unlock(&model->lock);
    if (example == NULL || example->n_inputs == 0) {
        return PAML_OK;
    }
    paml_outputs_init(&outputs);
    for (int i = 0; i < model->warmup_runs && code == PAML_OK; i++) {
        struct paml_run run = {.inputs = example->inputs,
                               .n_inputs = example->n_inputs,
                               .n_arguments = example->n_arguments,
                               .outputs = &outputs};
        code = model->backend->run(instance, &run, error);
        paml_outputs_clear(&outputs);
    }
    return code;
}

/* --- ringing ---

   Waking a loop that sleeps costs the waker ten microseconds and more on a virtual
   machine, as much as many a run. A worker with more work waiting therefore owes the
   ring for a while: for a fraction of the time that the request has taken so far, so
   that nobody's latency grows by more than that, and never for longer than it takes the
   mailbox's alarm to go off. */

#define GRACE_SHARE 4
#define GRACE_MOST_NS 2000000

static void
worker_pay(struct paml_worker *worker)
{
    struct paml_mailbox *mailbox = worker->debt.mailbox;

    worker->debt.mailbox = NULL;
    if (mailbox != NULL) {
        paml_mailbox_pay(mailbox);
    }
}

/* After a run. Thread: worker. Locks: none. */
static void
worker_post(struct paml_worker *worker, struct paml_op *op, int64_t run_ns,
            int64_t now_ns)
{
    struct paml_debt *debt = &worker->debt;
    struct paml_mailbox *mailbox = op->mailbox;
    int64_t grace_ns = (now_ns - op->submitted_ns) / GRACE_SHARE, next_ns;

    debt->usual_run_ns += (run_ns - debt->usual_run_ns) / 8;
    next_ns = now_ns + (run_ns > debt->usual_run_ns ? run_ns : debt->usual_run_ns);
    if (paml_mailbox_post_quietly(mailbox, op)) {
        if (debt->mailbox == mailbox) {
            paml_mailbox_unref(mailbox); /* the loop came by itself: nothing is owed */
        } else {
            worker_pay(worker);
        }
        debt->mailbox = mailbox;
        debt->due_ns = now_ns + (grace_ns < GRACE_MOST_NS ? grace_ns : GRACE_MOST_NS);
        if (next_ns < debt->due_ns && paml_queue_has_news(&worker->model->queue)) {
            paml_mailbox_set_alarm(mailbox, now_ns);
            return;
        }
    }
    if (debt->mailbox != NULL && next_ns >= debt->due_ns) {
        worker_pay(worker);
    }
}

/* Thread: worker. Locks: none. */
static void
worker_run(struct paml_worker *worker, void *instance, struct paml_op *op,
           struct paml_error *error)
{
    struct paml_worker_stats *stats = &worker->stats;
    struct paml_run run = {.inputs = op->inputs,
                           .n_inputs = op->n_inputs,
                           .n_arguments = op->n_arguments,
                           .outputs = &op->outputs,
                           .deadline_ns = op->deadline_ns};
    int64_t begun = paml_now_ns(), ended;

    if (op->deadline_ns != 0 && begun >= op->deadline_ns) {
        paml_op_fail(op, PAML_ERR_DEADLINE, NULL);
        paml_count(&stats->expired, 1);
        paml_mailbox_post(op->mailbox, op);
        return;
    }
    atomic_store_explicit(&stats->running_since_ns, begun, memory_order_relaxed);
    if (worker->model->backend->run(instance, &run, error) != PAML_OK) {
        if (error->code != PAML_ERR_PYTHON) {
            paml_outputs_clear(&op->outputs);
        }
        paml_op_fail(op, error->code, error->message);
        paml_count(&stats->failed, 1);
    } else {
        if (worker->home != NULL) {
            paml_home_send(worker->home, &op->outputs);
        }
        paml_count(&stats->completed, 1);
    }
    ended = paml_now_ns();
    atomic_store_explicit(&stats->running_since_ns, 0, memory_order_relaxed);
    paml_count(&stats->busy_ns, (uint64_t)(ended - begun));
    paml_histogram_add(&stats->wait, begun - op->submitted_ns);
    paml_histogram_add(&stats->run, ended - begun);
    worker_post(worker, op, ended - begun, ended);
    if (worker->home != NULL) {
        paml_home_clean(worker->home);
    }
}

/* Nothing to do: sees to what is owed and kept, and waits. Thread: worker. Locks: the
   queue's. */
static void
worker_wait(struct paml_worker *worker)
{
    if (worker->home != NULL) {
        paml_home_rest(worker->home);
    }
    paml_queue_wait(&worker->model->queue, &worker->patience);
    if (worker->home != NULL) {
        paml_home_wake(worker->home);
    }
}

/* Serves the queue until it is closed and empty. Thread: worker. Locks: the queue's. */
static void
worker_serve(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    struct paml_queue *queue = &worker->model->queue;
    struct paml_op *op;
    bool closed = false;

    worker->home = paml_home_new();
    paml_queue_attend(1);
    while (!closed) {
        op = paml_queue_take(queue, &closed);
        if (op != NULL) {
            worker_run(worker, instance, op, error);
            closed = false;
        } else {
            worker_pay(worker);
            if (!closed) {
                worker_wait(worker);
            }
        }
    }
    paml_queue_attend(-1);
    if (worker->home != NULL) {
        paml_home_leave(worker->home);
    }
}

/* Thread: worker, its whole life. GIL: never. */
void
paml_worker_main(void *argument)
{
    struct paml_worker *worker = argument;
    struct paml_model *model = worker->model;
    const struct paml_backend *backend = model->backend;
    struct paml_error error = {0};
    void *program, *instance = NULL;

    program = worker_program(worker);
    if (program != NULL) {
        if (backend->open(program, worker->device, model->threads, &instance, &error) !=
            0) {
            paml_model_failed(model, &error);
        } else {
            if (worker_warm_up(worker, instance, &error) != PAML_OK) {
                char message[PAML_MESSAGE_SIZE];
                memcpy(message, error.message, sizeof(message));
                paml_fail(&error, PAML_ERR_LOAD,
                          "the warm-up run with the example inputs failed: %.900s",
                          message);
                paml_model_failed(model, &error);
            } else {
                paml_model_opened(model);
                worker_serve(worker, instance, &error);
            }
            backend->close(instance);
        }
    }
    paml_model_left(model, 1, true);
    paml_model_unref(model);
    paml_thread_leaving();
}
