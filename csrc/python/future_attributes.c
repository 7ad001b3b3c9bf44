/* The attributes of a Future that asyncio, and code that looks over its shoulder,
 * read and write; its repr.
 *
 * Thread: loop. GIL: held. Locks: none.
 */
#include "future_internal.h"

#include <string.h>

const char *
paml_short_type_name(PyTypeObject *type)
{
    const char *dot = strrchr(type->tp_name, '.');

    return dot == NULL ? type->tp_name : dot + 1;
}

static PyObject *
none_if_null(PyObject *value)
{
    if (value == NULL) {
        value = Py_None;
    }
    Py_INCREF(value);
    return value;
}

static int
refuse_deletion(void)
{
    PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
    return -1;
}

static PyObject *
Future_get_state(FutureObj *self, void *Py_UNUSED(closure))
{
    struct module_state *state;
    PyObject *name;

    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    state = paml_state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    switch (self->status) {
    case FUTURE_PENDING:
        name = state->str_PENDING;
        break;
    case FUTURE_CANCELLED:
        name = state->str_CANCELLED;
        break;
    default:
        name = state->str_FINISHED;
        break;
    }
    Py_INCREF(name);
    return name;
}

static PyObject *
Future_get_blocking(FutureObj *self, void *Py_UNUSED(closure))
{
    if (future_is_alive(self) && self->blocking) {
        Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}

static int
Future_set_blocking(FutureObj *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth;

    if (future_ensure_alive(self) < 0) {
        return -1;
    }
    if (value == NULL) {
        return refuse_deletion();
    }
    truth = PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    self->blocking = (unsigned char)truth;
    return 0;
}

static PyObject *
Future_get_loop_attribute(FutureObj *self, void *Py_UNUSED(closure))
{
    return none_if_null(self->loop);
}

static PyObject *
Future_get_callbacks(FutureObj *self, void *Py_UNUSED(closure))
{
    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    return paml_future_list_callbacks(self);
}

static PyObject *
Future_get_result_attribute(FutureObj *self, void *Py_UNUSED(closure))
{
    if (future_ensure_alive(self) < 0 || paml_future_convert(self) < 0) {
        return NULL;
    }
    return none_if_null(self->result);
}

static PyObject *
Future_get_exception_attribute(FutureObj *self, void *Py_UNUSED(closure))
{
    if (future_ensure_alive(self) < 0 || paml_future_convert(self) < 0) {
        return NULL;
    }
    return none_if_null(self->exception);
}

static PyObject *
Future_get_log_traceback(FutureObj *self, void *Py_UNUSED(closure))
{
    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    return PyBool_FromLong(self->log_tb);
}

static int
Future_set_log_traceback(FutureObj *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth;

    if (value == NULL) {
        return refuse_deletion();
    }
    truth = PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    if (truth) {
        PyErr_SetString(PyExc_ValueError, "_log_traceback can only be set to False");
        return -1;
    }
    self->log_tb = 0;
    return 0;
}

static PyObject *
Future_get_source_traceback(FutureObj *self, void *Py_UNUSED(closure))
{
    return none_if_null(future_is_alive(self) ? self->source_tb : NULL);
}

static PyObject *
Future_get_cancel_message(FutureObj *self, void *Py_UNUSED(closure))
{
    return none_if_null(self->cancel_msg);
}

static int
Future_set_cancel_message(FutureObj *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        return refuse_deletion();
    }
    Py_INCREF(value);
    Py_XSETREF(self->cancel_msg, value);
    return 0;
}

#if PY_VERSION_HEX >= 0x030E0000
/* asyncio.graph walks it; asyncio records waiters on its own futures only. */
static PyObject *
Future_get_awaited_by(FutureObj *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    Py_RETURN_NONE;
}
#endif

PyGetSetDef paml_future_getset[] = {
    {"_state", (getter)Future_get_state, NULL, NULL, NULL},
    {"_asyncio_future_blocking", (getter)Future_get_blocking,
     (setter)Future_set_blocking, NULL, NULL},
    {"_loop", (getter)Future_get_loop_attribute, NULL, NULL, NULL},
    {"_callbacks", (getter)Future_get_callbacks, NULL, NULL, NULL},
    {"_result", (getter)Future_get_result_attribute, NULL, NULL, NULL},
    {"_exception", (getter)Future_get_exception_attribute, NULL, NULL, NULL},
    {"_log_traceback", (getter)Future_get_log_traceback,
     (setter)Future_set_log_traceback, NULL, NULL},
    {"_source_traceback", (getter)Future_get_source_traceback, NULL, NULL, NULL},
    {"_cancel_message", (getter)Future_get_cancel_message,
     (setter)Future_set_cancel_message, NULL, NULL},
#if PY_VERSION_HEX >= 0x030E0000
    {"_asyncio_awaited_by", (getter)Future_get_awaited_by, NULL, NULL, NULL},
#endif
    {NULL, NULL, NULL, NULL, NULL},
};

PyObject *
paml_future_repr(FutureObj *self)
{
    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030B0000
    struct module_state *state = paml_state_of_type(Py_TYPE(self));

    if (state == NULL) {
        return NULL;
    }
    return PyObject_CallOneArg(state->future_repr, (PyObject *)self);
#else
    PyObject *info, *joined, *space, *repr = NULL;

    info = PyObject_CallMethod((PyObject *)self, "_repr_info", NULL);
    if (info == NULL) {
        return NULL;
    }
    space = PyUnicode_FromString(" ");
    joined = space == NULL ? NULL : PyUnicode_Join(space, info);
    if (joined != NULL) {
        repr = PyUnicode_FromFormat("<%s %U>", paml_short_type_name(Py_TYPE(self)),
                                    joined);
    }
    Py_XDECREF(joined);
    Py_XDECREF(space);
    Py_DECREF(info);
    return repr;
#endif
}
