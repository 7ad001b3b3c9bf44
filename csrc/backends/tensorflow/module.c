/* The module `pyasyncml.backends._tensorflow`: the backend's table as a capsule, once
 * TensorFlow's library is loaded. Links to nothing of it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "library.h"
#include "program.h"
#include "tensorflow_backend.h"

#define PROGRAM_CAPSULE "pyasyncml.tensorflow.program"

struct state {
    PyObject *failure; /* LoadError */
};

PyDoc_STRVAR(open_library_doc,
             "open_library(path, framework, /)\n--\n\n"
             "Load TensorFlow's library, once a process; its version. Not from several\n"
             "threads at once. Raises LoadError.");

static PyObject *
open_library(PyObject *module, PyObject *args)
{
    struct state *state = PyModule_GetState(module);
    struct paml_error error = {0};
    PyObject *path = NULL, *framework = NULL;
    int code;

    if (!PyArg_ParseTuple(args, "O&O&:open_library", PyUnicode_FSConverter, &path,
                          PyUnicode_FSConverter, &framework)) {
        Py_XDECREF(path);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    code = paml_tf_open(PyBytes_AS_STRING(path), PyBytes_AS_STRING(framework), &error);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    Py_DECREF(framework);
    if (code != PAML_OK) {
        PyObject *message =
            PyUnicode_DecodeUTF8(error.message, (Py_ssize_t)strlen(error.message),
                                 "backslashreplace");
        if (message != NULL) {
            PyErr_SetObject(state->failure, message);
            Py_DECREF(message);
        }
        return NULL;
    }
    paml_tensorflow_backend.version = tf.Version();
    return PyUnicode_FromString(tf.Version());
}

static PyMethodDef methods[] = {
    {"open_library", open_library, METH_VARARGS, open_library_doc},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    PyObject *errors = PyImport_ImportModule("pyasyncml.errors"), *capsule;
    int failed;

    if (errors == NULL) {
        return -1;
    }
    state->failure = PyObject_GetAttrString(errors, "LoadError");
    Py_DECREF(errors);
    if (state->failure == NULL) {
        return -1;
    }
    capsule = PyCapsule_New(&paml_tensorflow_backend, PAML_BACKEND_CAPSULE, NULL);
    failed = PyModule_AddObjectRef(module, "capsule", capsule);
    Py_XDECREF(capsule);
    return failed;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((struct state *)PyModule_GetState(module))->failure);
    return 0;
}

static int
module_clear(PyObject *module)
{
    Py_CLEAR(((struct state *)PyModule_GetState(module))->failure);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pyasyncml.backends._tensorflow",
    .m_doc = "The tensorflow backend's native half; use `pyasyncml.backends.tensorflow`.",
    .m_size = sizeof(struct state),
    .m_methods = methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC
PyInit__tensorflow(void)
{
    return PyModuleDef_Init(&module_def);
}
