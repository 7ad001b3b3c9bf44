/* The python backend: a Python callable on a worker.
 *
 * The one backend that takes the GIL, because Python code must have it. Its ops carry
 * opaque objects: [callable, args, kwargs or None, context]. It is how call() works,
 * and how a live module that can't be exported is served.
 *
 * Thread: worker. GIL: taken for the length of each run. Each worker has a thread state
 * of the interpreter that made the model; atexit joins the workers before the
 * interpreter goes, so a run never meets a finalized one.
 */
#include "model_object.h"

struct instance {
    PyThreadState *thread_state;
};

static int
python_load(const struct paml_load_spec *spec, void **program, struct paml_error *err)
{
    (void)err;
    *program = spec->options; /* the PyInterpreterState */
    return 0;
}

static void
python_unload(void *program)
{
    (void)program;
}

static const struct paml_entry *
python_describe(void *program)
{
    static const struct paml_entry entry = {.name = "call", .variadic = 1};

    (void)program;
    return &entry;
}

static int
python_open(void *program, DLDevice device, int threads, void **instance,
            struct paml_error *err)
{
    struct instance *self = PyMem_RawMalloc(sizeof(*self));

    (void)device;
    (void)threads;
    if (self == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a worker");
    }
    self->thread_state = PyThreadState_New(program);
    if (self->thread_state == NULL) {
        PyMem_RawFree(self);
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a thread state");
    }
    *instance = self;
    return 0;
}

static void
python_close(void *instance)
{
    struct instance *self = instance;

    PyEval_RestoreThread(self->thread_state);
    PyThreadState_Clear(self->thread_state);
    PyThreadState_DeleteCurrent();
    PyMem_RawFree(self);
}

/* GIL: held (in drain) or not (a worker drops what a warm-up gave). */
static void
release_with_gil(void *owner)
{
    PyGILState_STATE gil = PyGILState_Ensure();

    Py_DECREF((PyObject *)owner);
    PyGILState_Release(gil);
}

/* The exception under way, fit for a future: a coroutine that StopIteration was thrown
   into would seem to have returned. GIL: held. */
static PyObject *
take_exception(void)
{
    PyObject *type, *exception, *traceback, *wrapper;

    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(exception, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    if (PyErr_GivenExceptionMatches(exception, PyExc_StopIteration)) {
        wrapper =
            PyObject_CallFunction(PyExc_RuntimeError, "s",
                                  "the callable raised StopIteration, which can't "
                                  "be raised into a Future");
        if (wrapper != NULL) {
            PyException_SetCause(wrapper, exception);
            return wrapper;
        }
        PyErr_Clear();
    }
    return exception;
}

/* For those who only read messages: a warm-up. GIL: held. */
static void
describe_exception(PyObject *exception, struct paml_error *err)
{
    PyObject *text = PyObject_Str(exception);
    const char *utf8 = text != NULL ? PyUnicode_AsUTF8(text) : NULL;

    paml_fail(err, PAML_ERR_PYTHON, "%s: %s", Py_TYPE(exception)->tp_name,
              utf8 != NULL ? utf8 : "?");
    PyErr_Clear();
    Py_XDECREF(text);
}

/* GIL: held. */
static PyObject *
call_in_context(const struct paml_value *inputs)
{
    PyObject *kwargs = inputs[2].object, *context, *result;

    /* A copy: in a warm-up all workers run one op, and a context is entered once. */
    context = PyContext_Copy(inputs[3].object);
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        return NULL;
    }
    result = PyObject_Call(inputs[0].object, inputs[1].object,
                           kwargs != Py_None ? kwargs : NULL);
    if (PyContext_Exit(context) < 0) {
        Py_CLEAR(result);
    }
    Py_DECREF(context);
    return result;
}

/* A coroutine would never be awaited: nobody does here. GIL: held. */
static PyObject *
refuse_coroutine(PyObject *result)
{
    PyObject *closed = PyObject_CallMethod(result, "close", NULL);

    Py_XDECREF(closed);
    PyErr_Clear();
    Py_DECREF(result);
    PyErr_SetString(PyExc_TypeError,
                    "the callable returned a coroutine: await it directly, on the "
                    "loop, or run it within the call (asyncio.run)");
    return NULL;
}

static int
python_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    struct instance *self = instance;
    struct paml_value *output = paml_outputs_append(run->outputs, 1);
    PyObject *result;
    int code = PAML_OK;

    if (output == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the result");
    }
    PyEval_RestoreThread(self->thread_state);
    result = call_in_context(run->inputs);
    if (result != NULL && PyCoro_CheckExact(result)) {
        result = refuse_coroutine(result);
    }
    if (result == NULL) {
        result = take_exception();
        describe_exception(result, err);
        code = PAML_ERR_PYTHON;
    }
    output->kind = PAML_OBJECT;
    output->object = output->owner = result;
    output->release = release_with_gil;
    PyEval_SaveThread();
    return code;
}

const struct paml_backend paml_python_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "python",
    .version = PY_VERSION,
    .load = python_load,
    .unload = python_unload,
    .describe = python_describe,
    .open = python_open,
    .run = python_run,
    .close = python_close,
};

int
paml_python_backend_exec(PyObject *module, struct module_state *state)
{
    PyObject *capsule =
        PyCapsule_New((void *)&paml_python_backend, PAML_BACKEND_CAPSULE, NULL);
    int status =
        capsule != NULL ? PyModule_AddObjectRef(module, "python_backend", capsule) : -1;

    (void)state;
    Py_XDECREF(capsule);
    return status;
}
