/* The module `pyasyncml.backends._xla`: loads a plugin, hands the backend's table out.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "client.h"
#include "xla_backend.h"

#define OPTIONS_MOST 32

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

static PyMethodDef module_methods[] = {
    {"open", module_open, METH_VARARGS, open_doc},
    {"platform", module_platform, METH_NOARGS, platform_doc},
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
