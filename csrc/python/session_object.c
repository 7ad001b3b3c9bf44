/* The Python type `Session`: the C half of pyasyncml.Session.
 *
 * Owner: Python references. Thread: any, GIL held; the engine's session (session.h) has
 * a life of its own, and ends with the last of its requests.
 */
#include "model_object.h"

#include <stddef.h>
#include <structmember.h>

#include "session.h"

typedef struct {
    PyObject_HEAD ModelObj *model;
    struct paml_session *session; /* NULL: closed, or not made yet */
    PyObject *weakrefs;
} SessionObj;

/* One state: where it is in the signature, and its tensor. */
static int
read_state(ModelObj *model, struct paml_request *request, PyObject *name,
           PyObject *object, uint32_t *argument)
{
    struct module_state *state = model->state;
    struct tensor_census census = {0, 0};
    struct input_name input = {PyUnicode_AsUTF8(name), 0};
    Py_ssize_t at = paml_signature_find(model->signature, name);
    uint32_t before = request->op.n_inputs;

    if (at < 0) {
        PyErr_Format(state->InputError,
                     "session: there is no input named %R; Model.signature lists them",
                     name);
        return -1;
    }
    if (paml_value_append(state, request, object, PAML_KIND_BIT(PAML_TENSOR), &input,
                          &census) < 0) {
        return -1;
    }
    if (request->op.n_inputs != before + 1 ||
        request->op.inputs[before].kind != PAML_TENSOR ||
        request->op.inputs[before].tensor.device.device_type != kDLCPU) {
        PyErr_Format(state->InputError,
                     "session: state %R: expected a tensor in host memory", name);
        return -1;
    }
    *argument = (uint32_t)at;
    return 0;
}

/* The states in the signature's order, which is that of the outputs. */
static struct paml_session *
make_session(ModelObj *model, PyObject *states)
{
    uint32_t arguments[PAML_STATES_MOST], n = 0;
    const char *names[PAML_STATES_MOST];
    struct paml_value values[PAML_STATES_MOST];
    struct paml_session *session = NULL;
    struct paml_request request;
    PyObject *name, *object;
    Py_ssize_t position = 0;

    if (PyDict_GET_SIZE(states) < 1 || PyDict_GET_SIZE(states) > PAML_STATES_MOST) {
        PyErr_Format(model->state->InputError,
                     "session: expected 1 to %d states, got %zd", PAML_STATES_MOST,
                     PyDict_GET_SIZE(states));
        return NULL;
    }
    paml_request_borrow(&request, model->state);
    while (PyDict_Next(states, &position, &name, &object)) {
        uint32_t argument, at = n;
        if (read_state(model, &request, name, object, &argument) < 0) {
            goto done;
        }
        for (; at > 0 && arguments[at - 1] > argument; at--) {
            arguments[at] = arguments[at - 1];
            values[at] = values[at - 1];
        }
        arguments[at] = argument;
        values[at] = request.op.inputs[n++];
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct input_spec *spec = &model->signature->inputs[arguments[i]];
        names[i] = spec->name != NULL ? spec->utf8 : NULL;
    }
    session = paml_session_new(n, arguments, names, values);
    if (session == NULL) {
        PyErr_NoMemory();
    }

done:
    paml_request_release_inputs(&request);
    return session;
}

static int
Session_init(SessionObj *self, PyObject *args, PyObject *kwargs)
{
    PyObject *model, *states;
    struct module_state *state = paml_state_of_type(Py_TYPE(self));

    if (state == NULL || (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) ||
        !PyArg_ParseTuple(args, "O!O!:Session", state->ModelType, &model, &PyDict_Type,
                          &states)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "Session takes a model and a dict");
        }
        return -1;
    }
    if (self->model != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the session is made already");
        return -1;
    }
    if (paml_model_check((ModelObj *)model) < 0 ||
        (((ModelObj *)model)->signature == NULL &&
         paml_model_learn_signature((ModelObj *)model) < 0)) {
        return -1;
    }
    self->session = make_session((ModelObj *)model, states);
    if (self->session == NULL) {
        return -1;
    }
    self->model = (ModelObj *)Py_NewRef(model);
    return 0;
}

static int
session_check(SessionObj *self)
{
    if (self->model == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Session object is not initialized.");
        return -1;
    }
    if (self->session == NULL) {
        PyErr_SetString(self->model->state->ModelClosed, "the session is closed");
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(Session_infer_doc,
             "infer($self, /, *inputs, timeout=None, priority=0, **named_inputs)\n"
             "--\n\nRun the session's next request: a Future of its outputs.");

static PyObject *
Session_infer(SessionObj *self, PyObject *const *args, Py_ssize_t nargs,
              PyObject *kwnames)
{
    struct paml_session *session;
    PyObject *future;

    if (session_check(self) < 0) {
        return NULL;
    }
    session = self->session; /* what follows may run anything, close() too */
    atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);
    future = paml_infer(self->model, session, args, nargs, kwnames);
    paml_session_unref(session);
    return future;
}

PyDoc_STRVAR(Session_reset_doc,
             "reset($self, /)\n--\n\n"
             "What is submitted from now on starts from the first state again.");

static PyObject *
Session_reset(SessionObj *self, PyObject *Py_UNUSED(ignored))
{
    if (session_check(self) < 0) {
        return NULL;
    }
    self->session->restart = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Session_close_doc,
             "close($self, /)\n--\n\n"
             "Free the state once what was submitted has run. May be called again.");

static PyObject *
Session_close(SessionObj *self, PyObject *Py_UNUSED(ignored))
{
    struct paml_session *session = self->session;

    self->session = NULL;
    if (session != NULL) {
        paml_session_unref(session);
    }
    Py_RETURN_NONE;
}

static int
Session_traverse(SessionObj *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->model);
    return 0;
}

static int
Session_clear(SessionObj *self)
{
    Py_CLEAR(self->model);
    return 0;
}

static void
Session_dealloc(SessionObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    if (self->session != NULL) {
        paml_session_unref(self->session);
    }
    Session_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef Session_methods[] = {
    {"infer", (PyCFunction)(void (*)(void))Session_infer, METH_FASTCALL | METH_KEYWORDS,
     Session_infer_doc},
    {"reset", (PyCFunction)Session_reset, METH_NOARGS, Session_reset_doc},
    {"close", (PyCFunction)Session_close, METH_NOARGS, Session_close_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Session_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SessionObj, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Session_slots[] = {
    {Py_tp_doc, "The C half of pyasyncml.Session; made by Model.session()."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, Session_init},
    {Py_tp_traverse, Session_traverse},
    {Py_tp_clear, Session_clear},
    {Py_tp_dealloc, Session_dealloc},
    {Py_tp_methods, Session_methods},
    {Py_tp_members, Session_members},
    {0, NULL},
};

static PyType_Spec Session_spec = {
    .name = "pyasyncml._core.Session",
    .basicsize = sizeof(SessionObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Session_slots,
};

int
paml_session_exec(PyObject *module, struct module_state *state)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &Session_spec, NULL);
    int status = type != NULL ? PyModule_AddObjectRef(module, "Session", type) : -1;

    (void)state;
    Py_XDECREF(type);
    return status;
}
