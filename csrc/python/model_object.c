#include "model_object.h"

#include <math.h>
#include <stddef.h>
#include <structmember.h>

#include "clock.h"
#include "echo_object.h"
#include "thread.h"

int
paml_usable(struct module_state *state)
{
    if (paml_threads_forked()) {
        PyErr_SetString(
            state->Error,
            "this process was forked from one that had started pyasyncml's "
            "workers: they did not come along, and the frameworks hang here. "
            "Use the 'spawn' start method, or load models after the fork");
        return -1;
    }
    if (state->shut_down) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is exiting");
        return -1;
    }
    return 0;
}

/* --- what happens to requests of each kind --- */

static ModelObj *
model_of(struct paml_request *request)
{
    return (ModelObj *)request->owner;
}

static int
infer_remove(struct paml_request *request)
{
    return paml_queue_remove(&model_of(request)->model->queue, &request->op);
}

static void
infer_given_up(struct paml_request *request, int code)
{
    struct paml_model *model = model_of(request)->model;

    atomic_fetch_add_explicit(code == PAML_OK ? &model->cancelled : &model->expired, 1,
                              memory_order_relaxed);
}

static PyObject *
infer_convert(struct module_state *state, struct paml_request *request)
{
    return paml_outputs_to_object(state, &request->op.outputs, request->flavour);
}

static const struct request_kind infer_kind = {
    .remove = infer_remove, .given_up = infer_given_up, .convert = infer_convert};

static int
never_remove(struct paml_request *request)
{
    (void)request;
    return 0;
}

static int model_learn_signature(ModelObj *self);

static PyObject *
open_convert(struct module_state *state, struct paml_request *request)
{
    (void)state;
    if (model_learn_signature(model_of(request)) < 0) {
        return NULL;
    }
    return Py_NewRef(request->owner);
}

static const struct request_kind open_kind = {.remove = never_remove,
                                              .convert = open_convert};

static void
close_arrived(struct paml_request *request)
{
    (void)request;
    paml_threads_reap();
}

static PyObject *
close_convert(struct module_state *state, struct paml_request *request)
{
    (void)state;
    (void)request;
    Py_RETURN_NONE;
}

static const struct request_kind close_kind = {
    .remove = never_remove, .arrived = close_arrived, .convert = close_convert};

/* --- calls of Python callables --- */

/* Inputs of a live module or of call(): opaque to the engine. All stolen but context.
 */
static int
append_call(struct paml_request *request, PyObject *function, PyObject *args,
            PyObject *kwargs)
{
    PyObject *context = PyContext_CopyCurrent();
    int status = -1;

    if (args != NULL && kwargs != NULL && context != NULL) {
        /* Every reference is taken over, also where one of these fails. */
        status = paml_value_append_object(request, Py_NewRef(function));
        status |= paml_value_append_object(request, Py_NewRef(args));
        status |= paml_value_append_object(request, Py_NewRef(kwargs));
        status |= paml_value_append_object(request, Py_NewRef(context));
        request->op.n_arguments = 4;
    }
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(context);
    return status;
}

static PyObject *
tuple_of(PyObject *const *items, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);

    for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(items[i]));
    }
    return tuple;
}

/* None where there are no keywords. */
static PyObject *
dict_of(PyObject *const *names, PyObject *const *values, Py_ssize_t count)
{
    PyObject *dict;

    if (count == 0) {
        return Py_NewRef(Py_None);
    }
    dict = PyDict_New();
    for (Py_ssize_t i = 0; dict != NULL && i < count; i++) {
        if (PyDict_SetItem(dict, names[i], values[i]) < 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

/* --- making and ending --- */

static int
model_learn_signature(ModelObj *self)
{
    if (self->signature != NULL) {
        return 0;
    }
    /* The lock keeps the program's description alive; no worker needs the GIL while it
       waits for it. */
    pthread_mutex_lock(&self->model->lock);
    if (self->model->entry == NULL) {
        PyErr_SetString(self->state->ModelClosed, "the model was closed");
    } else {
        self->signature = paml_signature_new(self->model->entry);
    }
    pthread_mutex_unlock(&self->model->lock);
    return self->signature != NULL ? 0 : -1;
}

static int
parse_devices(ModelObj *self, PyObject *devices)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(devices);
    int type, index;

    self->devices = PyMem_New(DLDevice, count);
    if (self->devices == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(devices, i), "ii", &type,
                              &index)) {
            return -1;
        }
        self->devices[i] = (DLDevice){(DLDeviceType)type, index};
    }
    self->n_devices = (int)count;
    return 0;
}

PyDoc_STRVAR(
    Model_doc,
    "Model(backend, options, *, name, path, entry, devices, instances, threads,\n"
    "      warmup_runs, spin_ns, max_rows, max_bytes, reject)\n--\n\n"
    "The C half of pyasyncml.Model; made by pyasyncml.load().");

static int
Model_init(ModelObj *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"backend",     "options", "name",      "path",
                            "entry",       "devices", "instances", "threads",
                            "warmup_runs", "spin_ns", "max_rows",  "max_bytes",
                            "reject",      NULL};
    struct module_state *state = paml_state_of_type(Py_TYPE(self));
    struct paml_model_options options = {0};
    const struct paml_backend *backend;
    PyObject *capsule, *python_options, *name, *devices;
    long long spin_ns, max_rows, max_bytes;
    int reject;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO$UzzO!iiiLLLp", names, &capsule, &python_options, &name,
            &options.load.path, &options.load.entry, &PyTuple_Type, &devices,
            &options.instances, &options.threads, &options.warmup_runs, &spin_ns,
            &max_rows, &max_bytes, &reject)) {
        return -1;
    }
    if (state == NULL || paml_usable(state) < 0) {
        return -1;
    }
    if (self->model != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the model is made already");
        return -1;
    }
    backend = PyCapsule_GetPointer(capsule, PAML_BACKEND_CAPSULE);
    if (backend == NULL) {
        return -1;
    }
    if (backend->abi_version != PAML_ABI_VERSION ||
        backend->struct_size < sizeof(struct paml_backend)) {
        PyErr_Format(state->LoadError,
                     "the backend speaks version %u of the backend interface, this "
                     "pyasyncml speaks %u: rebuild it",
                     backend->abi_version, PAML_ABI_VERSION);
        return -1;
    }
    if (parse_devices(self, devices) < 0) {
        return -1;
    }
    options.name = PyUnicode_AsUTF8(name);
    options.devices = self->devices;
    options.n_devices = self->n_devices;
    options.spin_ns = spin_ns;
    options.limits.max_rows = max_rows;
    options.limits.max_bytes = max_bytes;
    options.limits.when_full = reject ? PAML_FULL_REJECT : PAML_FULL_WAIT;
    if (PyCapsule_CheckExact(python_options)) {
        options.load.options =
            PyCapsule_GetPointer(python_options, PyCapsule_GetName(python_options));
    } else if (Py_IS_TYPE(python_options, state->EchoScriptType)) {
        options.load.options = paml_echo_of_script(python_options);
    } else if (backend == &paml_python_backend) {
        options.load.options = PyThreadState_Get()->interp;
    }
    if (PyErr_Occurred() || options.name == NULL) {
        return -1;
    }
    paml_threads_reap();
    self->model = paml_model_new(backend, &options);
    if (self->model == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->state = state;
    self->name = Py_NewRef(name);
    self->backend = Py_NewRef(capsule);
    self->options = Py_NewRef(python_options);
    self->next = state->models;
    if (self->next != NULL) {
        self->next->previous = self;
    }
    state->models = self;
    return 0;
}

static int
model_check(ModelObj *self)
{
    if (self->model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return -1;
    }
    return paml_usable(self->state);
}

PyDoc_STRVAR(
    Model_start_doc,
    "_start($self, /, *example)\n--\n\n"
    "Start the workers. With a running loop: a Future of the model itself, once\n"
    "every instance is open and warmed up with the example.");

static PyObject *
Model_start(ModelObj *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct tensor_census census = {0, 0};
    struct paml_request *request;
    FutureObj *future;
    HubObj *hub;

    if (model_check(self) < 0 ||
        (hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &open_kind, (PyObject *)self)) ==
            NULL) {
        return NULL;
    }
    if (nargs > 0 && self->model->backend == &paml_python_backend) {
        if (append_call(request, self->options, tuple_of(args, nargs),
                        Py_NewRef(Py_None)) < 0) {
            paml_request_free(request);
            return NULL;
        }
        nargs = 0;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        struct input_name name = {NULL, i};
        if (paml_value_append(self->state, request, args[i], PAML_KIND_ANY, &name,
                              &census) < 0) {
            paml_request_free(request);
            return NULL;
        }
        request->op.n_arguments++;
    }
    future = paml_request_launch(request);
    if (future != NULL) {
        paml_model_start(self->model, &request->op);
    }
    return (PyObject *)future;
}

PyDoc_STRVAR(Model_start_pool_doc,
             "_start_pool($self, /)\n--\n\n"
             "Start the workers without waiting for them: for call().");

static PyObject *
Model_start_pool(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    if (model_check(self) < 0) {
        return NULL;
    }
    paml_model_start(self->model, NULL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    Model_close_doc,
    "close($self, /, *, drain=True)\n--\n\n"
    "Stop accepting requests; a Future that is done when the workers have ended.\n\n"
    "What was accepted is served first; with ``drain=False`` what waits fails with\n"
    "`ModelClosed`, and only what runs is waited for. May be called again.");

static PyObject *
Model_close(ModelObj *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"drain", NULL};
    struct paml_request *request;
    FutureObj *future;
    HubObj *hub;
    int drain = 1;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:close", names, &drain) ||
        model_check(self) < 0 ||
        (hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &close_kind, (PyObject *)self)) ==
            NULL ||
        (future = paml_request_launch(request)) == NULL) {
        return NULL;
    }
    self->closing = 1;
    paml_model_close(self->model, drain != 0, &request->op);
    return (PyObject *)future;
}

PyDoc_STRVAR(Model_abort_doc, "_abort($self, /)\n--\n\n"
                              "Close without draining or waiting; needs no loop.");

static PyObject *
Model_abort(ModelObj *self, PyObject *Py_UNUSED(ignored))
{
    if (self->model != NULL && !paml_threads_forked()) {
        self->closing = 1;
        paml_model_close(self->model, false, NULL);
    }
    Py_RETURN_NONE;
}

/* --- requests --- */

static int
parse_timeout(PyObject *timeout, int64_t now_ns, int64_t *deadline_ns)
{
    double seconds;

    if (timeout == Py_None) {
        return 0;
    }
    seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        PyErr_Format(PyExc_TypeError, "timeout: expected seconds or None, got %s",
                     Py_TYPE(timeout)->tp_name);
        return -1;
    }
    if (!(seconds >= 0.0)) {
        PyErr_Format(PyExc_ValueError, "timeout: expected seconds, 0 or more, got %R",
                     timeout);
        return -1;
    }
    if (seconds < 1e9) { /* 30 years are for ever */
        *deadline_ns = now_ns + (int64_t)(seconds * PAML_SECOND);
    }
    return 0;
}

static int
parse_priority(PyObject *priority, int32_t *to)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(priority, &overflow);

    if (value == -1 && PyErr_Occurred()) {
        PyErr_Format(PyExc_TypeError, "priority: expected an int, got %s",
                     Py_TYPE(priority)->tp_name);
        return -1;
    }
    if (overflow != 0 || value > INT32_MAX || value < INT32_MIN) {
        PyErr_Format(PyExc_ValueError, "priority: expected an int of 32 bits, got %R",
                     priority);
        return -1;
    }
    *to = (int32_t)value;
    return 0;
}

/* Takes timeout= and priority= out of a call's keywords; what is left (`names`, with
   room for all) is named inputs. Returns how many are left, or -1. */
static Py_ssize_t
parse_keywords(struct module_state *state, struct paml_op *op, PyObject *kwnames,
               PyObject *const *values, PyObject **names, PyObject **named)
{
    Py_ssize_t count = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0, left = 0;

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (name == state->str_timeout ||
            PyUnicode_Compare(name, state->str_timeout) == 0) {
            if (parse_timeout(values[i], paml_now_ns(), &op->deadline_ns) < 0) {
                return -1;
            }
        } else if (name == state->str_priority ||
                   PyUnicode_Compare(name, state->str_priority) == 0) {
            if (parse_priority(values[i], &op->priority) < 0) {
                return -1;
            }
        } else {
            names[left] = name;
            named[left++] = values[i];
        }
    }
    return left;
}

static int
check_inputs_reachable(ModelObj *self, struct paml_request *request)
{
    struct paml_op *op = &request->op;
    char input[64], model[64];

    for (uint32_t i = 0; i < op->n_inputs; i++) {
        const struct paml_value *value = &op->inputs[i];
        int here =
            value->kind != PAML_TENSOR || value->tensor.device.device_type == kDLCPU;

        for (int d = 0; !here && d < self->n_devices; d++) {
            here = value->tensor.device.device_type == self->devices[d].device_type &&
                   value->tensor.device.device_id == self->devices[d].device_id;
        }
        if (!here) {
            PyErr_Format(self->state->InputError,
                         "an input tensor is on %s, the model runs on %s",
                         paml_device_name(value->tensor.device, input, sizeof(input)),
                         paml_device_name(self->devices[0], model, sizeof(model)));
            return -1;
        }
        op->bytes += paml_value_nbytes(value);
    }
    return 0;
}

/* The request is ready: gives it to the queue. Returns the future, a new reference;
   NULL with an error set where the call itself was wrong. */
static PyObject *
submit(ModelObj *self, struct paml_request *request)
{
    struct paml_model *model = self->model;
    const struct paml_queue_limits *limits = &model->queue.limits;
    FutureObj *future = paml_request_launch(request);
    struct paml_error error;
    char message[256];
    int code;

    if (future == NULL) {
        return NULL;
    }
    if (request->op.deadline_ns != 0 &&
        request->op.deadline_ns <= request->op.submitted_ns) {
        infer_given_up(request, PAML_ERR_DEADLINE);
        paml_request_refuse(request, PAML_ERR_DEADLINE,
                            "timeout=0 leaves no time to run");
        return (PyObject *)future;
    }
    paml_hub_hold(request->hub, model, request->op.submitted_ns);
    code = paml_model_submit(model, &request->op);
    if (code == PAML_OK) {
        return (PyObject *)future;
    }
    if (code == PAML_ERR_QUEUE) {
        snprintf(
            message, sizeof(message),
            "the queue of model '%s' is full: it holds at most %lld rows and %lld "
            "bytes (Queue(max_rows=, max_bytes=)); this request has %u rows and %zu "
            "bytes",
            model->name, (long long)limits->max_rows, (long long)limits->max_bytes,
            request->op.rows, request->op.bytes);
        paml_request_refuse(request, code, message);
        return (PyObject *)future;
    }
    paml_request_refuse(request, code, "closed");
    future->log_tb = 0; /* raised here instead */
    Py_DECREF(future);
    if (paml_model_status(model, &error) == PAML_STATUS_FAILED) {
        PyErr_Format(self->state->ModelClosed, "model '%s' failed to load: %s",
                     model->name, error.message);
    } else {
        PyErr_Format(self->state->ModelClosed, "model '%s' is closed", model->name);
    }
    return NULL;
}

PyDoc_STRVAR(
    Model_infer_doc,
    "infer($self, /, *inputs, timeout=None, priority=0, **named_inputs)\n--\n\n"
    "Run the model on the inputs: a Future of its outputs.");

static PyObject *
Model_infer(ModelObj *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct tensor_census census = {0, 0};
    Py_ssize_t n_keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0, n_named;
    PyObject *few_names[8], *few_named[8], **names = few_names, **named = few_named;
    struct paml_request *request = NULL;
    HubObj *hub;
    int status = -1;

    if (model_check(self) < 0 ||
        (hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &infer_kind, (PyObject *)self)) ==
            NULL) {
        return NULL;
    }
    if (n_keywords > 8) {
        names = PyMem_New(PyObject *, 2 * n_keywords);
        if (names == NULL) {
            PyErr_NoMemory();
            goto done;
        }
        named = names + n_keywords;
    }
    n_named =
        parse_keywords(self->state, &request->op, kwnames, args + nargs, names, named);
    if (n_named < 0) {
        goto done;
    }
    if (self->model->backend == &paml_python_backend) {
        status = append_call(request, self->options, tuple_of(args, nargs),
                             dict_of(names, named, n_named));
    } else if (self->signature != NULL || model_learn_signature(self) == 0) {
        status = paml_signature_bind(self->state, self->signature, request, args, nargs,
                                     named, names, n_named, &census);
        request->flavour =
            census.torch > 0 && census.other == 0 ? FLAVOUR_TORCH : FLAVOUR_NUMPY;
        if (status == 0) {
            status = check_inputs_reachable(self, request);
        }
    }

done:
    if (names != few_names) {
        PyMem_Free(names);
    }
    if (status < 0) {
        paml_request_free(request);
        return NULL;
    }
    return submit(self, request);
}

PyDoc_STRVAR(Model_call_doc,
             "_call($self, fn, /, *args, **kwargs)\n--\n\n"
             "Run fn(*args, **kwargs) on a worker: a Future of what it returns.");

static PyObject *
Model_call(ModelObj *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t n_keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    struct paml_request *request;
    HubObj *hub;

    if (model_check(self) < 0) {
        return NULL;
    }
    if (nargs < 1 || !PyCallable_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "fn: expected a callable, got %s",
                     nargs < 1 ? "nothing" : Py_TYPE(args[0])->tp_name);
        return NULL;
    }
    if ((hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &infer_kind, (PyObject *)self)) ==
            NULL) {
        return NULL;
    }
    if (append_call(request, args[0], tuple_of(args + 1, nargs - 1),
                    dict_of(n_keywords > 0 ? &PyTuple_GET_ITEM(kwnames, 0) : NULL,
                            args + nargs, n_keywords)) < 0) {
        paml_request_free(request);
        return NULL;
    }
    return submit(self, request);
}

/* The same work without workers: converts, runs and converts back in the calling
   thread, as a blocking binding does. What benchmarks compare with, and debuggers step
   into. */
PyDoc_STRVAR(Model_run_direct_doc,
             "run_direct($self, /, *inputs)\n--\n\n"
             "Run the inputs in the calling thread and return the outputs.");

static PyObject *
Model_run_direct(ModelObj *self, PyObject *const *args, Py_ssize_t nargs)
{
    const struct paml_backend *backend;
    struct tensor_census census = {0, 0};
    struct paml_request request;
    struct paml_error error = {0};
    void *instance = NULL;
    PyObject *result = NULL;
    int code;

    if (model_check(self) < 0 ||
        (self->signature == NULL && model_learn_signature(self) < 0)) {
        return NULL;
    }
    if (paml_model_status(self->model, NULL) != PAML_STATUS_READY) {
        PyErr_SetString(self->state->ModelClosed, "the model is closed");
        return NULL;
    }
    backend = self->model->backend;
    paml_request_borrow(&request, self->state);
    if (paml_signature_bind(self->state, self->signature, &request, args, nargs, NULL,
                            NULL, 0, &census) == 0) {
        struct paml_run run = {.inputs = request.op.inputs,
                               .n_inputs = request.op.n_inputs,
                               .n_arguments = request.op.n_arguments,
                               .outputs = &request.op.outputs};
        Py_BEGIN_ALLOW_THREADS code =
            backend->open(self->model->program, self->devices[0], 1, &instance, &error);
        if (code == PAML_OK) {
            code = backend->run(instance, &run, &error);
            backend->close(instance);
        }
        Py_END_ALLOW_THREADS if (code == PAML_OK)
        {
            result = paml_outputs_to_object(
                self->state, &request.op.outputs,
                census.torch > 0 && census.other == 0 ? FLAVOUR_TORCH : FLAVOUR_NUMPY);
        }
        else
        {
            PyObject *exception = paml_exception_new(self->state, code, error.message);
            PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
            Py_DECREF(exception);
        }
    }
    paml_request_release_inputs(&request);
    paml_op_clear(&request.op);
    return result;
}

static PyObject *
Model_get_described(ModelObj *self, void *Py_UNUSED(closure))
{
    if (model_check(self) < 0 ||
        (self->signature == NULL && model_learn_signature(self) < 0)) {
        return NULL;
    }
    return Py_NewRef(self->signature->described);
}

static int
Model_traverse(ModelObj *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->backend);
    Py_VISIT(self->options);
    Py_VISIT(self->dict);
    return 0;
}

static int
Model_clear(ModelObj *self)
{
    Py_CLEAR(self->backend);
    Py_CLEAR(self->options);
    Py_CLEAR(self->dict);
    return 0;
}

/* Collected without close(): says so, lets the workers end, waits for nothing. */
static void
Model_finalize(ModelObj *self)
{
    PyObject *type, *value, *traceback;

    if (self->model == NULL || self->closing || paml_threads_forked()) {
        return;
    }
    self->closing = 1;
    PyErr_Fetch(&type, &value, &traceback);
    if (paml_model_status(self->model, NULL) == PAML_STATUS_READY &&
        PyErr_ResourceWarning((PyObject *)self, 1,
                              "unclosed model %R: use 'async with', or await close()",
                              self->name) < 0 &&
        PyErr_ExceptionMatches(PyExc_Warning)) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    PyErr_Restore(type, value, traceback);
    paml_model_close(self->model, false, NULL);
}

static void
Model_dealloc(ModelObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    if (self->model != NULL) {
        if (self->next != NULL) {
            self->next->previous = self->previous;
        }
        *(self->previous != NULL ? &self->previous->next : &self->state->models) =
            self->next;
        paml_model_unref(self->model);
    }
    Model_clear(self);
    Py_XDECREF(self->name);
    paml_signature_free(self->signature);
    PyMem_Free(self->devices);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef Model_methods[] = {
    {"infer", (PyCFunction)(void (*)(void))Model_infer, METH_FASTCALL | METH_KEYWORDS,
     Model_infer_doc},
    {"close", (PyCFunction)(void (*)(void))Model_close, METH_VARARGS | METH_KEYWORDS,
     Model_close_doc},
    {"_start", (PyCFunction)(void (*)(void))Model_start, METH_FASTCALL,
     Model_start_doc},
    {"_start_pool", (PyCFunction)Model_start_pool, METH_NOARGS, Model_start_pool_doc},
    {"_abort", (PyCFunction)Model_abort, METH_NOARGS, Model_abort_doc},
    {"_call", (PyCFunction)(void (*)(void))Model_call, METH_FASTCALL | METH_KEYWORDS,
     Model_call_doc},
    {"_run_direct", (PyCFunction)(void (*)(void))Model_run_direct, METH_FASTCALL,
     Model_run_direct_doc},
    {"_stats", (PyCFunction)Model_stats, METH_NOARGS, NULL},
    {"_health", (PyCFunction)Model_health, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Model_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(ModelObj, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ModelObj, weakrefs), READONLY, NULL},
    {"name", T_OBJECT_EX, offsetof(ModelObj, name), READONLY,
     "What errors, stats and logs call the model."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Model_getset[] = {
    {"_described", (getter)Model_get_described, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Model_slots[] = {
    {Py_tp_doc, (void *)Model_doc},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, Model_init},
    {Py_tp_traverse, Model_traverse},
    {Py_tp_clear, Model_clear},
    {Py_tp_finalize, Model_finalize},
    {Py_tp_dealloc, Model_dealloc},
    {Py_tp_methods, Model_methods},
    {Py_tp_members, Model_members},
    {Py_tp_getset, Model_getset},
    {0, NULL},
};

static PyType_Spec Model_spec = {
    .name = "pyasyncml._core.Model",
    .basicsize = sizeof(ModelObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Model_slots,
};

int
paml_model_exec(PyObject *module, struct module_state *state)
{
    state->ModelType =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &Model_spec, NULL);
    state->str_timeout = PyUnicode_InternFromString("timeout");
    state->str_priority = PyUnicode_InternFromString("priority");
    if (state->ModelType == NULL || state->str_timeout == NULL ||
        state->str_priority == NULL) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "Model", (PyObject *)state->ModelType);
}
