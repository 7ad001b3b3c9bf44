#include "model.h"

#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "clock.h"
#include "mailbox.h"
#include "thread.h"
#include "worker.h"

static char *
copy_or_null(const char *text)
{
    return text != NULL ? strdup(text) : NULL;
}

struct paml_model *
paml_model_new(const struct paml_backend *backend,
               const struct paml_model_options *options)
{
    int n_workers = options->n_devices * options->instances;
    struct paml_model *model = aligned_alloc(64, sizeof(*model));
    struct paml_worker *workers =
        aligned_alloc(64, (size_t)n_workers * sizeof(*workers));

    if (model == NULL || workers == NULL) {
        free(model);
        free(workers);
        return NULL;
    }
    memset(model, 0, sizeof(*model));
    memset(workers, 0, (size_t)n_workers * sizeof(*workers));
    if (paml_batching_options_copy(&model->batching_options, &options->batching) < 0) {
        free(model);
        free(workers);
        return NULL;
    }
    (void)paml_budget_total(); /* reads the environment: not on a worker */
    paml_queue_init(&model->queue,
                    options->batching.max_rows > 0 ? &model->batching : NULL,
                    &options->limits);
    pthread_mutex_init(&model->lock, NULL);
    pthread_cond_init(&model->loaded, NULL);
    atomic_init(&model->refs, 1);
    model->backend = backend;
    model->name = copy_or_null(options->name);
    model->path = copy_or_null(options->load.path);
    model->entry_name = copy_or_null(options->load.entry);
    model->backend_options = options->load.options;
    model->threads = options->threads;
    model->warmup_runs = options->warmup_runs;
    model->n_workers = n_workers;
    model->workers = workers;
    model->status = PAML_STATUS_NEW;
    atomic_init(&model->serving, n_workers);
    for (int i = 0; i < n_workers; i++) {
        workers[i].model = model;
        workers[i].index = i;
        workers[i].device = options->devices[i / options->instances];
        workers[i].patience.limit_ns = options->spin_ns;
        /* Spinning has to be earned by traffic. */
        workers[i].patience.usual_ns = 2 * options->spin_ns;
        paml_batch_init(&workers[i].batch);
        paml_batcher_init(&workers[i].batcher);
        paml_cost_init(&workers[i].cost);
        paml_stopping_init(&workers[i].stopping);
    }
    return model;
}

void
paml_model_unref(struct paml_model *model)
{
    /* acq_rel: what other holders did happens before the free. */
    if (atomic_fetch_sub_explicit(&model->refs, 1, memory_order_acq_rel) == 1) {
        if (model->predecessor != NULL) {
            paml_model_unref(model->predecessor);
        }
        paml_queue_destroy(&model->queue);
        paml_batching_clear(&model->batching);
        paml_batching_options_clear(&model->batching_options);
        pthread_mutex_destroy(&model->lock);
        pthread_cond_destroy(&model->loaded);
        free(model->name);
        free(model->path);
        free(model->entry_name);
        for (int i = 0; i < model->n_workers; i++) {
            paml_batch_destroy(&model->workers[i].batch);
            paml_batcher_destroy(&model->workers[i].batcher);
            paml_stopping_destroy(&model->workers[i].stopping);
        }
        free(model->workers);
        free(model);
    }
}

/* Answers an op that was taken out of the queue and not run. Of a session, those behind
   it have their turn.
   Thread: any. Locks: as paml_queue_pass_on. */
static void
post_out_of_turn(struct paml_op *op)
{
    if (op->session != NULL && op->place != PAML_HELD) {
        paml_queue_pass_on(op->session, op->fresh);
    }
    paml_mailbox_post(op->mailbox, op);
}

/* Answers ops linked by `next` with one code. */
static void
answer_all(struct paml_op *ops, int code, const char *message)
{
    struct paml_op *op;

    while ((op = ops) != NULL) {
        ops = op->next;
        if (code != PAML_OK) {
            paml_op_fail(op, code, message);
        }
        post_out_of_turn(op);
    }
}

/* The model has ended: so it is for the one it replaced to answer, if there is one.
   Thread: any. Locks: as paml_model_close, of that one. */
static void
answer_closing(struct paml_model *predecessor, struct paml_op *closing)
{
    struct paml_op *op;

    if (predecessor == NULL) {
        answer_all(closing, PAML_OK, NULL);
        return;
    }
    while ((op = closing) != NULL) {
        closing = op->next;
        paml_model_close(predecessor, true, op);
    }
    paml_model_unref(predecessor);
}

/* A new reference, or NULL. Lock: the model's is held. */
static struct paml_model *
predecessor_of(struct paml_model *model)
{
    if (model->predecessor != NULL) {
        atomic_fetch_add_explicit(&model->predecessor->refs, 1, memory_order_relaxed);
    }
    return model->predecessor;
}

/* Thread: any. Locks: takes a model's. */
void
paml_model_succeed(struct paml_model *model, struct paml_model *predecessor)
{
    while (model->predecessor != NULL) { /* it has replaced another one already */
        model = model->predecessor;
    }
    atomic_fetch_add_explicit(&predecessor->refs, 1, memory_order_relaxed);
    pthread_mutex_lock(&model->lock);
    model->predecessor = predecessor;
    pthread_mutex_unlock(&model->lock);
}

/* Thread: any. Locks: takes the model's. */
struct paml_model *
paml_model_forget(struct paml_model *model)
{
    struct paml_model *gone = model->predecessor;
    bool last;

    pthread_mutex_lock(&model->lock);
    /* acquire: pairs with the release of whoever let go of it before us. No reference
       can be had any more but under this lock. */
    last = gone != NULL && atomic_load_explicit(&gone->refs, memory_order_acquire) == 1;
    if (last) {
        model->predecessor = gone->predecessor;
    }
    pthread_mutex_unlock(&model->lock);
    if (!last) {
        return NULL;
    }
    gone->predecessor = NULL;
    return gone;
}

/* Thread: any. GIL: any. Locks: takes the model's. */
void
paml_model_start(struct paml_model *model, struct paml_op *op)
{
    struct paml_error error = {0};
    int status = 0, started = 0;

    pthread_mutex_lock(&model->lock);
    if (model->status == PAML_STATUS_NEW) {
        model->status = PAML_STATUS_LOADING;
        model->opening = op;
        model->live = model->n_workers;
        op = NULL;
    }
    status = model->status;
    pthread_mutex_unlock(&model->lock);
    if (status != PAML_STATUS_LOADING) {
        answer_all(op, PAML_ERR_CLOSED, "the model was started or closed before");
        return;
    }
    for (; started < model->n_workers; started++) {
        atomic_fetch_add_explicit(&model->refs, 1, memory_order_relaxed);
        status =
            paml_thread_start(paml_worker_main, &model->workers[started], "pyasyncml");
        if (status != 0) {
            atomic_fetch_sub_explicit(&model->refs, 1, memory_order_relaxed);
            break;
        }
    }
    if (started < model->n_workers) {
        paml_fail(&error, PAML_ERR_LOAD, "can't start worker thread %d of %d: %s",
                  started + 1, model->n_workers, strerror(status));
        paml_model_failed(model, &error);
        paml_model_left(model, model->n_workers - started, false);
    }
}

/* The op that waits for the opening is answered by the last worker to leave: until then
   others may still be running its inputs.
   Thread: worker, or the starter. Locks: takes the model's, then the queue's. */
void
paml_model_failed(struct paml_model *model, const struct paml_error *error)
{
    pthread_mutex_lock(&model->lock);
    if (model->status == PAML_STATUS_LOADING) {
        model->status = PAML_STATUS_FAILED;
        model->error = *error;
    }
    pthread_cond_broadcast(&model->loaded);
    pthread_mutex_unlock(&model->lock);
    paml_queue_close(&model->queue);
}

/* A run went wrong, and the model goes on. Thread: worker. Locks: takes the model's. */
void
paml_model_note_failure(struct paml_model *model, const struct paml_error *error)
{
    atomic_fetch_add_explicit(&model->failing, 1, memory_order_relaxed);
    pthread_mutex_lock(&model->lock);
    if (model->status == PAML_STATUS_READY) {
        model->error = *error;
    }
    pthread_mutex_unlock(&model->lock);
}

/* Thread: worker. Locks: takes the model's. */
void
paml_model_lost(struct paml_worker *worker, const struct paml_error *error)
{
    struct paml_model *model = worker->model;

    pthread_mutex_lock(&model->lock);
    if (model->loss.code == PAML_OK) {
        model->loss = *error;
    }
    for (int i = 0; i < model->n_workers; i++) {
        struct paml_worker *other = &model->workers[i];
        if (other->device.device_type == worker->device.device_type &&
            other->device.device_id == worker->device.device_id &&
            !atomic_load_explicit(&other->lost, memory_order_relaxed)) {
            /* relaxed: it says nothing of other data; each looks before it takes. */
            atomic_store_explicit(&other->lost, true, memory_order_relaxed);
        }
    }
    pthread_mutex_unlock(&model->lock);
}

/* Thread: worker. Locks: takes the model's. */
void
paml_model_opened(struct paml_model *model)
{
    struct paml_op *op = NULL;

    pthread_mutex_lock(&model->lock);
    if (++model->opened == model->n_workers && model->status == PAML_STATUS_LOADING) {
        model->status = PAML_STATUS_READY;
        op = model->opening;
        model->opening = NULL;
    }
    pthread_mutex_unlock(&model->lock);
    if (op != NULL) {
        paml_mailbox_post(op->mailbox, op);
    }
}

/* Thread: the last worker, or the starter. Locks: takes the queue's, then the model's.
 */
static void
model_end(struct paml_model *model, bool on_worker)
{
    struct paml_op *opening, *closing;
    struct paml_model *predecessor;
    struct paml_error error;
    int code;

    /* No worker is left that could take: whatever slipped in is answered here. */
    answer_all(paml_queue_close_empty(&model->queue), PAML_ERR_CLOSED,
               "the model was closed before the request ran");
    if (model->program != NULL) {
        model->backend->unload(model->program);
    }
    pthread_mutex_lock(&model->lock);
    model->program = NULL;
    model->entry = NULL;
    model->ended = true;
    if (model->status == PAML_STATUS_FAILED) {
        error = model->error;
        code = error.code;
    } else {
        model->status = PAML_STATUS_CLOSED;
        code =
            paml_fail(&error, PAML_ERR_CLOSED, "the model was closed while it loaded");
    }
    opening = model->opening;
    model->opening = NULL;
    closing = model->closing;
    model->closing = NULL;
    predecessor = predecessor_of(model);
    pthread_mutex_unlock(&model->lock);
    answer_all(opening, code, error.message);
    if (on_worker) {
        paml_thread_leaving();
    }
    answer_closing(predecessor, closing);
}

/* `count` workers are leaving, or never came. The last one ends the model. All are
   joinable before that is said: whoever awaits the close may then count threads.
   Thread: worker, or the starter. Locks: takes the model's, and the threads' within. */
void
paml_model_left(struct paml_model *model, int count, bool on_worker)
{
    bool last;

    pthread_mutex_lock(&model->lock);
    model->live -= count;
    last = model->live == 0;
    if (on_worker && !last) {
        paml_thread_leaving();
    }
    pthread_mutex_unlock(&model->lock);
    if (last) {
        model_end(model, on_worker);
    }
}

/* Thread: any. GIL: any. Locks: none. */
int
paml_model_submit(struct paml_model *model, struct paml_op *op)
{
    struct paml_op *dropped, *next;
    char message[PAML_MESSAGE_SIZE];
    int code = paml_queue_push(&model->queue, op, &dropped);

    atomic_fetch_add_explicit(code == PAML_OK ? &model->submitted : &model->rejected, 1,
                              memory_order_relaxed);
    for (; dropped != NULL; dropped = next) {
        next = dropped->next;
        atomic_fetch_add_explicit(&model->rejected, 1, memory_order_relaxed);
        snprintf(message, sizeof(message),
                 "dropped for a request of higher or equal priority, or one that came "
                 "first: the queue of model '%s' is full, it holds at most %lld rows "
                 "(Queue(when_full='drop_lowest'))",
                 model->name != NULL ? model->name : "",
                 (long long)model->queue.limits.max_rows);
        paml_op_fail(dropped, PAML_ERR_QUEUE, message);
        post_out_of_turn(dropped);
    }
    return code;
}

/* Thread: any. GIL: any. Locks: takes the queue's, then the model's. */
void
paml_model_close(struct paml_model *model, bool drain, struct paml_op *op)
{
    struct paml_model *predecessor;
    bool gone, never = false;

    if (drain) {
        paml_queue_close(&model->queue);
    } else {
        answer_all(paml_queue_close_empty(&model->queue), PAML_ERR_CLOSED,
                   "the model was closed before the request ran");
    }
    pthread_mutex_lock(&model->lock);
    if (model->status == PAML_STATUS_NEW) {
        model->status = PAML_STATUS_CLOSED; /* no worker will look at the queue */
        model->ended = never = true;
    } else if (model->status == PAML_STATUS_LOADING ||
               model->status == PAML_STATUS_READY) {
        model->status = PAML_STATUS_CLOSING;
    }
    gone = model->ended;
    predecessor = predecessor_of(model);
    if (!gone && op != NULL) {
        op->next = model->closing;
        model->closing = op;
    }
    /* A worker that waits for the program gives up. */
    pthread_cond_broadcast(&model->loaded);
    pthread_mutex_unlock(&model->lock);
    if (never) {
        answer_all(paml_queue_empty(&model->queue), PAML_ERR_CLOSED,
                   "the model was closed before it was started");
    }
    if (predecessor != NULL && !drain) {
        paml_model_close(predecessor, false, NULL);
    }
    if (gone && op != NULL) {
        op->next = NULL;
        answer_closing(predecessor, op);
    } else if (predecessor != NULL) {
        paml_model_unref(predecessor);
    }
}

/* Thread: any. Locks: takes the model's. */
enum paml_status
paml_model_status(struct paml_model *model, struct paml_error *error)
{
    enum paml_status status;

    pthread_mutex_lock(&model->lock);
    status = model->status;
    if (error != NULL) {
        *error = model->error;
    }
    pthread_mutex_unlock(&model->lock);
    return status;
}

/* Thread: any. Locks: takes the model's. */
const struct paml_entry *
paml_model_pin(struct paml_model *model)
{
    const struct paml_entry *entry = NULL;

    pthread_mutex_lock(&model->lock);
    if (model->live > 0) {
        entry = model->entry;
        model->live += entry != NULL;
    }
    pthread_mutex_unlock(&model->lock);
    return entry;
}

/* Thread: any. Locks: as paml_model_left. */
void
paml_model_unpin(struct paml_model *model)
{
    paml_model_left(model, 1, false);
}
