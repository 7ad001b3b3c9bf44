#include "echo_object.h"

#include "hub.h"

typedef struct {
    PyObject_HEAD struct module_state *state;
    struct paml_echo *echo;
} EchoScriptObj;

struct paml_echo *
paml_echo_of_script(PyObject *script)
{
    return ((EchoScriptObj *)script)->echo;
}

static int
watch_remove(struct paml_request *request)
{
    return paml_echo_unwatch(paml_echo_of_script(request->owner), &request->op);
}

static PyObject *
watch_convert(struct module_state *state, struct paml_request *request)
{
    (void)state;
    (void)request;
    Py_RETURN_NONE;
}

static const struct request_kind watch_kind = {.remove = watch_remove,
                                               .convert = watch_convert};

static PyObject *
EchoScript_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"delay",     "busy",   "delay_per_row",
                            "in_flight", "polled", NULL};
    double delay = 0.0, per_row = 0.0;
    int busy = 0, in_flight = 0, polled = 0;
    EchoScriptObj *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|dpdip:EchoScript", names, &delay,
                                     &busy, &per_row, &in_flight, &polled)) {
        return NULL;
    }
    if (!(delay >= 0.0 && delay < 1e6 && per_row >= 0.0 && per_row < 1e6)) {
        PyErr_SetString(PyExc_ValueError, "delay: expected seconds, 0 or more");
        return NULL;
    }
    if (in_flight < 0) {
        PyErr_SetString(PyExc_ValueError, "in_flight: expected a count of runs");
        return NULL;
    }
    self = (EchoScriptObj *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->state = paml_state_of_type(type);
        self->echo =
            paml_echo_new((int64_t)(delay * 1e9), (int64_t)(per_row * 1e9), busy != 0);
        if (self->echo == NULL) {
            Py_DECREF(self);
            return PyErr_NoMemory();
        }
        self->echo->in_flight = (uint32_t)in_flight;
        self->echo->polled = polled != 0;
    }
    return (PyObject *)self;
}

static void
EchoScript_dealloc(EchoScriptObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    if (self->echo != NULL) {
        paml_echo_unref(self->echo);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
EchoScript_hold(EchoScriptObj *self, PyObject *Py_UNUSED(ignored))
{
    paml_echo_hold(self->echo);
    Py_RETURN_NONE;
}

static PyObject *
EchoScript_release(EchoScriptObj *self, PyObject *runs)
{
    long long count = runs == Py_None ? -1 : PyLong_AsLongLong(runs);

    if (count == -1 && PyErr_Occurred()) {
        return NULL;
    }
    paml_echo_release(self->echo, count);
    Py_RETURN_NONE;
}

static PyObject *
EchoScript_fail(EchoScriptObj *self, PyObject *args)
{
    const char *message;
    long long runs;
    int memory;

    if (!PyArg_ParseTuple(args, "Lps:fail", &runs, &memory, &message)) {
        return NULL;
    }
    paml_echo_fail(self->echo, runs, memory ? PAML_ERR_MEMORY : PAML_ERR_BACKEND,
                   message);
    Py_RETURN_NONE;
}

static PyObject *
EchoScript_poison(EchoScriptObj *self, PyObject *value)
{
    double number = value == Py_None ? 0.0 : PyFloat_AsDouble(value);

    if (number == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    paml_echo_poison(self->echo, value != Py_None, number);
    Py_RETURN_NONE;
}

static PyObject *
EchoScript_limit(EchoScriptObj *self, PyObject *rows)
{
    long long count = PyLong_AsLongLong(rows);

    if (count == -1 && PyErr_Occurred()) {
        return NULL;
    }
    paml_echo_limit(self->echo, count);
    Py_RETURN_NONE;
}

static PyObject *
EchoScript_begun(EchoScriptObj *self, PyObject *runs)
{
    unsigned long count = PyLong_AsUnsignedLong(runs);
    struct paml_request *request;
    FutureObj *future;
    HubObj *hub;

    if ((count == (unsigned long)-1 && PyErr_Occurred()) ||
        (hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &watch_kind, (PyObject *)self)) ==
            NULL ||
        (future = paml_request_launch(request)) == NULL) {
        return NULL;
    }
    paml_echo_watch(self->echo, (uint32_t)count, &request->op);
    return (PyObject *)future;
}

/* (begun, finished, [rows of each run that is remembered, oldest first]) */
static PyObject *
EchoScript_seen(EchoScriptObj *self, PyObject *Py_UNUSED(ignored))
{
    struct paml_echo *echo = self->echo;
    uint32_t *rows = PyMem_New(uint32_t, PAML_ECHO_SEEN);
    uint64_t begun, finished, first;
    PyObject *list;

    if (rows == NULL) {
        return PyErr_NoMemory();
    }
    pthread_mutex_lock(&echo->lock);
    begun = echo->begun;
    finished = echo->finished;
    memcpy(rows, echo->seen, sizeof(echo->seen));
    pthread_mutex_unlock(&echo->lock);
    first = begun > PAML_ECHO_SEEN ? begun - PAML_ECHO_SEEN : 0;
    list = PyList_New((Py_ssize_t)(begun - first));
    for (uint64_t i = first; list != NULL && i < begun; i++) {
        PyObject *item = PyLong_FromUnsignedLong(rows[i % PAML_ECHO_SEEN]);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)(i - first), item);
    }
    PyMem_Free(rows);
    return list != NULL ? Py_BuildValue("(KKN)", begun, finished, list) : NULL;
}

static PyMethodDef EchoScript_methods[] = {
    {"hold", (PyCFunction)EchoScript_hold, METH_NOARGS, "Runs wait at the gate."},
    {"release", (PyCFunction)EchoScript_release, METH_O,
     "Let so many runs through; None: open the gate."},
    {"fail", (PyCFunction)EchoScript_fail, METH_VARARGS,
     "fail(runs, memory, message): the next runs fail."},
    {"poison", (PyCFunction)EchoScript_poison, METH_O,
     "Runs fail whose first input holds this number; None: none."},
    {"limit", (PyCFunction)EchoScript_limit, METH_O,
     "Runs of more rows run out of memory; 0: none."},
    {"begun", (PyCFunction)EchoScript_begun, METH_O,
     "A Future that is done when so many runs have begun."},
    {"seen", (PyCFunction)EchoScript_seen, METH_NOARGS, "(begun, finished, rows)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot EchoScript_slots[] = {
    {Py_tp_doc, "What an echo model does on the way; see pyasyncml.testing."},
    {Py_tp_new, EchoScript_new},
    {Py_tp_dealloc, EchoScript_dealloc},
    {Py_tp_methods, EchoScript_methods},
    {0, NULL},
};

static PyType_Spec EchoScript_spec = {
    .name = "pyasyncml._core.EchoScript",
    .basicsize = sizeof(EchoScriptObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = EchoScript_slots,
};

static int
add_backend(PyObject *module, const char *name, const struct paml_backend *backend)
{
    PyObject *capsule = PyCapsule_New((void *)backend, PAML_BACKEND_CAPSULE, NULL);
    int status = capsule != NULL ? PyModule_AddObjectRef(module, name, capsule) : -1;

    Py_XDECREF(capsule);
    return status;
}

int
paml_echo_exec(PyObject *module, struct module_state *state)
{
    state->EchoScriptType =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &EchoScript_spec, NULL);
    if (state->EchoScriptType == NULL ||
        add_backend(module, "echo_backend", &paml_echo_backend) < 0 ||
        add_backend(module, "echo_flights_backend", &paml_echo_flights_backend) < 0) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "EchoScript",
                                 (PyObject *)state->EchoScriptType);
}
