/* The type Future: birth, death, and its entry in the module.
 *
 * It behaves as asyncio.Future does in the running version of CPython, without being
 * one. What a future holds is moved out of it before it is dropped: dropping may come
 * back into the same future.
 *
 * Thread: loop. GIL: held. Locks: none.
 */
#include "future_internal.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

/* --- birth --- */

static int
record_source(struct module_state *state, FutureObj *self)
{
    PyObject *stack;

    /* The traceback module may be gone by then: a future made by a __del__. */
    if (Py_IsFinalizing()) {
        return 0;
    }
    stack = PyObject_CallNoArgs(state->extract_stack);
    if (stack == NULL) {
        return -1;
    }
    Py_XSETREF(self->source_tb, stack);
    return 0;
}

FutureObj *
paml_future_new(struct module_state *state, PyObject *loop, int debug)
{
    FutureObj *self = PyObject_GC_New(FutureObj, state->FutureType);

    if (self == NULL) {
        return NULL;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof(*self) - sizeof(PyObject));
    Py_INCREF(loop);
    self->loop = loop;
    PyObject_GC_Track(self);
    if (debug && record_source(state, self) < 0) {
        Py_CLEAR(self);
    }
    return self;
}

/* Gives up or forgets what the request machinery left with the future. */
static void
detach_request(FutureObj *self)
{
    if (self->request == NULL) {
        return;
    }
    if (self->status == FUTURE_PENDING) {
        paml_request_abandon(self);
    } else {
        paml_request_forget(self);
        self->request = NULL;
    }
}

/* Makes it as __new__ leaves it, but for the dict, which outlives a second __init__. */
static void
empty(FutureObj *self)
{
    struct future_callbacks callbacks;
    PyObject *held[6];

    detach_request(self);
    paml_callbacks_take(self, &callbacks);
    held[0] = self->loop;
    held[1] = self->result;
    held[2] = self->exception;
    held[3] = self->exception_tb;
    held[4] = self->source_tb;
    held[5] = self->cancel_msg;
    self->loop = NULL;
    self->result = self->exception = self->exception_tb = NULL;
    self->source_tb = self->cancel_msg = NULL;
    self->status = FUTURE_PENDING;
    self->log_tb = 0;
    self->blocking = 0;

    paml_callbacks_free(&callbacks);
    for (size_t i = 0; i < sizeof(held) / sizeof(held[0]); i++) {
        Py_XDECREF(held[i]);
    }
}

/* `*loop` is borrowed from the arguments. */
static int
parse_init(struct module_state *state, PyObject *args, PyObject *kwargs,
           PyObject **loop)
{
    static char *names[] = {"loop", NULL};

    if (PyTuple_GET_SIZE(args) == 0 && kwargs != NULL && PyDict_GET_SIZE(kwargs) == 1) {
        PyObject *given = PyDict_GetItemWithError(kwargs, state->str_loop);
        if (given != NULL) {
            *loop = given;
            return 0;
        }
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    return PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:Future", names, loop) ? 0
                                                                                : -1;
}

static int
Future_init(FutureObj *self, PyObject *args, PyObject *kwargs)
{
    PyObject *loop = Py_None, *answer;
    struct module_state *state = paml_state_of_type(Py_TYPE(self));
    int debug;

    if (state == NULL || parse_init(state, args, kwargs, &loop) < 0) {
        return -1;
    }
    if (self->converting) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Future.__init__() called while its result is being made");
        return -1;
    }

    /* Settled, but its hub has yet to run the callbacks: they are run all the same. */
    if (future_is_alive(self) && paml_future_schedule_callbacks(state, self) < 0) {
        return -1;
    }
    empty(self);

    if (loop == Py_None) {
        loop = PyObject_CallNoArgs(state->get_event_loop);
        if (loop == NULL) {
            return -1;
        }
    } else {
        Py_INCREF(loop);
    }
    Py_INCREF(loop);
    Py_XSETREF(self->loop, loop);
    answer = PyObject_CallMethodNoArgs(loop, state->str_get_debug);
    Py_DECREF(loop);
    if (answer == NULL) {
        return -1;
    }
    debug = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    if (debug < 0) {
        return -1;
    }
    return debug ? record_source(state, self) : 0;
}

/* --- questions --- */

static PyObject *
Future_cancelled(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(future_is_alive(self) && self->status == FUTURE_CANCELLED);
}

static PyObject *
Future_done(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(future_is_alive(self) && self->status != FUTURE_PENDING);
}

static PyObject *
Future_get_loop(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    Py_INCREF(self->loop);
    return self->loop;
}

#if PY_VERSION_HEX < 0x030B0000
static PyObject *
Future_repr_info(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    struct module_state *state = paml_state_of_type(Py_TYPE(self));

    if (state == NULL) {
        return NULL;
    }
    return PyObject_CallOneArg(state->future_repr, (PyObject *)self);
}
#endif

/* --- death --- */

static int
Future_traverse(FutureObj *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->result);
    Py_VISIT(self->exception);
    Py_VISIT(self->exception_tb);
    Py_VISIT(self->source_tb);
    Py_VISIT(self->cancel_msg);
    Py_VISIT(self->dict);
    return paml_future_visit_callbacks(self, visit, arg);
}

static int
Future_clear(FutureObj *self)
{
    empty(self);
    Py_CLEAR(self->dict);
    return 0;
}

/* "exception was never retrieved". */
static void
Future_finalize(FutureObj *self)
{
    PyObject *type, *value, *traceback;
    PyObject *message = NULL, *report = NULL, *handler = NULL, *answer = NULL;
    struct module_state *state;

    if (!self->log_tb) {
        return;
    }
    self->log_tb = 0;
    if (self->loop == NULL || self->exception == NULL) {
        return;
    }

    PyErr_Fetch(&type, &value, &traceback);
    state = paml_state_of_type(Py_TYPE(self));
    if (state == NULL) {
        goto done;
    }
    message = PyUnicode_FromFormat("%s exception was never retrieved",
                                   paml_short_type_name(Py_TYPE(self)));
    if (message == NULL) {
        goto done;
    }
    report = Py_BuildValue("{s:O,s:O,s:O}", "message", message, "exception",
                           self->exception, "future", self);
    if (report == NULL) {
        goto done;
    }
    if (self->source_tb != NULL &&
        PyDict_SetItemString(report, "source_traceback", self->source_tb) < 0) {
        goto done;
    }
    handler = PyObject_GetAttr(self->loop, state->str_call_exception_handler);
    if (handler == NULL) {
        goto done;
    }
    answer = PyObject_CallOneArg(handler, report);
    if (answer == NULL) {
        PyErr_WriteUnraisable(handler);
    }

done:
    Py_XDECREF(answer);
    Py_XDECREF(handler);
    Py_XDECREF(report);
    Py_XDECREF(message);
    PyErr_Restore(type, value, traceback);
}

static void
Future_dealloc(FutureObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    /* subtype_dealloc has called the finalizer of a class made in Python. Ours does
       nothing without log_tb. */
    if (self->log_tb && type->tp_dealloc == (destructor)Future_dealloc &&
        PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
        return; /* resurrected */
    }
    PyObject_GC_UnTrack(self);
    /* A chain of futures, each the result of the one before, may be long. */
    Py_TRASHCAN_BEGIN(self, Future_dealloc);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)Future_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

/* --- the type --- */

PyDoc_STRVAR(Future_doc,
             "Future(*, loop=None)\n--\n\n"
             "The awaitable that native work settles; behaves as asyncio.Future.\n\n"
             "May also be made and settled by hand, in tests and to compose others.");

PyDoc_STRVAR(result_doc,
             "result($self, /)\n--\n\n"
             "Return the result, or raise the exception.\n\n"
             "Raises CancelledError if the future was cancelled and InvalidStateError\n"
             "if it is not done. Outputs of a model are converted at the first look.");

PyDoc_STRVAR(exception_doc,
             "exception($self, /)\n--\n\n"
             "Return the exception, or None if there is a result.\n\n"
             "Raises CancelledError if the future was cancelled and InvalidStateError\n"
             "if it is not done.");

PyDoc_STRVAR(set_result_doc,
             "set_result($self, result, /)\n--\n\n"
             "Mark the future done with a result and schedule its callbacks.\n\n"
             "Raises InvalidStateError if it is done already. Work in flight for it\n"
             "is given up.");

PyDoc_STRVAR(set_exception_doc,
             "set_exception($self, exception, /)\n--\n\n"
             "Mark the future done with an exception, an instance or a class.\n\n"
             "Raises InvalidStateError if it is done already. Work in flight for it\n"
             "is given up.");

PyDoc_STRVAR(add_done_callback_doc,
             "add_done_callback($self, fn, /, *, context=None)\n--\n\n"
             "Have the loop call fn(future) once the future is done.\n\n"
             "fn runs in `context`, or in a copy of the context of this call.");

PyDoc_STRVAR(remove_done_callback_doc,
             "remove_done_callback($self, fn, /)\n--\n\n"
             "Remove every callback that equals fn; return how many there were.");

PyDoc_STRVAR(cancel_doc,
             "cancel($self, /, msg=None)\n--\n\n"
             "Cancel the future and schedule its callbacks; False if it is done.\n\n"
             "Work not yet begun is never begun.");

PyDoc_STRVAR(cancelled_doc, "cancelled($self, /)\n--\n\n"
                            "Whether the future was cancelled.");

PyDoc_STRVAR(done_doc, "done($self, /)\n--\n\n"
                       "Whether it has a result, an exception, or was cancelled.");

PyDoc_STRVAR(get_loop_doc, "get_loop($self, /)\n--\n\n"
                           "Return the event loop that the future belongs to.");

PyDoc_STRVAR(make_cancelled_error_doc, "_make_cancelled_error($self, /)\n--\n\n"
                                       "Return the CancelledError to raise.");

#define FASTCALL(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef Future_methods[] = {
    {"result", (PyCFunction)paml_future_result_method, METH_NOARGS, result_doc},
    {"exception", (PyCFunction)paml_future_exception_method, METH_NOARGS,
     exception_doc},
    {"set_result", (PyCFunction)paml_future_set_result_method, METH_O, set_result_doc},
    {"set_exception", (PyCFunction)paml_future_set_exception_method, METH_O,
     set_exception_doc},
    {"add_done_callback", FASTCALL(paml_future_add_done_callback),
     METH_FASTCALL | METH_KEYWORDS, add_done_callback_doc},
    {"remove_done_callback", (PyCFunction)paml_future_remove_done_callback, METH_O,
     remove_done_callback_doc},
    {"cancel", FASTCALL(paml_future_cancel_method), METH_FASTCALL | METH_KEYWORDS,
     cancel_doc},
    {"cancelled", (PyCFunction)Future_cancelled, METH_NOARGS, cancelled_doc},
    {"done", (PyCFunction)Future_done, METH_NOARGS, done_doc},
    {"get_loop", (PyCFunction)Future_get_loop, METH_NOARGS, get_loop_doc},
    {"_make_cancelled_error", (PyCFunction)paml_future_make_cancelled_error,
     METH_NOARGS, make_cancelled_error_doc},
#if PY_VERSION_HEX < 0x030B0000
    {"_repr_info", (PyCFunction)Future_repr_info, METH_NOARGS, NULL},
#endif
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS,
     "The type of a future that gives a T: Future[T]."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Future_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(FutureObj, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(FutureObj, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Future_slots[] = {
    {Py_tp_doc, (void *)Future_doc},    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, Future_init},          {Py_tp_dealloc, Future_dealloc},
    {Py_tp_finalize, Future_finalize},  {Py_tp_traverse, Future_traverse},
    {Py_tp_clear, Future_clear},        {Py_tp_repr, paml_future_repr},
    {Py_tp_iter, paml_future_iter},     {Py_am_await, paml_future_iter},
    {Py_tp_methods, Future_methods},    {Py_tp_members, Future_members},
    {Py_tp_getset, paml_future_getset}, {0, NULL},
};

static PyType_Spec future_spec = {
    .name = "pyasyncml._core.Future",
    .basicsize = sizeof(FutureObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Future_slots,
};

/* --- the module's section --- */

/* *slot = getattr(import(module), name). */
static int
import_into(PyObject **slot, const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);

    if (module == NULL) {
        return -1;
    }
    *slot = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return *slot == NULL ? -1 : 0;
}

static int
import_names(struct module_state *state)
{
#if PY_VERSION_HEX >= 0x030B0000
    const char *future_repr = "_future_repr";
#else
    const char *future_repr = "_future_repr_info";
#endif

    if (import_into(&state->CancelledError, "asyncio", "CancelledError") < 0 ||
        import_into(&state->InvalidStateError, "asyncio", "InvalidStateError") < 0 ||
        import_into(&state->AsyncioFuture, "asyncio", "Future") < 0 ||
        import_into(&state->Handle, "asyncio", "Handle") < 0 ||
        import_into(&state->get_event_loop, "asyncio", "get_event_loop") < 0 ||
        import_into(&state->get_running_loop, "asyncio", "get_running_loop") < 0 ||
        import_into(&state->current_task, "asyncio", "current_task") < 0 ||
        import_into(&state->future_repr, "asyncio.base_futures", future_repr) < 0 ||
        import_into(&state->format_callback_source, "asyncio.format_helpers",
                    "_format_callback_source") < 0 ||
        import_into(&state->extract_stack, "traceback", "extract_stack") < 0) {
        return -1;
    }
    /* Up to 3.13: what current_task() looks the answer up in. */
    if (import_into(&state->current_tasks, "_asyncio", "_current_tasks") < 0) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError) &&
            !PyErr_ExceptionMatches(PyExc_ImportError)) {
            return -1;
        }
        PyErr_Clear();
    } else if (!PyDict_CheckExact(state->current_tasks)) {
        Py_CLEAR(state->current_tasks);
    }
    return 0;
}

static int
intern_names(struct module_state *state)
{
    const struct {
        PyObject **slot;
        const char *text;
    } names[] = {
        {&state->str_call_soon, "call_soon"},
        {&state->str_context, "context"},
        {&state->str_get_debug, "get_debug"},
        {&state->str_loop, "loop"},
        {&state->str_call_exception_handler, "call_exception_handler"},
        {&state->str_PENDING, "PENDING"},
        {&state->str_CANCELLED, "CANCELLED"},
        {&state->str_FINISHED, "FINISHED"},
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        *names[i].slot = PyUnicode_InternFromString(names[i].text);
        if (*names[i].slot == NULL) {
            return -1;
        }
    }
    state->kw_context = PyTuple_Pack(1, state->str_context);
    return state->kw_context == NULL ? -1 : 0;
}

/* asyncio.Future has no attribute __dictoffset__ or __weaklistoffset__. */
static int
hide_offsets(PyTypeObject *type)
{
    for (PyMemberDef *member = Future_members; member->name != NULL; member++) {
        int found = PyMapping_HasKeyString(type->tp_dict, member->name);
        if (found && PyDict_DelItemString(type->tp_dict, member->name) < 0) {
            return -1;
        }
    }
    PyType_Modified(type);
    return 0;
}

int
paml_future_exec(PyObject *module, struct module_state *state)
{
    if (import_names(state) < 0 || intern_names(state) < 0) {
        return -1;
    }
    state->FutureType =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &future_spec, NULL);
    if (state->FutureType == NULL || hide_offsets(state->FutureType) < 0) {
        return -1;
    }
    state->FutureIterType =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &paml_future_iter_spec, NULL);
    if (state->FutureIterType == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->FutureType);
}
