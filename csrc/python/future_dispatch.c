/* What happens to a Future's callbacks once it is settled: they are scheduled on the
 * loop, as asyncio does, or called at once by a hub that has the loop's turn anyway.
 *
 * A loop's call_soon, a callback, the loop's exception handler: each may come back
 * into the same future. So the callbacks are moved out of it first, and nothing of it
 * is kept across a call but the reference to it (cpython#125984).
 *
 * Thread: loop. GIL: held. Locks: none.
 */
#include "future_internal.h"

int
paml_future_call_soon(struct module_state *state, FutureObj *self, PyObject *function,
                      PyObject *context)
{
    PyObject *args[4], *handle;

    if (future_ensure_alive(self) < 0) {
        return -1;
    }
    args[0] = self->loop;
    args[1] = function;
    args[2] = (PyObject *)self;
    args[3] = context;
    Py_INCREF(args[0]);
    handle = PyObject_VectorcallMethod(state->str_call_soon, args,
                                       3 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                       state->kw_context);
    Py_DECREF(args[0]);
    if (handle == NULL) {
        return -1;
    }
    Py_DECREF(handle);
    return 0;
}

/* The callback at `index` of those taken, the first being 0. NULL: there is none
   there (which happens at 0 alone). */
static struct future_callback *
taken_at(struct future_callbacks *taken, size_t index)
{
    struct future_callback *callback =
        index == 0 ? &taken->first : &taken->rest[index - 1];

    return callback->function == NULL ? NULL : callback;
}

/* Schedules the callbacks from `index` on. What call_soon refuses ends it: asyncio
   forgets the rest as well. */
static int
schedule_from(struct module_state *state, FutureObj *self,
              struct future_callbacks *taken, size_t index)
{
    for (; index <= taken->count; index++) {
        struct future_callback *callback = taken_at(taken, index);
        if (callback != NULL && paml_future_call_soon(state, self, callback->function,
                                                      callback->context) < 0) {
            return -1;
        }
    }
    return 0;
}

int
paml_future_schedule_callbacks(struct module_state *state, FutureObj *self)
{
    struct future_callbacks taken;
    int err;

    if (!callbacks_exist(self) || self->status == FUTURE_PENDING) {
        return 0;
    }
    paml_callbacks_take(self, &taken);
    Py_INCREF(self);
    err = schedule_from(state, self, &taken, 0);
    paml_callbacks_free(&taken);
    Py_DECREF(self);
    return err;
}

/* --- calling at once --- */

/* Whether a task of this loop is being run: another one must not be woken inside it. */
static int
task_is_running(struct module_state *state, PyObject *loop)
{
    int running;

    if (state->current_tasks != NULL) {
        PyObject *task;
        if (PyDict_GET_SIZE(state->current_tasks) == 0) {
            return 0;
        }
        task = PyDict_GetItemWithError(state->current_tasks, loop);
        running = task != NULL && task != Py_None;
    } else {
        PyObject *task = PyObject_CallOneArg(state->current_task, loop);
        running = task != Py_None;
        Py_XDECREF(task);
    }
    if (PyErr_Occurred()) {
        PyErr_Clear();
        running = 1; /* not known: call_soon is always right */
    }
    return running;
}

/* "name(args) at file:line"; the arguments only in debug mode, where the running
   version of asyncio hides them otherwise. */
static PyObject *
format_callback(struct module_state *state, PyObject *loop, PyObject *function,
                PyObject *args)
{
    PyObject *call_args = NULL, *kwargs = NULL, *defaults = NULL, *debug = NULL;
    PyObject *text = NULL;

    call_args = PyTuple_Pack(2, function, args);
    if (call_args == NULL) {
        goto done;
    }
    defaults = PyObject_GetAttrString(state->format_callback_source, "__kwdefaults__");
    if (defaults == NULL) {
        PyErr_Clear();
    } else if (PyDict_Check(defaults) &&
               PyDict_GetItemString(defaults, "debug") != NULL) {
        debug = PyObject_CallMethodNoArgs(loop, state->str_get_debug);
        kwargs = debug == NULL ? NULL : Py_BuildValue("{s:O}", "debug", debug);
        if (kwargs == NULL) {
            goto done;
        }
    }
    text = PyObject_Call(state->format_callback_source, call_args, kwargs);

done:
    Py_XDECREF(debug);
    Py_XDECREF(kwargs);
    Py_XDECREF(defaults);
    Py_XDECREF(call_args);
    return text;
}

/* Gives the error being raised to the loop's exception handler, as asyncio's
   Handle._run does for a callback that it has called. */
static int
report_callback_error(struct module_state *state, FutureObj *self,
                      const struct future_callback *callback)
{
    PyObject *exception = paml_take_exception();
    PyObject *loop = NULL, *args = NULL, *handle = NULL, *source = NULL;
    PyObject *callback_text = NULL, *message = NULL, *report = NULL, *answer = NULL;
    int err = -1;

    if (future_ensure_alive(self) < 0) {
        goto done;
    }
    loop = self->loop;
    Py_INCREF(loop);
    args = PyTuple_Pack(1, self);
    if (args == NULL) {
        goto done;
    }
    handle = PyObject_CallFunctionObjArgs(state->Handle, callback->function, args, loop,
                                          callback->context, NULL);
    if (handle == NULL) {
        goto done;
    }
    callback_text = format_callback(state, loop, callback->function, args);
    if (callback_text == NULL) {
        goto done;
    }
    message = PyUnicode_FromFormat("Exception in callback %S", callback_text);
    if (message == NULL) {
        goto done;
    }
    report = Py_BuildValue("{s:O,s:O,s:O}", "message", message, "exception", exception,
                           "handle", handle);
    if (report == NULL) {
        goto done;
    }
    source = PyObject_GetAttrString(handle, "_source_traceback");
    if (source == NULL) {
        goto done;
    }
    if (source != Py_None &&
        PyDict_SetItemString(report, "source_traceback", source) < 0) {
        goto done;
    }
    answer = PyObject_CallMethodOneArg(loop, state->str_call_exception_handler, report);
    err = answer == NULL ? -1 : 0;

done:
    Py_XDECREF(answer);
    Py_XDECREF(report);
    Py_XDECREF(message);
    Py_XDECREF(callback_text);
    Py_XDECREF(source);
    Py_XDECREF(handle);
    Py_XDECREF(args);
    Py_XDECREF(loop);
    Py_XDECREF(exception);
    return err;
}

/* 1: called, 0: not possible here and now, -1: an error that must end the loop's
   turn. */
static int
call_directly(struct module_state *state, FutureObj *self,
              const struct future_callback *callback)
{
    PyObject *result;

    /* add_done_callback() takes any object for a context; the handle that the loop
       makes of it is what complains. */
    if (!PyContext_CheckExact(callback->context)) {
        return 0;
    }
    if (PyContext_Enter(callback->context) < 0) {
        PyErr_Clear(); /* entered already, further up the stack or by another thread */
        return 0;
    }
    result = PyObject_CallOneArg(callback->function, (PyObject *)self);
    if (PyContext_Exit(callback->context) < 0) {
        Py_XDECREF(result);
        return -1;
    }
    if (result != NULL) {
        Py_DECREF(result);
        return 1;
    }
    if (PyErr_ExceptionMatches(PyExc_SystemExit) ||
        PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        return -1;
    }
    return report_callback_error(state, self, callback) < 0 ? -1 : 1;
}

/* Schedules the callbacks from `index` on beside an error that is being raised. */
static void
schedule_behind_error(struct module_state *state, FutureObj *self,
                      struct future_callbacks *taken, size_t index)
{
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    if (schedule_from(state, self, taken, index) < 0) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    PyErr_Restore(type, value, traceback);
}

int
paml_future_run_callbacks(struct module_state *state, FutureObj *self)
{
    struct future_callbacks taken;
    int err = 0;

    /* Pending: __init__ has made another future of it since it was settled. */
    if (!callbacks_exist(self) || self->status == FUTURE_PENDING) {
        return 0;
    }
    if (future_ensure_alive(self) < 0) {
        return -1;
    }
    paml_callbacks_take(self, &taken);
    Py_INCREF(self);
    if (task_is_running(state, self->loop)) {
        err = schedule_from(state, self, &taken, 0);
        goto done;
    }
    for (size_t index = 0; index <= taken.count; index++) {
        struct future_callback *callback = taken_at(&taken, index);
        int called;
        if (callback == NULL) {
            continue;
        }
        called = call_directly(state, self, callback);
        if (called < 0) {
            schedule_behind_error(state, self, &taken, index + 1);
            err = -1;
            break;
        }
        if (!called) {
            /* All that follow too, to keep their order. */
            err = schedule_from(state, self, &taken, index);
            break;
        }
        /* Dropped as the loop drops a handle that has run: before the next one. */
        Py_CLEAR(callback->function);
        Py_CLEAR(callback->context);
    }

done:
    paml_callbacks_free(&taken);
    Py_DECREF(self);
    return err;
}
