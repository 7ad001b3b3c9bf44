/* What Model.stats() and Model.health() are made of: one consistent-enough look at the
 * engine's counters, as plain tuples that the Python side names. */
#include "budget.h"
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

/* What adds up over the workers. */
struct sums {
    unsigned long long completed, failed, expired, runs, rows, requests;
    unsigned long long cells, real_cells, releases[PAML_RELEASES];
    int running;
    struct paml_histogram wait, run;
};

static void
add_up(struct sums *sums, const struct paml_worker_stats *stats)
{
    sums->completed += get(&stats->completed);
    sums->failed += get(&stats->failed);
    sums->expired += get(&stats->expired);
    sums->runs += get(&stats->runs);
    sums->rows += get(&stats->rows);
    sums->requests += get(&stats->requests);
    sums->cells += get(&stats->cells);
    sums->real_cells += get(&stats->real_cells);
    for (int i = 0; i < PAML_RELEASES; i++) {
        sums->releases[i] += get(&stats->releases[i]);
    }
    sums->running +=
        atomic_load_explicit(&stats->running_since_ns, memory_order_relaxed) != 0;
    paml_histogram_merge(&sums->wait, &stats->wait);
    paml_histogram_merge(&sums->run, &stats->run);
}

static double
seconds_at(const struct paml_histogram *histogram, double fraction)
{
    return (double)paml_histogram_quantile(histogram, fraction) / PAML_SECOND;
}

static PyObject *
releases_of(const struct sums *sums)
{
    static const char *const names[] = {
        [PAML_RELEASE_ALONE] = "alone",     [PAML_RELEASE_FULL] = "full",
        [PAML_RELEASE_DRAINED] = "drained", [PAML_RELEASE_DELAY] = "delay",
        [PAML_RELEASE_SHAPE] = "shape",     [PAML_RELEASE_DEADLINE] = "deadline",
    };
    PyObject *dict = PyDict_New(), *count;

    for (int i = 0; dict != NULL && i < PAML_RELEASES; i++) {
        count = PyLong_FromUnsignedLongLong(sums->releases[i]);
        if (count == NULL || PyDict_SetItemString(dict, names[i], count) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(count);
    }
    return dict;
}

/* (submitted, completed, failed, cancelled, expired, rejected, waiting rows, waiting
    bytes, running, wait p50, wait p99, run p50, run p99, busy seconds per instance,
    runs, rows, requests of runs, releases, inlined, cells, real cells, CPU
    tokens held and in all) */
PyObject *
Model_stats(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    struct paml_model *model = self->model;
    PyObject *busy = NULL, *releases = NULL, *result = NULL;
    struct sums *sums;

    if (model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return NULL;
    }
    sums = PyMem_Calloc(1, sizeof(*sums));
    busy = PyTuple_New(model->n_workers);
    if (sums == NULL || busy == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < model->n_workers; i++) {
        const struct paml_worker_stats *stats = &model->workers[i].stats;
        PyObject *seconds =
            PyFloat_FromDouble((double)get(&stats->busy_ns) / PAML_SECOND);
        if (seconds == NULL) {
            goto done;
        }
        PyTuple_SET_ITEM(busy, i, seconds);
        add_up(sums, stats);
    }
    releases = releases_of(sums);
    if (releases == NULL) {
        goto done;
    }
    result =
        Py_BuildValue("(KKKKKKLLiddddOKKKOKKKii)", get(&model->submitted),
                      sums->completed + get(&model->inlined),
                      sums->failed + get(&model->inline_failed), get(&model->cancelled),
                      get(&model->expired) + sums->expired, get(&model->rejected),
                      (long long)paml_queue_rows(&model->queue),
                      (long long)paml_queue_bytes(&model->queue), sums->running,
                      seconds_at(&sums->wait, 0.5), seconds_at(&sums->wait, 0.99),
                      seconds_at(&sums->run, 0.5), seconds_at(&sums->run, 0.99), busy,
                      sums->runs, sums->rows, sums->requests, releases,
                      get(&model->inlined) + get(&model->inline_failed), sums->cells,
                      sums->real_cells, paml_budget_held(), paml_budget_total());

done:
    PyMem_Free(sums);
    Py_XDECREF(busy);
    Py_XDECREF(releases);
    return result;
}

/* (status, error message, workers alive, workers ready, longest run so far in seconds,
    oldest wait in seconds, failed runs in a row) */
PyObject *
Model_health(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    static const char *const names[] = {"new",     "loading", "ready",
                                        "closing", "closed",  "failed"};
    struct paml_model *model = self->model;
    int64_t now = paml_now_ns(), since, longest = 0;
    struct paml_error error;
    enum paml_status status;
    unsigned long long failing;
    PyObject *message;
    int live, opened;

    if (model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return NULL;
    }
    if (paml_threads_forked()) {
        /* Its locks may be held by workers that didn't come along. */
        return Py_BuildValue("(ssiiddK)", "failed", "this process was forked", 0, 0,
                             0.0, 0.0, 0ULL);
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
    failing = get(&model->failing);
    if (status == PAML_STATUS_READY && failing == 0) {
        error.message[0] = '\0'; /* of a run that failed once */
    }
    message = PyUnicode_DecodeUTF8(error.message, (Py_ssize_t)strlen(error.message),
                                   "replace");
    if (message == NULL) {
        return NULL;
    }
    return Py_BuildValue("(sNiiddK)", names[status], message, live, opened,
                         (double)longest / PAML_SECOND, oldest_wait(&model->queue),
                         failing);
}
