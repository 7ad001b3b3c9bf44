#include "worker.h"

#include "budget.h"
#include "clock.h"
#include "crowd.h"
#include "flights.h"
#include "mailbox.h"
#include "serve.h"
#include "thread.h"

/* Loads the program (worker 0) or waits for it. NULL: there will be none.
   Thread: worker. Locks: takes the model's; not held while the backend loads. */
static void *
worker_program(struct paml_worker *worker)
{
    struct paml_model *model = worker->model;
    struct paml_load_spec spec = {.path = model->path,
                                  .entry = model->entry_name,
                                  .options = model->backend_options,
                                  .device = worker->device,
                                  .threads = model->threads};
    const struct paml_entry *entry;
    struct paml_error error = {0};
    void *program = NULL;

    if (worker->index == 0) {
        if (model->backend->load(&spec, &program, &error) != 0) {
            paml_model_failed(model, &error);
            return NULL;
        }
        entry = model->backend->describe(program);
        if (paml_batching_build(&model->batching, &model->batching_options, entry,
                                &error) != PAML_OK) {
            model->backend->unload(program);
            paml_model_failed(model, &error);
            return NULL;
        }
        pthread_mutex_lock(&model->lock);
        model->program = program;
        model->entry = entry;
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

/* --- ringing ---

   Waking a loop that sleeps costs the waker ten microseconds and more on a virtual
   machine, as much as many a run. A worker with more work waiting therefore owes the
   ring for the time that its request may take yet (paml_mailbox_grace), and never for
   longer than it takes the mailbox's alarm to go off. */

static void
worker_pay(struct paml_worker *worker)
{
    struct paml_mailbox *mailbox = worker->debt.mailbox;

    worker->debt.mailbox = NULL;
    if (mailbox != NULL) {
        paml_mailbox_pay(mailbox);
    }
}

/* The loop has come by itself. */
static void
worker_forget_debt(struct paml_worker *worker)
{
    struct paml_mailbox *mailbox = worker->debt.mailbox;

    worker->debt.mailbox = NULL;
    paml_mailbox_unref(mailbox);
}

/* Thread: worker. Locks: none. */
bool
paml_worker_before_run(struct paml_worker *worker)
{
    if (worker->debt.guarded || worker->debt.mailbox == NULL) {
        return false;
    }
    worker_pay(worker);
    return true;
}

/* Thread: worker. Locks: none. */
void
paml_worker_post(struct paml_worker *worker, struct paml_op *op, int64_t now_ns)
{
    struct paml_debt *debt = &worker->debt;
    struct paml_mailbox *mailbox = op->mailbox;
    int64_t due_ns = now_ns + paml_mailbox_grace(op, now_ns);

    switch (paml_mailbox_post_quietly(mailbox, op)) {
    case PAML_TOLD_LATER:
        if (debt->mailbox == mailbox && due_ns < debt->due_ns) {
            debt->due_ns = due_ns;
        }
        return;
    case PAML_TOLD_SOON:
        if (debt->mailbox == mailbox) {
            worker_forget_debt(worker);
        }
        return;
    case PAML_NOT_TOLD:
        if (debt->mailbox == mailbox) {
            worker_forget_debt(worker);
        } else {
            worker_pay(worker);
        }
        debt->mailbox = mailbox;
        debt->guarded = false;
        debt->due_ns = due_ns;
    }
}

/* After a batch, which took so long: rings, unless there is a next one (`more`: it is
   on) and either that will have ended before the ring is due, or the mailbox's owner
   will have come by itself. Thread: worker. Locks: none. */
static void
worker_ring(struct paml_worker *worker, int64_t run_ns, int64_t now_ns, bool more)
{
    struct paml_debt *debt = &worker->debt;
    int64_t next_ns;

    debt->usual_run_ns += (run_ns - debt->usual_run_ns) / 8;
    next_ns = now_ns + (run_ns > debt->usual_run_ns ? run_ns : debt->usual_run_ns);
    if (debt->mailbox == NULL) {
        return;
    }
    if (!more && !paml_queue_has_news(&worker->model->queue)) {
        worker_pay(worker);
    } else if (paml_mailbox_has_alarm(debt->mailbox, debt->due_ns)) {
        debt->guarded = true;
    } else if (next_ns < debt->due_ns) {
        paml_mailbox_set_alarm(debt->mailbox, now_ns);
        debt->guarded = true;
    } else {
        worker_pay(worker);
    }
}

/* --- the budget --- */

static void
worker_take_tokens(struct paml_worker *worker)
{
    const struct paml_model *model = worker->model;

    if (!worker->has_tokens && model->backend->computes &&
        worker->device.device_type == kDLCPU) {
        if (paml_budget_wanted()) {
            worker_pay(worker); /* it may have to wait */
        }
        paml_budget_acquire(model->threads);
        worker->has_tokens = true;
    }
}

static void
worker_give_tokens(struct paml_worker *worker)
{
    if (worker->has_tokens) {
        worker->has_tokens = false;
        paml_budget_release(worker->model->threads);
    }
}

/* First calls are slow (kernels are picked, graphs specialised): make them before
   anybody waits. The example's op stays in `opening` until every instance is warm.
   Thread: worker. Locks: none. */
static int
worker_warm_up(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    struct paml_model *model = worker->model;
    struct paml_op *example;
    int code;

    pthread_mutex_lock(&model->lock);
    example = model->opening;
    pthread_mutex_unlock(&model->lock);
    if (example == NULL || example->n_inputs == 0 || model->warmup_runs == 0 ||
        model->entry->stateful == PAML_STATE_TRAINED) {
        return PAML_OK;
    }
    worker_take_tokens(worker);
    code = paml_serve_warm_up(worker, instance, example, model->warmup_runs, error);
    worker_give_tokens(worker);
    return code;
}

/* Nothing to do: sees to what is owed and kept, and waits. Thread: worker. Locks: the
   queue's. */
static void
worker_wait(struct paml_worker *worker)
{
    worker_give_tokens(worker);
    worker_pay(worker);
    if (worker->home != NULL) {
        paml_home_rest(worker->home);
    }
    paml_queue_wait(&worker->model->queue, &worker->patience, &worker->batch);
    if (worker->home != NULL) {
        paml_home_wake(worker->home);
    }
}

/* Its device is lost: whether it is to end. The last one stays, and refuses.
   Thread: worker. Locks: none. */
static bool
worker_retires(struct paml_worker *worker)
{
    struct paml_model *model = worker->model;

    if (worker->refuses) {
        return false;
    }
    /* acq_rel: the last one to leave finds what others found lost. */
    if (atomic_fetch_sub_explicit(&model->serving, 1, memory_order_acq_rel) > 1) {
        paml_queue_hand_on(&model->queue);
        return true;
    }
    worker->refuses = true;
    return false;
}

/* After a batch: frees what has come home, and gives the processor to those that wait
   for it. Thread: worker. Locks: none. */
static void
worker_make_way(struct paml_worker *worker)
{
    if (worker->home != NULL) {
        paml_home_clean(worker->home, worker->debt.usual_run_ns);
    }
    if (paml_budget_wanted()) {
        worker_give_tokens(worker);
        worker_pay(worker); /* it may have to wait for others now */
    }
}

/* What runs next, for a device that is at work for so long yet.
   Thread: worker. Locks: the queue's. */
static void
worker_take(struct paml_worker *worker, int64_t busy_ns, bool *closed)
{
    const struct paml_taker taker = {&worker->cost, worker->last_run_ns, busy_ns};

    paml_queue_take(&worker->model->queue, &taker, &worker->batch, closed);
}

/* Serves the queue until it is closed and empty. Thread: worker. Locks: the queue's. */
static void
worker_serve(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    int64_t begun_ns, now_ns;
    bool closed = false;

    while (!closed) {
        if (atomic_load_explicit(&worker->lost, memory_order_relaxed) &&
            worker_retires(worker)) {
            break;
        }
        worker_take_tokens(worker);
        worker_take(worker, 0, &closed);
        if (worker->batch.n == 0 && worker->batch.hopeless == NULL) {
            if (!closed) {
                worker_wait(worker);
            }
            continue;
        }
        closed = false;
        begun_ns = worker->batch.taken_ns;
        now_ns = paml_serve_batch(worker, instance, error);
        worker_ring(worker, now_ns - begun_ns, now_ns, false);
        worker_make_way(worker);
    }
}

/* --- with runs in flight --- */

/* The oldest flight has ended, or must. Thread: worker. Locks: as its answers take. */
static void
worker_land(struct paml_worker *worker, struct paml_flights *flights)
{
    int64_t run_ns, now_ns = paml_flights_land(flights, &run_ns);

    worker_ring(worker, run_ns, now_ns, paml_flights_have_landed(flights));
    worker_make_way(worker);
}

/* Begins what was taken. Where that was answered at once, nothing is up: it is like the
   end of any batch. Thread: worker. Locks: as its answers take. */
static void
worker_begin(struct paml_worker *worker, struct paml_flights *flights)
{
    int64_t begun_ns = worker->batch.taken_ns;
    int64_t now_ns = paml_flights_begin(flights);

    if (paml_flights_up(flights) == 0) {
        worker_ring(worker, now_ns - begun_ns, now_ns, false);
        worker_make_way(worker);
    }
}

/* Nothing can be begun, and nothing has landed, as far as is known: waits for either.
   Thread: worker. Locks: the queue's, the bell's. */
static void
worker_wait_flying(struct paml_worker *worker, struct paml_flights *flights)
{
    int64_t pause_ns, until_ns = INT64_MAX;

    if (paml_flights_up(flights) == 0) {
        worker_wait(worker);
        return;
    }
    pause_ns = paml_flights_ask(flights);
    if (pause_ns == 0) {
        return;
    }
    if (pause_ns != INT64_MAX) {
        until_ns = paml_now_ns() + pause_ns;
    }
    worker_pay(worker);
    if (worker->home != NULL) {
        paml_home_rest(worker->home);
    }
    if (paml_flights_have_room(flights)) {
        paml_queue_listen(&worker->model->queue, paml_flights_bell(flights),
                          &worker->batch, until_ns);
    } else {
        paml_crowd_attend(-1);
        paml_bell_wait(paml_flights_bell(flights), until_ns);
        paml_crowd_attend(1);
    }
    if (worker->home != NULL) {
        paml_home_wake(worker->home);
    }
}

/* As worker_serve, with as many runs in flight as the instance can have: what has
   landed is answered first, then the next run is begun, as long as there is work and
   room. Thread: worker. Locks: the queue's. */
static void
worker_serve_flying(struct paml_worker *worker, struct paml_flights *flights)
{
    bool closed = false;

    while (!closed || paml_flights_up(flights) > 0) {
        if (paml_flights_have_landed(flights)) {
            worker_land(worker, flights);
        }
        if (atomic_load_explicit(&worker->lost, memory_order_relaxed)) {
            paml_flights_land_all(flights);
            if (worker_retires(worker)) {
                break;
            }
        }
        if (paml_flights_have_room(flights)) {
            worker_take_tokens(worker);
            worker_take(worker, paml_flights_busy_ns(flights), &closed);
            if (worker->batch.n > 0 || worker->batch.hopeless != NULL) {
                closed = false;
                worker_begin(worker, flights);
                continue;
            }
        }
        if (!closed || paml_flights_up(flights) > 0) {
            worker_wait_flying(worker, flights);
        }
    }
}

/* --- its life --- */

/* Thread: worker. Locks: as what it calls. */
static void
worker_work(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    struct paml_flights *flights = paml_flights_new(worker, instance, error);

    worker->home = paml_home_new();
    paml_crowd_attend(1);
    if (flights != NULL) {
        worker_serve_flying(worker, flights);
        paml_flights_free(flights);
    } else {
        worker_serve(worker, instance, error);
    }
    worker_give_tokens(worker);
    worker_pay(worker);
    paml_crowd_attend(-1);
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
                worker_work(worker, instance, &error);
            }
            backend->close(instance);
        }
    }
    paml_model_left(model, 1, true);
    paml_model_unref(model);
    paml_thread_leaving();
}
