/* What Model.stats() and Model.health() are made of: one consistent-enough look at the
 * engine's counters, as plain tuples that the Python side names. */
#include "clock.h"
#include "model_object.h"
#include "thread.h"

static unsigned long long
get(const atomic_uint_least64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Seconds since the oldest waiting op was submitted; 0 where none waits.
   Thread: any. Locks: takes the queue's. */
static double
oldest_wait(struct paml_queue *queue)
{
    int64_t oldest = paml_queue_oldest(queue), now = paml_now_ns();

    return oldest < now ? (double)(now - oldest) / PAML_SECOND : 0.0;
}

/* (submitted, completed, failed, cancelled, expired, rejected, waiting, waiting_bytes,
    running, wait p50, wait p99, run p50, run p99, busy seconds per instance) */
PyObject *
Model_stats(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    struct paml_model *model = self->model;
    unsigned long long completed = 0, failed = 0, expired = 0;
    struct paml_histogram *merged;
    PyObject *busy, *result;
    int running = 0;

    if (model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return NULL;
    }
    merged = PyMem_Calloc(2, sizeof(*merged));
    busy = PyTuple_New(model->n_workers);
    if (merged == NULL || busy == NULL) {
        PyMem_Free(merged);
        Py_XDECREF(busy);
        return merged == NULL ? PyErr_NoMemory() : NULL;
    }
    for (int i = 0; i < model->n_workers; i++) {
        struct paml_worker_stats *stats = &model->workers[i].stats;
        PyObject *seconds =
            PyFloat_FromDouble((double)get(&stats->busy_ns) / PAML_SECOND);
        if (seconds == NULL) {
            PyMem_Free(merged);
            Py_DECREF(busy);
            return NULL;
        }
        PyTuple_SET_ITEM(busy, i, seconds);
        completed += get(&stats->completed);
        failed += get(&stats->failed);
        expired += get(&stats->expired);
        running +=
            atomic_load_explicit(&stats->running_since_ns, memory_order_relaxed) != 0;
        paml_histogram_merge(&merged[0], &stats->wait);
        paml_histogram_merge(&merged[1], &stats->run);
    }
#define SECONDS(i, fraction)                                                           \
    ((double)paml_histogram_quantile(&merged[i], fraction) / PAML_SECOND)
    result = Py_BuildValue(
        "(KKKKKKLLiddddN)", get(&model->submitted), completed, failed,
        get(&model->cancelled), get(&model->expired) + expired, get(&model->rejected),
        (long long)atomic_load_explicit(&model->queue.rows, memory_order_relaxed),
        (long long)atomic_load_explicit(&model->queue.bytes, memory_order_relaxed),
        running, SECONDS(0, 0.5), SECONDS(0, 0.99), SECONDS(1, 0.5), SECONDS(1, 0.99),
        busy);
#undef SECONDS
    PyMem_Free(merged);
    return result;
}

/* (status, error message, workers alive, workers ready, longest run so far in seconds,
    oldest wait in seconds) */
PyObject *
Model_health(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    static const char *const names[] = {"new",     "loading", "ready",
                                        "closing", "closed",  "failed"};
    struct paml_model *model = self->model;
    int64_t now = paml_now_ns(), since, longest = 0;
    struct paml_error error;
    enum paml_status status;
    PyObject *message;
    int live, opened;

    if (model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return NULL;
    }
    if (paml_threads_forked()) {
        /* Its locks may be held by workers that didn't come along. */
        return Py_BuildValue("(ssiidd)", "failed", "this process was forked", 0, 0, 0.0,
                             0.0);
    }
    status = paml_model_status(model, &error);
    pthread_mutex_lock(&model->lock);
    live = model->live;
    opened = model->opened;
    pthread_mutex_unlock(&model->lock);
    for (int i = 0; i < model->n_workers; i++) {
        since = atomic_load_explicit(&model->workers[i].stats.running_since_ns,
                                     memory_order_relaxed);
        if (since != 0 && now - since > longest) {
            longest = now - since;
        }
    }
    message = PyUnicode_DecodeUTF8(error.message, (Py_ssize_t)strlen(error.message),
                                   "replace");
    if (message == NULL) {
        return NULL;
    }
    return Py_BuildValue("(sNiidd)", names[status], message, live, opened,
                         (double)longest / PAML_SECOND, oldest_wait(&model->queue));
}
