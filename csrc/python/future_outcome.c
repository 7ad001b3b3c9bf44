/* The outcome of a Future: how it is set, converted from a request's outputs, looked
 * at, and raised; cancelling.
 *
 * Thread: loop. GIL: held. Locks: none.
 */
#include "future_internal.h"

PyObject *
paml_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        (void)PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

/* Raises InvalidStateError(text). */
static void
raise_invalid_state(FutureObj *self, const char *text)
{
    struct module_state *state = paml_state_of_type(Py_TYPE(self));

    if (state != NULL) {
        PyErr_SetString(state->InvalidStateError, text);
    }
}

/* What asyncio would store for this exception: itself, except for StopIteration, which
   a coroutine can't raise. What asyncio does with that one has changed within minor
   versions (TypeError at once; RuntimeError instead of it), so a future of its own is
   asked. A new reference; NULL with the error that set_exception() raises. */
static PyObject *
storable_exception(FutureObj *self, PyObject *exception)
{
    struct module_state *state;
    PyObject *args = NULL, *kwargs = NULL, *model = NULL, *answer = NULL;
    PyObject *stored = NULL;

    if (!PyErr_GivenExceptionMatches(exception, PyExc_StopIteration)) {
        Py_INCREF(exception);
        return exception;
    }
    state = paml_state_of_type(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    args = PyTuple_New(0);
    kwargs = Py_BuildValue("{s:O}", "loop", self->loop);
    if (args == NULL || kwargs == NULL) {
        goto done;
    }
    model = PyObject_Call(state->AsyncioFuture, args, kwargs);
    if (model == NULL) {
        goto done;
    }
    answer = PyObject_CallMethod(model, "set_exception", "(O)", exception);
    if (answer == NULL) {
        goto done;
    }
    stored = PyObject_CallMethod(model, "exception", NULL);

done:
    Py_XDECREF(answer);
    Py_XDECREF(model);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    return stored;
}

/* Stores the exception (stolen) of a future that has no outcome yet. */
static void
store_exception(FutureObj *self, PyObject *exception)
{
    self->exception = exception;
    self->exception_tb = PyException_GetTraceback(exception);
}

void
paml_future_settle_request(FutureObj *self)
{
    self->status = FUTURE_FINISHED;
}

void
paml_future_settle_exception(FutureObj *self, PyObject *exception)
{
    PyObject *stored = storable_exception(self, exception);

    if (stored == NULL) {
        stored = paml_take_exception();
    }
    if (self->status != FUTURE_PENDING) {
        Py_DECREF(stored); /* settled meanwhile by what the line above called */
        return;
    }
    store_exception(self, stored);
    self->status = FUTURE_FINISHED;
    self->log_tb = 1;
}

int
paml_future_convert(FutureObj *self)
{
    PyObject *result;

    if (self->status != FUTURE_FINISHED || self->result != NULL ||
        self->exception != NULL) {
        return 0;
    }
    if (self->converting) {
        raise_invalid_state(self, "Result is being made.");
        return -1;
    }
    if (self->request == NULL) {
        return 0;
    }
    self->converting = 1;
    Py_INCREF(self);
    result = paml_request_result(self);
    self->request = NULL;
    self->converting = 0;
    if (result != NULL) {
        self->result = result;
    } else {
        store_exception(self, paml_take_exception());
        self->log_tb = 1;
    }
    Py_DECREF(self);
    return 0;
}

PyObject *
paml_future_make_cancelled_error(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    struct module_state *state = paml_state_of_type(Py_TYPE(self));
    PyObject *message = self->cancel_msg, *error;

    if (state == NULL) {
        return NULL;
    }
    if (message == NULL || message == Py_None) {
        return PyObject_CallNoArgs(state->CancelledError);
    }
    Py_INCREF(message);
    error = PyObject_CallOneArg(state->CancelledError, message);
    Py_DECREF(message);
    return error;
}

static void
raise_cancelled_error(FutureObj *self)
{
    PyObject *error = paml_future_make_cancelled_error(self, NULL);

    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
}

/* Raises the stored exception with the traceback that it had when it was set: without
   that, each time it is raised would leave its frames in it (bpo-45924). */
static void
raise_stored_exception(FutureObj *self)
{
    PyObject *exception = self->exception, *traceback = self->exception_tb;

    Py_INCREF(exception);
    self->exception_tb = NULL;
    if (PyException_SetTraceback(exception, traceback ? traceback : Py_None) == 0) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    }
    Py_XDECREF(traceback);
    Py_DECREF(exception);
}

PyObject *
paml_future_result(FutureObj *self)
{
    if (!future_is_alive(self)) {
        raise_invalid_state(self, "Future object is not initialized.");
        return NULL;
    }
    if (self->status == FUTURE_CANCELLED) {
        raise_cancelled_error(self);
        return NULL;
    }
    if (self->status == FUTURE_PENDING) {
        raise_invalid_state(self, "Result is not set.");
        return NULL;
    }
    if (paml_future_convert(self) < 0) {
        return NULL;
    }
    self->log_tb = 0;
    if (self->exception != NULL) {
        raise_stored_exception(self);
        return NULL;
    }
    PyObject *result = self->result == NULL ? Py_None : self->result;
    Py_INCREF(result);
    return result;
}

PyObject *
paml_future_result_method(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    return paml_future_result(self);
}

PyObject *
paml_future_exception_method(FutureObj *self, PyObject *Py_UNUSED(ignored))
{
    if (!future_is_alive(self)) {
        raise_invalid_state(self, "Future object is not initialized.");
        return NULL;
    }
    if (self->status == FUTURE_CANCELLED) {
        raise_cancelled_error(self);
        return NULL;
    }
    if (self->status == FUTURE_PENDING) {
        raise_invalid_state(self, "Exception is not set.");
        return NULL;
    }
    if (paml_future_convert(self) < 0) {
        return NULL;
    }
    if (self->exception != NULL) {
        self->log_tb = 0;
        Py_INCREF(self->exception);
        return self->exception;
    }
    Py_RETURN_NONE;
}

/* 0 where the future may be settled by hand now, its work given up; 1 where it is
   settled already. Giving up drops inputs, which may settle it under our hands. */
static int
leave_pending(FutureObj *self)
{
    if (self->status == FUTURE_PENDING && self->request != NULL) {
        paml_request_abandon(self);
    }
    return self->status != FUTURE_PENDING;
}

static PyObject *
schedule_and_return(FutureObj *self, PyObject *value)
{
    struct module_state *state = paml_state_of_type(Py_TYPE(self));

    if (state == NULL || paml_future_schedule_callbacks(state, self) < 0) {
        return NULL;
    }
    Py_INCREF(value);
    return value;
}

PyObject *
paml_future_set_result_method(FutureObj *self, PyObject *result)
{
    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    if (leave_pending(self)) {
        raise_invalid_state(self, "invalid state");
        return NULL;
    }
    Py_INCREF(result);
    self->result = result;
    self->status = FUTURE_FINISHED;
    return schedule_and_return(self, Py_None);
}

PyObject *
paml_future_set_exception_method(FutureObj *self, PyObject *argument)
{
    PyObject *exception = NULL, *stored = NULL, *answer;

    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    if (self->status != FUTURE_PENDING) {
        raise_invalid_state(self, "invalid state");
        return NULL;
    }
    if (PyExceptionClass_Check(argument)) {
        exception = PyObject_CallNoArgs(argument);
        if (exception == NULL) {
            return NULL;
        }
        if (self->status != FUTURE_PENDING) {
            raise_invalid_state(self, "invalid state");
            goto fail;
        }
    } else {
        Py_INCREF(argument);
        exception = argument;
    }
    if (!PyExceptionInstance_Check(exception)) {
        PyErr_SetString(PyExc_TypeError, "invalid exception object");
        goto fail;
    }
    stored = storable_exception(self, exception);
    if (stored == NULL) {
        goto fail;
    }
    Py_CLEAR(exception);
    if (leave_pending(self)) {
        raise_invalid_state(self, "invalid state");
        goto fail;
    }
    store_exception(self, stored);
    self->status = FUTURE_FINISHED;
    answer = schedule_and_return(self, Py_None);
    if (answer != NULL && self->exception != NULL) {
        self->log_tb = 1; /* unless call_soon has made another future of it */
    }
    return answer;

fail:
    Py_XDECREF(exception);
    Py_XDECREF(stored);
    return NULL;
}

static PyObject *
cancel(FutureObj *self, PyObject *message)
{
    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    self->log_tb = 0;
    if (leave_pending(self)) {
        Py_RETURN_FALSE;
    }
    self->status = FUTURE_CANCELLED;
    Py_INCREF(message);
    Py_XSETREF(self->cancel_msg, message);
    return schedule_and_return(self, Py_True);
}

PyObject *
paml_future_cancel_method(FutureObj *self, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames)
{
    static char *names[] = {"msg", NULL};
    PyObject *positional, *keywords, *message = Py_None, *answer = NULL;

    if (nargs == 0 && kwnames == NULL) {
        return cancel(self, Py_None);
    }
    if (nargs == 1 && kwnames == NULL) {
        return cancel(self, args[0]);
    }
    if (paml_pack_call(args, nargs, kwnames, &positional, &keywords) < 0) {
        return NULL;
    }
    if (PyArg_ParseTupleAndKeywords(positional, keywords, "|O:cancel", names,
                                    &message)) {
        answer = cancel(self, message);
    }
    Py_DECREF(positional);
    Py_DECREF(keywords);
    return answer;
}

int
paml_pack_call(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
               PyObject **positional, PyObject **keywords)
{
    Py_ssize_t named = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    *positional = PyTuple_New(nargs);
    *keywords = PyDict_New();
    if (*positional == NULL || *keywords == NULL) {
        goto fail;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        Py_INCREF(args[i]);
        PyTuple_SET_ITEM(*positional, i, args[i]);
    }
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (PyDict_SetItem(*keywords, name, args[nargs + i]) < 0) {
            goto fail;
        }
    }
    return 0;

fail:
    Py_CLEAR(*positional);
    Py_CLEAR(*keywords);
    return -1;
}
