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

/* What adds up: over the workers of a model, and over the models that a Model served
   one after the other. */
struct paml_totals {
    unsigned long long submitted, rejected, cancelled, inlined, inline_ns;
    unsigned long long completed, failed, expired, runs, rows, requests;
    unsigned long long cells, real_cells, releases[PAML_RELEASES];
    long long waiting_rows, waiting_bytes, parked_rows;
    int running;
    struct paml_histogram wait, run;
    struct paml_instance_totals {
        unsigned long long runs, rows, requests, failed, busy_ns;
    } instances[];
};

static struct paml_totals *
totals_new(const struct paml_model *model)
{
    size_t instances = (size_t)model->n_workers * sizeof(struct paml_instance_totals);

    return PyMem_Calloc(1, sizeof(struct paml_totals) + instances);
}

static void
add_worker(struct paml_totals *totals, struct paml_instance_totals *instance,
           const struct paml_worker_stats *stats)
{
    instance->runs += get(&stats->runs);
    instance->rows += get(&stats->rows);
    instance->requests += get(&stats->requests);
    instance->failed += get(&stats->failed);
    instance->busy_ns += get(&stats->busy_ns);
    totals->completed += get(&stats->completed);
    totals->failed += get(&stats->failed);
    totals->expired += get(&stats->expired);
    totals->runs += get(&stats->runs);
    totals->rows += get(&stats->rows);
    totals->requests += get(&stats->requests);
    totals->cells += get(&stats->cells);
    totals->real_cells += get(&stats->real_cells);
    for (int i = 0; i < PAML_RELEASES; i++) {
        totals->releases[i] += get(&stats->releases[i]);
    }
    totals->running +=
        atomic_load_explicit(&stats->running_since_ns, memory_order_relaxed) != 0;
    paml_histogram_merge(&totals->wait, &stats->wait);
    paml_histogram_merge(&totals->run, &stats->run);
}

/* Thread: any. GIL: any. Locks: none. */
static void
add_model(struct paml_totals *totals, struct paml_model *model)
{
    unsigned long long inline_failed = get(&model->inline_failed);
    unsigned long long inlined = get(&model->inlined) + inline_failed;

    totals->submitted += get(&model->submitted);
    totals->inlined += inlined;
    totals->inline_ns += get(&model->inline_ns);
    totals->runs += inlined;
    totals->rows += get(&model->inline_rows);
    totals->requests += inlined;
    totals->completed += inlined - inline_failed;
    totals->failed += inline_failed;
    totals->rejected += get(&model->rejected);
    totals->cancelled += get(&model->cancelled);
    totals->expired += get(&model->expired);
    totals->waiting_rows += paml_queue_rows(&model->queue);
    totals->waiting_bytes += paml_queue_bytes(&model->queue);
    for (int i = 0; i < model->n_workers; i++) {
        add_worker(totals, &totals->instances[i], &model->workers[i].stats);
    }
}

/* Thread: any. GIL: held. Locks: the models', in turn. */
void
paml_totals_fold(ModelObj *self)
{
    struct paml_model *model = self->model, *gone;

    if (model->predecessor != NULL && self->past == NULL) {
        self->past = totals_new(model);
    }
    while (model->predecessor != NULL && self->past != NULL) {
        if ((gone = paml_model_forget(model)) != NULL) {
            add_model(self->past, gone);
            paml_model_unref(gone);
        } else {
            model = model->predecessor;
        }
    }
}

/* All of them: those that are gone, those that are being drained, the present one.
   NULL with an error set. GIL: held; nothing here runs Python code. Locks: the models'
   and their queues', in turn. */
static struct paml_totals *
totals_of(ModelObj *self)
{
    struct paml_totals *totals = totals_new(self->model);
    struct paml_model *model;

    if (totals == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (!paml_threads_forked()) {
        paml_totals_fold(self); /* takes locks that a worker may have held */
    }
    if (self->past != NULL) {
        memcpy(totals, self->past,
               sizeof(*totals) +
                   (size_t)self->model->n_workers * sizeof(totals->instances[0]));
    }
    for (model = self->model; model != NULL; model = model->predecessor) {
        add_model(totals, model);
        if (!paml_threads_forked()) {
            totals->parked_rows += paml_queue_parked_rows(&model->queue);
        }
    }
    return totals;
}

static double
seconds(unsigned long long ns)
{
    return (double)ns / PAML_SECOND;
}

static double
seconds_at(const struct paml_histogram *histogram, double fraction)
{
    return (double)paml_histogram_quantile(histogram, fraction) / PAML_SECOND;
}

static PyObject *
releases_of(const struct paml_totals *totals)
{
    static const char *const names[] = {
        [PAML_RELEASE_ALONE] = "alone",     [PAML_RELEASE_FULL] = "full",
        [PAML_RELEASE_DRAINED] = "drained", [PAML_RELEASE_DELAY] = "delay",
        [PAML_RELEASE_SHAPE] = "shape",     [PAML_RELEASE_DEADLINE] = "deadline",
    };
    PyObject *dict = PyDict_New(), *count;

    for (int i = 0; dict != NULL && i < PAML_RELEASES; i++) {
        count = PyLong_FromUnsignedLongLong(totals->releases[i]);
        if (count == NULL || PyDict_SetItemString(dict, names[i], count) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(count);
    }
    return dict;
}

static PyObject *
busy_of(const struct paml_totals *totals, int n_workers)
{
    PyObject *busy = PyTuple_New(n_workers), *number;

    for (int i = 0; busy != NULL && i < n_workers; i++) {
        number = PyFloat_FromDouble(seconds(totals->instances[i].busy_ns));
        if (number == NULL) {
            Py_CLEAR(busy);
        } else {
            PyTuple_SET_ITEM(busy, i, number);
        }
    }
    return busy;
}

/* (runs, rows, requests, failed) of each instance. */
static PyObject *
instances_of(const struct paml_totals *totals, int n_workers)
{
    PyObject *instances = PyTuple_New(n_workers), *numbers;

    for (int i = 0; instances != NULL && i < n_workers; i++) {
        const struct paml_instance_totals *instance = &totals->instances[i];
        numbers = Py_BuildValue("(KKKK)", instance->runs, instance->rows,
                                instance->requests, instance->failed);
        if (numbers == NULL) {
            Py_CLEAR(instances);
        } else {
            PyTuple_SET_ITEM(instances, i, numbers);
        }
    }
    return instances;
}

/* (submitted, completed, failed, cancelled, expired, rejected, waiting rows, waiting
    bytes, parked rows, running, waited, wait p50, wait p99, run p50, run p99, busy
   seconds per instance, runs, rows, requests of runs, releases, inlined, their seconds,
   cells of padded inputs, those that were padding, their share, CPU tokens held and in
   all, of each instance (runs, rows, requests, failed)) */
PyObject *
Model_stats(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *busy, *releases, *instances, *result = NULL;
    struct paml_totals *totals;
    unsigned long long padding;

    if (self->model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return NULL;
    }
    if ((totals = totals_of(self)) == NULL) {
        return NULL;
    }
    padding = totals->cells - totals->real_cells;
    busy = busy_of(totals, self->model->n_workers);
    releases = releases_of(totals);
    instances = instances_of(totals, self->model->n_workers);
    if (busy != NULL && releases != NULL && instances != NULL) {
        result = Py_BuildValue(
            "(KKKKKKLLLidddddOKKKOKdKKdiiO)", totals->submitted, totals->completed,
            totals->failed, totals->cancelled, totals->expired, totals->rejected,
            totals->waiting_rows, totals->waiting_bytes, totals->parked_rows,
            totals->running, seconds(get(&totals->wait.sum_ns)),
            seconds_at(&totals->wait, 0.5), seconds_at(&totals->wait, 0.99),
            seconds_at(&totals->run, 0.5), seconds_at(&totals->run, 0.99), busy,
            totals->runs, totals->rows, totals->requests, releases, totals->inlined,
            seconds(totals->inline_ns), totals->cells, padding,
            totals->cells > 0 ? (double)padding / (double)totals->cells : 0.0,
            paml_budget_held(), paml_budget_total(), instances);
    }
    PyMem_Free(totals);
    Py_XDECREF(busy);
    Py_XDECREF(releases);
    Py_XDECREF(instances);
    return result;
}

/* Which instances' devices are lost. */
static PyObject *
lost_of(struct paml_model *model)
{
    PyObject *lost = PyTuple_New(model->n_workers);

    for (int i = 0; lost != NULL && i < model->n_workers; i++) {
        bool is_lost =
            atomic_load_explicit(&model->workers[i].lost, memory_order_relaxed);
        PyTuple_SET_ITEM(lost, i, PyBool_FromLong(is_lost));
    }
    return lost;
}

/* (status, error message, workers alive, workers ready, longest run so far in seconds,
    oldest wait in seconds, failed runs in a row, of each instance whether its device is
    lost) */
PyObject *
Model_health(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    static const char *const names[] = {"new",     "loading", "ready",
                                        "closing", "closed",  "failed"};
    struct paml_model *model = self->model;
    int64_t now = paml_now_ns(), since, longest = 0;
    struct paml_error error, loss;
    enum paml_status status;
    unsigned long long failing;
    PyObject *message, *lost;
    int live, opened;

    if (model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return NULL;
    }
    if (paml_threads_forked()) {
        /* Its locks may be held by workers that didn't come along. */
        return Py_BuildValue("(ssiiddK())", "failed", "this process was forked", 0, 0,
                             0.0, 0.0, 0ULL);
    }
    status = paml_model_status(model, &error);
    pthread_mutex_lock(&model->lock);
    live = model->live;
    opened = model->opened;
    loss = model->loss;
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
        error = loss; /* and not of a run that failed once */
    }
    message = PyUnicode_DecodeUTF8(error.message, (Py_ssize_t)strlen(error.message),
                                   "replace");
    if (message == NULL) {
        return NULL;
    }
    lost = lost_of(model);
    if (lost == NULL) {
        Py_DECREF(message);
        return NULL;
    }
    return Py_BuildValue("(sNiiddKN)", names[status], message, live, opened,
                         (double)longest / PAML_SECOND, oldest_wait(&model->queue),
                         failing, lost);
}
