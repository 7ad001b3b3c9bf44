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
            "Use the 'spawn' start method, or fork before the first model is loaded");
        return -1;
    }
    if (state->shut_down) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is exiting");
        return -1;
    }
    return 0;
}

/* --- what happens to requests of each kind --- */

static int
never_remove(struct paml_request *request)
{
    (void)request;
    return 0;
}

static PyObject *
open_convert(struct module_state *state, struct paml_request *request)
{
    (void)state;
    if (paml_model_learn_signature(paml_model_of(request)) < 0) {
        return NULL;
    }
    return Py_NewRef(request->owner);
}

static const struct request_kind open_kind = {
    .remove = never_remove, .needs_owner = 1, .convert = open_convert};

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

/* --- making and ending --- */

int
paml_model_learn_signature(ModelObj *self)
{
    struct paml_model *model = self->model;
    const struct paml_entry *entry;
    struct signature *signature;

    if (self->signature != NULL) {
        return 0;
    }
    entry = paml_model_pin(model);
    if (entry == NULL) {
        PyErr_SetString(self->state->ModelClosed, "the model is closed");
        return -1;
    }
    signature = paml_signature_new(entry, model->batching.mask_argument);
    paml_model_unpin(model);
    if (self->signature == NULL) {
        self->signature = signature;
    } else {
        paml_signature_free(signature); /* making it ran code that made one, too */
    }
    return self->signature != NULL ? 0 : -1;
}

int
paml_model_check(ModelObj *self)
{
    if (self->model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Model object is not initialized.");
        return -1;
    }
    return paml_usable(self->state);
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
    "      warmup_runs, spin_ns, max_rows, max_bytes, when_full, batching,\n"
    "      inline_ns)\n--\n\n"
    "The C half of pyasyncml.Model; made by pyasyncml.load().");

static int
Model_init(ModelObj *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"backend",     "options",  "name",      "path",
                            "entry",       "devices",  "instances", "threads",
                            "warmup_runs", "spin_ns",  "max_rows",  "max_bytes",
                            "when_full",   "batching", "inline_ns", NULL};
    struct module_state *state = paml_state_of_type(Py_TYPE(self));
    struct paml_model_options options = {0};
    const struct paml_backend *backend;
    PyObject *capsule, *python_options, *name, *devices, *batching;
    long long spin_ns, max_rows, max_bytes, inline_ns;
    struct paml_model *model;
    int when_full;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO$UzzO!iiiLLLiOL", names, &capsule, &python_options, &name,
            &options.load.path, &options.load.entry, &PyTuple_Type, &devices,
            &options.instances, &options.threads, &options.warmup_runs, &spin_ns,
            &max_rows, &max_bytes, &when_full, &batching, &inline_ns)) {
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
    options.limits.when_full = (enum paml_when_full)when_full;
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
    if (paml_parse_batching(batching, &options.batching) < 0) {
        return -1;
    }
    paml_threads_reap();
    model = paml_model_new(backend, &options);
    PyMem_Free(options.batching.settings);
    if (model == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->served = paml_served_new(model);
    if (self->served == NULL) {
        return -1;
    }
    self->model = model;
    self->inline_below_ns = inline_ns;
    self->state = state;
    self->module = Py_NewRef(state->module);
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

    if (paml_model_check(self) < 0 ||
        (hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &open_kind, (PyObject *)self)) ==
            NULL) {
        return NULL;
    }
    if (nargs > 0 && self->model->backend == &paml_python_backend) {
        if (paml_append_call(request, self->options, paml_tuple_of(args, nargs),
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
    if (paml_model_check(self) < 0) {
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
        paml_model_check(self) < 0 ||
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

PyDoc_STRVAR(Model_swap_doc,
             "_swap($self, other, /)\n--\n\n"
             "Serve what `other` has loaded from now on; `other` gets what was served\n"
             "until now, closed, to be drained. Both have the same signature and the\n"
             "same instances.");

#define SWAP(type, a, b)                                                               \
    do {                                                                               \
        type between = a;                                                              \
        a = b;                                                                         \
        b = between;                                                                   \
    } while (0)

/* Thread: any. GIL: held, and not let go of: who submits does so before or after.
   Locks: the queue's and the models', in turn. */
static PyObject *
Model_swap(ModelObj *self, PyObject *object)
{
    ModelObj *other = (ModelObj *)object;

    if (paml_model_check(self) < 0) {
        return NULL;
    }
    if (!PyObject_TypeCheck(object, self->state->ModelType)) {
        PyErr_Format(PyExc_TypeError, "other: expected a Model, got %s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    if (self->closing) {
        PyErr_Format(self->state->ModelClosed, "model '%U' is closed", self->name);
        return NULL;
    }
    if (other == self || other->model == NULL || other->closing ||
        other->model->n_workers != self->model->n_workers ||
        paml_model_status(other->model, NULL) != PAML_STATUS_READY) {
        PyErr_SetString(PyExc_ValueError, "other: expected a model of its like, ready");
        return NULL;
    }
    SWAP(struct paml_served *, self->served, other->served);
    SWAP(struct paml_model *, self->model, other->model);
    SWAP(PyObject *, self->backend, other->backend);
    SWAP(PyObject *, self->options, other->options);
    paml_model_succeed(self->model, other->model);
    other->closing = 1;
    paml_model_close(other->model, true, NULL);
    paml_totals_fold(self);
    Py_RETURN_NONE;
}

static PyObject *
Model_get_described(ModelObj *self, void *Py_UNUSED(closure))
{
    if (paml_model_check(self) < 0 ||
        (self->signature == NULL && paml_model_learn_signature(self) < 0)) {
        return NULL;
    }
    return Py_NewRef(self->signature->described);
}

static PyObject *
Model_get_finish(ModelObj *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->finish != NULL ? self->finish : Py_None);
}

static int
Model_set_finish(ModelObj *self, PyObject *value, void *Py_UNUSED(closure))
{
    PyObject *old = self->finish;

    self->finish = value != NULL && value != Py_None ? Py_NewRef(value) : NULL;
    Py_XDECREF(old);
    return 0;
}

static int
Model_traverse(ModelObj *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->backend);
    Py_VISIT(self->options);
    Py_VISIT(self->finish);
    Py_VISIT(self->dict);
    return 0;
}

static int
Model_clear(ModelObj *self)
{
    Py_CLEAR(self->backend);
    Py_CLEAR(self->options);
    Py_CLEAR(self->finish);
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
    PyObject *module = self->module;

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
        paml_served_leave(self->served);
    }
    Model_clear(self);
    Py_XDECREF(self->name);
    paml_signature_free(self->signature);
    PyMem_Free(self->devices);
    PyMem_Free(self->past);
    type->tp_free(self);
    Py_DECREF(type);
    Py_XDECREF(module);
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
    {"_swap", (PyCFunction)Model_swap, METH_O, Model_swap_doc},
    {"_call", (PyCFunction)(void (*)(void))Model_call, METH_FASTCALL | METH_KEYWORDS,
     Model_call_doc},
    {"_run_direct", (PyCFunction)(void (*)(void))Model_run_direct, METH_FASTCALL,
     Model_run_direct_doc},
    {"_withdraw", (PyCFunction)Model_withdraw, METH_O, Model_withdraw_doc},
    {"_stats", (PyCFunction)Model_stats, METH_NOARGS, NULL},
    {"_health", (PyCFunction)Model_health, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Model_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(ModelObj, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ModelObj, weakrefs), READONLY, NULL},
    {"name", T_OBJECT_EX, offsetof(ModelObj, name), READONLY,
     "What errors, stats and logs call the model."},
    {"_closing", T_INT, offsetof(ModelObj, closing), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Model_getset[] = {
    {"_described", (getter)Model_get_described, NULL, NULL, NULL},
    {"_finish", (getter)Model_get_finish, (setter)Model_set_finish, NULL, NULL},
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
