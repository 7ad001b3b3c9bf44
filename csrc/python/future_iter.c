/* The iterator behind `await future` and `yield from future`: it yields its future
 * once, with the flag that tells a task so, and then returns the result.
 *
 * Thread: loop. GIL: held. Locks: none.
 */
#include "future_internal.h"

typedef struct {
    PyObject_HEAD FutureObj
        *future; /* NULL once it has returned, raised or been closed */
} FutureIterObj;

PyObject *
paml_future_iter(FutureObj *self)
{
    struct module_state *state;
    FutureIterObj *iter;

    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    state = paml_state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    iter = PyObject_GC_New(FutureIterObj, state->FutureIterType);
    if (iter == NULL) {
        return NULL;
    }
    Py_INCREF(self);
    iter->future = self;
    PyObject_GC_Track(iter);
    return (PyObject *)iter;
}

static PySendResult
FutureIter_am_send(FutureIterObj *self, PyObject *Py_UNUSED(value), PyObject **result)
{
    FutureObj *future = self->future;

    *result = NULL;
    if (future == NULL) {
        /* asyncio's iterator returns an error without an exception here; the callers
           make a SystemError of it. An exhausted generator returns None. */
        Py_INCREF(Py_None);
        *result = Py_None;
        return PYGEN_RETURN;
    }
    if (future->status == FUTURE_PENDING) {
        if (future->blocking) {
            PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
            return PYGEN_ERROR;
        }
        future->blocking = 1;
        Py_INCREF(future);
        *result = (PyObject *)future;
        return PYGEN_NEXT;
    }
    self->future = NULL;
    *result = paml_future_result(future);
    Py_DECREF(future);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* Raises StopIteration(value), also where the value is a tuple or an exception, which
   PyErr_SetObject would take for the arguments or for the exception itself. */
static void
raise_stop_iteration(PyObject *value)
{
    if (!PyTuple_Check(value) && !PyExceptionInstance_Check(value)) {
        PyErr_SetObject(PyExc_StopIteration, value);
        return;
    }
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
}

static PyObject *
FutureIter_iternext(FutureIterObj *self)
{
    PyObject *result;

    switch (FutureIter_am_send(self, Py_None, &result)) {
    case PYGEN_NEXT:
        return result;
    case PYGEN_RETURN:
        /* NULL without an exception is StopIteration() to the callers of tp_iternext,
           and cheaper. */
        if (result != Py_None) {
            raise_stop_iteration(result);
        }
        Py_DECREF(result);
        return NULL;
    default:
        return NULL;
    }
}

static PyObject *
FutureIter_send(FutureIterObj *self, PyObject *Py_UNUSED(value))
{
    PyObject *result = FutureIter_iternext(self);

    if (result == NULL && !PyErr_Occurred()) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    return result;
}

/* The instance that `raise type(value)` would raise; both borrowed. */
static PyObject *
instantiate_exception(PyObject *type, PyObject *value)
{
    PyObject *exception;

    if (value == NULL) {
        exception = PyObject_CallNoArgs(type);
    } else if (PyExceptionInstance_Check(value)) {
        int fits = PyObject_IsSubclass(PyExceptionInstance_Class(value), type);
        if (fits < 0) {
            return NULL;
        }
        if (fits) {
            Py_INCREF(value);
            return value;
        }
        exception = PyObject_CallOneArg(type, value);
    } else if (PyTuple_Check(value)) {
        exception = PyObject_CallObject(type, value);
    } else {
        exception = PyObject_CallOneArg(type, value);
    }
    if (exception != NULL && !PyExceptionInstance_Check(exception)) {
        PyErr_Format(PyExc_TypeError,
                     "calling %R should have returned an instance of BaseException, "
                     "not %s",
                     type, Py_TYPE(exception)->tp_name);
        Py_CLEAR(exception);
    }
    return exception;
}

static PyObject *
FutureIter_throw(FutureIterObj *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *type, *value = NULL, *traceback = NULL, *exception = NULL;

    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw expected %s %d argument%s, got %zd",
                     nargs < 1 ? "at least" : "at most", nargs < 1 ? 1 : 3,
                     nargs < 1 ? "" : "s", nargs);
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030C0000
    if (nargs > 1 && PyErr_WarnEx(PyExc_DeprecationWarning,
                                  "the (type, exc, tb) signature of throw() is "
                                  "deprecated, use the single-arg signature instead.",
                                  1) < 0) {
        return NULL;
    }
#endif
    type = args[0];
    if (nargs > 1 && args[1] != Py_None) {
        value = args[1];
    }
    if (nargs > 2 && args[2] != Py_None) {
        traceback = args[2];
        if (!PyTraceBack_Check(traceback)) {
            PyErr_SetString(PyExc_TypeError,
                            "throw() third argument must be a traceback");
            return NULL;
        }
    }

    if (PyExceptionClass_Check(type)) {
        exception = instantiate_exception(type, value);
        if (exception == NULL) {
            /* What the constructor raised is thrown instead. */
            Py_CLEAR(self->future);
            return NULL;
        }
        Py_XINCREF(traceback);
    } else if (PyExceptionInstance_Check(type)) {
        if (value != NULL) {
            PyErr_SetString(PyExc_TypeError,
                            "instance exception may not have a separate value");
            return NULL;
        }
        Py_INCREF(type);
        exception = type;
        if (traceback == NULL) {
            traceback = PyException_GetTraceback(exception);
        } else {
            Py_INCREF(traceback);
        }
    } else {
        PyErr_SetString(PyExc_TypeError,
                        "exceptions must be classes deriving BaseException or "
                        "instances of such a class");
        return NULL;
    }

    Py_CLEAR(self->future);
    /* Restore, not SetObject: the exception is thrown on, not raised here, so its
       context stays what it is. */
    type = PyExceptionInstance_Class(exception);
    Py_INCREF(type);
    PyErr_Restore(type, exception, traceback);
    return NULL;
}

static PyObject *
FutureIter_close(FutureIterObj *self, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(self->future);
    Py_RETURN_NONE;
}

static int
FutureIter_traverse(FutureIterObj *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->future);
    return 0;
}

static int
FutureIter_clear(FutureIterObj *self)
{
    Py_CLEAR(self->future);
    return 0;
}

static void
FutureIter_dealloc(FutureIterObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->future);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef FutureIter_methods[] = {
    {"send", (PyCFunction)FutureIter_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))FutureIter_throw, METH_FASTCALL, NULL},
    {"close", (PyCFunction)FutureIter_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot FutureIter_slots[] = {
    {Py_tp_dealloc, FutureIter_dealloc},   {Py_tp_traverse, FutureIter_traverse},
    {Py_tp_clear, FutureIter_clear},       {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, FutureIter_iternext}, {Py_tp_methods, FutureIter_methods},
    {Py_am_send, FutureIter_am_send},      {0, NULL},
};

PyType_Spec paml_future_iter_spec = {
    .name = "pyasyncml._core.FutureIter",
    .basicsize = sizeof(FutureIterObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = FutureIter_slots,
};
