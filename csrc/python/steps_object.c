/* The Python type `Steps`: a training run's steps over arrays, without Python between
 * two of them (steps.h). pyasyncml.training makes and drives it.
 *
 * Owner: Python references, one of them in the request in flight: memory and arrays
 * outlive the worker's use of them. Thread: the loop's, GIL held, but for what steps.h
 * lends to the worker.
 */
#include "model_object.h"

#include <stddef.h>
#include <structmember.h>

#include "mailbox.h"
#include "steps.h"

typedef struct {
    PyObject_HEAD ModelObj *model;
    struct paml_steps steps;
    struct paml_value *loans; /* the arrays */
    DLTensor *arrays;
    Py_buffer order, table; /* obj NULL: none */
    int made, in_flight;
} StepsObj;

/* --- the arrays --- */

static int
refuse_array(StepsObj *self, uint32_t i, const char *what)
{
    PyErr_Format(self->model->state->InputError, "array %u: %s", i, what);
    return -1;
}

static int
check_array(StepsObj *self, uint32_t i, const struct paml_value *value)
{
    const DLTensor *array = &value->tensor;

    if (value->kind != PAML_TENSOR || array->ndim < 1 ||
        array->device.device_type != kDLCPU || !paml_tensor_is_contiguous(array) ||
        array->dtype.bits % 8 != 0) {
        return refuse_array(
            self, i,
            "expected a C-contiguous tensor of one or more axes in host memory");
    }
    if (array->shape[0] < self->steps.epoch_rows) {
        return refuse_array(self, i, "has fewer rows than an epoch");
    }
    return 0;
}

static int
borrow_arrays(StepsObj *self, PyObject *objects)
{
    struct module_state *state = self->model->state;
    struct tensor_census census = {0, 0};
    struct paml_request request;
    uint32_t n = (uint32_t)PyTuple_GET_SIZE(objects);
    int status = -1;

    paml_request_borrow(&request, state);
    self->loans = PyMem_Calloc(n, sizeof(*self->loans));
    self->arrays = PyMem_Calloc(n, sizeof(*self->arrays));
    if (self->loans == NULL || self->arrays == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct input_name name = {NULL, (Py_ssize_t)i};
        if (paml_value_append(state, &request, PyTuple_GET_ITEM(objects, i),
                              PAML_KIND_BIT(PAML_TENSOR), &name, &census) < 0 ||
            check_array(self, i, &request.op.inputs[i]) < 0) {
            goto done;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        self->loans[i] = request.op.inputs[i];
        self->arrays[i] = self->loans[i].tensor;
        request.op.inputs[i].release = NULL; /* ours now */
        request.op.inputs[i].owner = NULL;
    }
    self->steps.n_arrays = n;
    self->steps.arrays = self->arrays;
    status = 0;

done:
    paml_request_release_inputs(&request);
    return status;
}

/* A buffer of `count` items of 8 bytes and of this struct-module format; None: none. */
static int
borrow_numbers(PyObject *object, char format, int64_t count, const char *name,
               Py_buffer *view)
{
    if (object == Py_None) {
        return 0;
    }
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        return -1;
    }
    if (view->itemsize != 8 || view->format == NULL ||
        strchr(view->format, format) == NULL || view->len / 8 < count) {
        PyErr_Format(PyExc_ValueError, "%s: expected %lld numbers of type '%c'", name,
                     (long long)count, format);
        return -1;
    }
    return 0;
}

/* Every row exists: the worker doesn't look. */
static int
check_order(const struct paml_steps *steps, const int64_t *order, int64_t count)
{
    int64_t rows = INT64_MAX;

    for (uint32_t i = 0; i < steps->n_arrays; i++) {
        rows = steps->arrays[i].shape[0] < rows ? steps->arrays[i].shape[0] : rows;
    }
    for (int64_t i = 0; i < count; i++) {
        if (order[i] < 0 || order[i] >= rows) {
            PyErr_Format(PyExc_IndexError, "order: there is no row %lld",
                         (long long)order[i]);
            return -1;
        }
    }
    return 0;
}

/* --- making it --- */

static int
Steps_init(StepsObj *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {
        "model",  "arrays",     "order",      "table", "columns",
        "values", "epoch_rows", "batch_rows", "steps", "stop_when_not_finite",
        "loss",   NULL};
    struct module_state *state = paml_state_of_type(Py_TYPE(self));
    struct paml_steps *steps = &self->steps;
    PyObject *model, *arrays, *order, *table;
    struct paml_error error;
    long long epoch_rows, batch_rows, n_steps, epochs, most;
    int columns, values, stop, loss = 0;

    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OOiiLLLp|i:Steps", names,
                                     state->ModelType, &model, &PyTuple_Type, &arrays,
                                     &order, &table, &columns, &values, &epoch_rows,
                                     &batch_rows, &n_steps, &stop, &loss)) {
        return -1;
    }
    if (self->model != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the steps are made already");
        return -1;
    }
    if (columns < 0 || values < 1 || columns > 1024 || values > 1024 || loss < 0 ||
        loss >= values) {
        PyErr_SetString(PyExc_ValueError, "expected 0 to 1024 columns, 1 to 1024 "
                                          "values, and a loss among them");
        return -1;
    }
    most = INT64_MAX / 1024 / (columns + values + 1);
    if (epoch_rows < 1 || batch_rows < 1 || n_steps < 1 || epoch_rows > most ||
        batch_rows > most || n_steps > most || PyTuple_GET_SIZE(arrays) < 1 ||
        (columns > 0) != (table != Py_None)) {
        PyErr_SetString(PyExc_ValueError,
                        "expected positive counts of rows and steps, an array or "
                        "more, and a table where there are columns");
        return -1;
    }
    if (batch_rows > epoch_rows) {
        batch_rows = epoch_rows;
    }
    if (paml_model_check((ModelObj *)model) < 0) {
        return -1;
    }
    self->model = (ModelObj *)Py_NewRef(model);
    steps->n_columns = (uint32_t)columns;
    steps->n_values = (uint32_t)values;
    steps->loss = (uint32_t)loss;
    steps->epoch_rows = epoch_rows;
    steps->batch_rows = batch_rows;
    steps->n_steps = n_steps;
    steps->stop_when_not_finite = stop != 0;
    epochs =
        paml_steps_per_epoch(n_steps, paml_steps_per_epoch(epoch_rows, batch_rows));
    if (epochs > most / epoch_rows) {
        PyErr_SetString(PyExc_ValueError, "too many steps at a time");
        return -1;
    }
    if (borrow_arrays(self, arrays) < 0 ||
        borrow_numbers(order, sizeof(long) == 8 ? 'l' : 'q', epochs * epoch_rows,
                       "order", &self->order) < 0 ||
        borrow_numbers(table, 'd', n_steps * columns, "table", &self->table) < 0) {
        return -1;
    }
    steps->order = self->order.obj != NULL ? self->order.buf : NULL;
    steps->table = self->table.obj != NULL ? self->table.buf : NULL;
    if (steps->order != NULL &&
        check_order(steps, steps->order, epochs * epoch_rows) < 0) {
        return -1;
    }
    if (paml_steps_init(steps, &error) != PAML_OK) {
        PyErr_SetString(state->OutOfMemory, error.message);
        return -1;
    }
    self->made = 1;
    return 0;
}

static int
steps_check(StepsObj *self)
{
    if (!self->made) {
        PyErr_SetString(PyExc_RuntimeError, "Steps object is not initialized.");
        return -1;
    }
    return paml_model_check(self->model);
}

/* --- running it --- */

static StepsObj *
steps_of(struct paml_request *request)
{
    return (StepsObj *)request->owner;
}

/* The worker puts the op back between two steps: nobody else takes it out. It sees that
   the op was given up. */
static int
run_remove(struct paml_request *request)
{
    (void)request;
    return 0;
}

static void
run_arrived(struct paml_request *request)
{
    steps_of(request)->in_flight = 0;
}

static PyObject *
done_convert(struct module_state *state, struct paml_request *request)
{
    (void)state;
    return PyLong_FromLongLong(
        atomic_load_explicit(&steps_of(request)->steps.done, memory_order_acquire));
}

static const struct request_kind run_kind = {.remove = run_remove,
                                             .needs_owner = 1,
                                             .arrived = run_arrived,
                                             .convert = done_convert};

PyDoc_STRVAR(Steps_start_doc,
             "start($self, /, priority=0)\n--\n\n"
             "Run the steps that are left: a Future of how many are done when the run\n"
             "ends, after the last or after stop().");

static PyObject *
Steps_start(StepsObj *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"priority", NULL};
    struct paml_request *request;
    FutureObj *future;
    HubObj *hub;
    uint32_t n;
    int priority = 0, code;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|i:start", names, &priority) ||
        steps_check(self) < 0) {
        return NULL;
    }
    if (self->in_flight) {
        paml_orphans_collect(self->model->state); /* its loop may be gone by now */
    }
    if (self->in_flight) {
        PyErr_SetString(PyExc_RuntimeError, "the steps are being run already");
        return NULL;
    }
    hub = paml_hub_of_running_loop(self->model->state);
    if (hub == NULL || (request = paml_request_new(self->model->state, hub, &run_kind,
                                                   (PyObject *)self)) == NULL) {
        return NULL;
    }
    n = self->steps.n_columns + self->steps.n_arrays;
    for (uint32_t i = 0; i < n; i++) {
        if (paml_request_input(request) == NULL) {
            paml_request_free(request);
            return NULL;
        }
    }
    request->op.n_arguments = n;
    request->op.priority = priority;
    request->op.steps = &self->steps;
    future = paml_request_launch(request);
    if (future == NULL) {
        return NULL;
    }
    atomic_store_explicit(&self->steps.stop_at, INT64_MAX, memory_order_relaxed);
    self->in_flight = 1;
    request->served = paml_served_use(self->model->served);
    code = paml_model_submit(request->served->model, &request->op);
    if (code != PAML_OK) {
        self->in_flight = 0;
        paml_request_refuse(request, code,
                            code == PAML_ERR_QUEUE ? "the trainer's queue is full"
                                                   : "the trainer is closed");
    }
    return (PyObject *)future;
}

PyDoc_STRVAR(Steps_limit_doc,
             "limit($self, steps, /)\n--\n\n"
             "Let so many steps run and no more: the table's rows for them are there.\n"
             "A run that gets there ends, unless the limit is raised before.");

static PyObject *
Steps_limit(StepsObj *self, PyObject *argument)
{
    long long limit = PyLong_AsLongLong(argument);

    if ((limit == -1 && PyErr_Occurred()) || steps_check(self) < 0) {
        return NULL;
    }
    if (limit < 0 || limit > self->steps.n_steps) {
        PyErr_Format(PyExc_ValueError, "steps: expected 0 to %lld",
                     (long long)self->steps.n_steps);
        return NULL;
    }
    atomic_store_explicit(&self->steps.limit, limit, memory_order_release);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    Steps_stop_doc,
    "stop($self, at=0, /)\n--\n\n"
    "End the run after the step under way, or later: once `at` steps are done.\n"
    "The first of several stops counts.");

static PyObject *
Steps_stop(StepsObj *self, PyObject *args)
{
    atomic_int_least64_t *stop_at = &self->steps.stop_at;
    long long at = 0;

    if (!PyArg_ParseTuple(args, "|L:stop", &at) || steps_check(self) < 0) {
        return NULL;
    }
    if (at < atomic_load_explicit(stop_at, memory_order_relaxed)) {
        atomic_store_explicit(stop_at, at, memory_order_relaxed);
    }
    Py_RETURN_NONE;
}

/* --- watching it --- */

static int
watch_remove(struct paml_request *request)
{
    struct paml_op *mine = &request->op;

    /* Relaxed: what we get back is what we put there. */
    return atomic_compare_exchange_strong_explicit(&steps_of(request)->steps.watcher,
                                                   &mine, NULL, memory_order_relaxed,
                                                   memory_order_relaxed);
}

static const struct request_kind watch_kind = {
    .remove = watch_remove, .needs_owner = 1, .convert = done_convert};

PyDoc_STRVAR(
    Steps_watch_doc,
    "watch($self, seen, interval, /)\n--\n\n"
    "A Future of how many steps are done, once there are more than `seen` and\n"
    "`interval` seconds have passed since the last watch was answered. Left\n"
    "pending where the run ends otherwise than after a step: cancel it then.");

static PyObject *
Steps_watch(StepsObj *self, PyObject *args)
{
    struct paml_steps *steps = &self->steps;
    struct paml_op *none = NULL;
    struct paml_request *request;
    FutureObj *future;
    HubObj *hub;
    long long seen;
    double interval;

    if (!PyArg_ParseTuple(args, "Ld:watch", &seen, &interval) ||
        steps_check(self) < 0) {
        return NULL;
    }
    if (!(interval >= 0.0 && interval < 1e6)) {
        PyErr_SetString(PyExc_ValueError, "interval: expected seconds, 0 or more");
        return NULL;
    }
    hub = paml_hub_of_running_loop(self->model->state);
    if (hub == NULL || (request = paml_request_new(self->model->state, hub, &watch_kind,
                                                   (PyObject *)self)) == NULL) {
        return NULL;
    }
    future = paml_request_launch(request);
    if (future == NULL) {
        return NULL;
    }
    atomic_store_explicit(&steps->interval_ns, (int64_t)(interval * 1e9),
                          memory_order_relaxed);
    if (!self->in_flight ||
        atomic_load_explicit(&steps->done, memory_order_acquire) > seen) {
        paml_mailbox_post(request->op.mailbox, &request->op);
    } else if (!atomic_compare_exchange_strong_explicit(
                   &steps->watcher, &none, &request->op, memory_order_release,
                   memory_order_relaxed)) {
        paml_request_refuse(request, PAML_ERR_BACKEND,
                            "somebody is watching these steps already");
    }
    return (PyObject *)future;
}

/* One of the values of the steps [first, last). */
static PyObject *
values_column(const struct paml_steps *steps, uint32_t column, int64_t first,
              int64_t last)
{
    PyObject *list = PyList_New(last - first);

    for (int64_t i = first; list != NULL && i < last; i++) {
        PyObject *value =
            PyFloat_FromDouble(steps->values[i * steps->n_values + column]);
        if (value == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i - first, value);
    }
    return list;
}

PyDoc_STRVAR(Steps_values_doc,
             "values($self, first, last, /)\n--\n\n"
             "What the steps [first, last) gave: for each of the values a list of\n"
             "floats, one a step.");

static PyObject *
Steps_values(StepsObj *self, PyObject *args)
{
    const struct paml_steps *steps = &self->steps;
    long long first, last, done;
    PyObject *columns;

    if (!PyArg_ParseTuple(args, "LL:values", &first, &last) || steps_check(self) < 0) {
        return NULL;
    }
    done = atomic_load_explicit(&steps->done, memory_order_acquire);
    if (first < 0 || last < first || last > done) {
        PyErr_Format(PyExc_IndexError, "expected 0 <= first <= last <= %lld", done);
        return NULL;
    }
    columns = PyList_New(steps->n_values);
    for (uint32_t i = 0; columns != NULL && i < steps->n_values; i++) {
        PyObject *column = values_column(steps, i, first, last);
        if (column == NULL) {
            Py_CLEAR(columns);
            break;
        }
        PyList_SET_ITEM(columns, i, column);
    }
    return columns;
}

static PyObject *
Steps_get_done(StepsObj *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(
        atomic_load_explicit(&self->steps.done, memory_order_acquire));
}

/* --- the type --- */

static int
Steps_traverse(StepsObj *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->model);
    return 0;
}

static void
Steps_dealloc(StepsObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    if (self->made) {
        paml_steps_destroy(&self->steps);
    }
    for (uint32_t i = 0; self->loans != NULL && i < self->steps.n_arrays; i++) {
        paml_value_release(&self->loans[i]);
    }
    PyMem_Free(self->loans);
    PyMem_Free(self->arrays);
    PyBuffer_Release(&self->order);
    PyBuffer_Release(&self->table);
    Py_CLEAR(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef Steps_methods[] = {
    {"start", (PyCFunction)(void (*)(void))Steps_start, METH_VARARGS | METH_KEYWORDS,
     Steps_start_doc},
    {"limit", (PyCFunction)Steps_limit, METH_O, Steps_limit_doc},
    {"stop", (PyCFunction)Steps_stop, METH_VARARGS, Steps_stop_doc},
    {"watch", (PyCFunction)Steps_watch, METH_VARARGS, Steps_watch_doc},
    {"values", (PyCFunction)Steps_values, METH_VARARGS, Steps_values_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Steps_getset[] = {
    {"done", (getter)Steps_get_done, NULL, "How many steps have ended.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Steps_slots[] = {
    {Py_tp_doc, "A training run's steps over arrays; see pyasyncml.training."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, Steps_init},
    {Py_tp_traverse, Steps_traverse},
    {Py_tp_dealloc, Steps_dealloc},
    {Py_tp_methods, Steps_methods},
    {Py_tp_getset, Steps_getset},
    {0, NULL},
};

static PyType_Spec Steps_spec = {
    .name = "pyasyncml._core.Steps",
    .basicsize = sizeof(StepsObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = Steps_slots,
};

int
paml_steps_exec(PyObject *module, struct module_state *state)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &Steps_spec, NULL);
    int status = type != NULL ? PyModule_AddObjectRef(module, "Steps", type) : -1;

    (void)state;
    Py_XDECREF(type);
    return status;
}
