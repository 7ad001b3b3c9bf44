/* The module `pyasyncml.backends._xla`: loads a plugin, hands the backend's table out.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "client.h"
#include "source.h"
#include "xla_backend.h"

#define OPTIONS_MOST 32
#define SOURCE_CAPSULE "pyasyncml.backends.xla.source"

/* One option of a client from (name, value). -1 with an error set. */
static int
parse_option(PyObject *item, struct paml_xla_option *option)
{
    PyObject *value;

    if (!PyArg_ParseTuple(item, "sO", &option->name, &value)) {
        return -1;
    }
    if (PyBool_Check(value)) {
        option->type = PJRT_NAMED_BOOL;
        option->integer = value == Py_True;
    } else if (PyLong_Check(value)) {
        option->type = PJRT_NAMED_INT64;
        option->integer = PyLong_AsLongLong(value);
    } else if (PyFloat_Check(value)) {
        option->type = PJRT_NAMED_FLOAT;
        option->real = PyFloat_AS_DOUBLE(value);
    } else {
        option->type = PJRT_NAMED_STRING;
        option->string = PyUnicode_AsUTF8(value);
    }
    return PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(
    open_doc,
    "open(path, options, /)\n--\n\n"
    "Load a PJRT plugin and make its client, once a process. Returns None, or\n"
    "the reason why it can't be used.");

static PyObject *
module_open(PyObject *module, PyObject *args)
{
    struct paml_xla_option options[OPTIONS_MOST];
    struct paml_error error = {0};
    PyObject *path, *items, *result;
    Py_ssize_t count;
    int code;

    (void)module;
    if (!PyArg_ParseTuple(args, "O&O!", PyUnicode_FSConverter, &path, &PyTuple_Type,
                          &items)) {
        return NULL;
    }
    count = PyTuple_GET_SIZE(items);
    if (count > OPTIONS_MOST) {
        Py_DECREF(path);
        PyErr_Format(PyExc_ValueError, "at most %d options", OPTIONS_MOST);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_option(PyTuple_GET_ITEM(items, i), &options[i]) < 0) {
            Py_DECREF(path);
            return NULL;
        }
    }
    /* `args` keeps the strings while the GIL is away. */
    Py_BEGIN_ALLOW_THREADS code =
        paml_xla_open(PyBytes_AS_STRING(path), options, (uint32_t)count, &error);
    Py_END_ALLOW_THREADS Py_DECREF(path);
    if (code == PAML_OK) {
        paml_xla_backend.version = paml_xla_client()->version;
        Py_RETURN_NONE;
    }
    result = PyUnicode_DecodeUTF8(error.message, (Py_ssize_t)strlen(error.message),
                                  "replace");
    return result;
}

PyDoc_STRVAR(platform_doc,
             "platform()\n--\n\n"
             "(platform, version, number of devices) of the client, or None.");

static PyObject *
module_platform(PyObject *module, PyObject *ignored)
{
    const struct paml_xla_client *client = paml_xla_client();

    (void)module;
    (void)ignored;
    if (client == NULL) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(ssi)", client->platform, client->version, client->n_devices);
}

/* --- what models are made of --- */

struct source {
    struct paml_xla_source its; /* first: what the engine is given */
    Py_buffer *views;           /* of the weights, then of the state */
    struct paml_xla_bytes *bytes;
    Py_ssize_t n_views;
};

static void
source_free(struct source *source)
{
    struct paml_xla_program *program =
        atomic_load_explicit(&source->its.program, memory_order_acquire);

    for (Py_ssize_t i = 0; i < source->n_views; i++) {
        PyBuffer_Release(&source->views[i]);
    }
    PyMem_Free(source->views);
    PyMem_Free(source->bytes);
    if (program != NULL) {
        Py_BEGIN_ALLOW_THREADS paml_xla_program_unref(program);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(source);
}

static void
source_destructor(PyObject *capsule)
{
    source_free(PyCapsule_GetPointer(capsule, SOURCE_CAPSULE));
}

/* Borrows the arrays' memory. There is room for them. -1 with an error set. */
static int
borrow_arrays(struct source *source, PyObject *objects, struct paml_xla_arrays *arrays)
{
    if (objects == Py_None) {
        return 0;
    }
    arrays->items = &source->bytes[source->n_views];
    arrays->count = (uint32_t)PyTuple_GET_SIZE(objects);
    for (uint32_t i = 0; i < arrays->count; i++) {
        Py_buffer *view = &source->views[source->n_views];

        if (PyObject_GetBuffer(PyTuple_GET_ITEM(objects, i), view, PyBUF_SIMPLE) < 0) {
            return -1;
        }
        source->bytes[source->n_views++] =
            (struct paml_xla_bytes){view->buf, (size_t)view->len};
    }
    return 0;
}

static Py_ssize_t
count_arrays(PyObject *objects)
{
    return PyTuple_Check(objects) ? PyTuple_GET_SIZE(objects) : 0;
}

PyDoc_STRVAR(
    source_doc,
    "source(other, weights, state, /)\n--\n\n"
    "A capsule, the options of a model to be: of the program of `other`, another\n"
    "model's, once that is loaded (None: of the file), with these tuples of buffers\n"
    "in place of the weights and the state that the bundle holds (None: with those).");

static PyObject *
module_source(PyObject *module, PyObject *args)
{
    PyObject *other, *weights, *state, *capsule;
    struct paml_xla_program *program = NULL;
    struct source *source;
    size_t count;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOO", &other, &weights, &state)) {
        return NULL;
    }
    if ((weights != Py_None && !PyTuple_Check(weights)) ||
        (state != Py_None && !PyTuple_Check(state))) {
        PyErr_SetString(PyExc_TypeError, "expected tuples of buffers, or None");
        return NULL;
    }
    if (other != Py_None) {
        struct source *of = PyCapsule_GetPointer(other, SOURCE_CAPSULE);

        if (of == NULL) {
            return NULL;
        }
        program = atomic_load_explicit(&of->its.program, memory_order_acquire);
    }
    source = PyMem_Calloc(1, sizeof(*source));
    if (source == NULL) {
        return PyErr_NoMemory();
    }
    if (program != NULL) {
        paml_xla_program_ref(program);
    }
    atomic_init(&source->its.program, program);
    count = (size_t)(count_arrays(weights) + count_arrays(state)) + 1; /* 0 is NULL's */
    source->views = PyMem_Calloc(count, sizeof(*source->views));
    source->bytes = PyMem_Calloc(count, sizeof(*source->bytes));
    if (source->views == NULL || source->bytes == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    if (borrow_arrays(source, weights, &source->its.weights) < 0 ||
        borrow_arrays(source, state, &source->its.state) < 0) {
        goto fail;
    }
    capsule = PyCapsule_New(source, SOURCE_CAPSULE, source_destructor);
    if (capsule != NULL) {
        return capsule;
    }

fail:
    source_free(source);
    return NULL;
}

static PyMethodDef module_methods[] = {
    {"open", module_open, METH_VARARGS, open_doc},
    {"platform", module_platform, METH_NOARGS, platform_doc},
    {"source", module_source, METH_VARARGS, source_doc},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    PyObject *capsule = PyCapsule_New(&paml_xla_backend, PAML_BACKEND_CAPSULE, NULL);
    int failed = PyModule_AddObjectRef(module, "capsule", capsule);

    Py_XDECREF(capsule);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "pyasyncml.backends._xla",
    .m_doc = "The xla backend's native half; use `pyasyncml.backends.xla`.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__xla(void)
{
    return PyModuleDef_Init(&module_def);
}
