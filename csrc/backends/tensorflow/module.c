/* The module `pyasyncml.backends._tensorflow`: the backend's table as a capsule, once
 * TensorFlow's library is loaded. Links to nothing of it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "checkpoint.h"
#include "library.h"
#include "program.h"
#include "tensorflow_backend.h"

#define PROGRAM_CAPSULE "pyasyncml.tensorflow.program"

struct state {
    PyObject *load_error, *backend_error, *out_of_memory;
};

/* Raises what the code stands for. NULL. */
static PyObject *
raise(PyObject *module, const struct paml_error *error)
{
    struct state *state = PyModule_GetState(module);
    PyObject *type = error->code == PAML_ERR_LOAD     ? state->load_error
                     : error->code == PAML_ERR_MEMORY ? state->out_of_memory
                                                      : state->backend_error;
    PyObject *message = PyUnicode_DecodeUTF8(
        error->message, (Py_ssize_t)strlen(error->message), "backslashreplace");

    if (message != NULL) {
        PyErr_SetObject(type, message);
        Py_DECREF(message);
    }
    return NULL;
}

PyDoc_STRVAR(
    open_library_doc,
    "open_library(path, framework, /)\n--\n\n"
    "Load TensorFlow's library, once a process; its version. Not from several\n"
    "threads at once. Raises LoadError.");

static PyObject *
open_library(PyObject *module, PyObject *args)
{
    struct paml_error error = {0};
    PyObject *path = NULL, *framework = NULL;
    int code;

    if (!PyArg_ParseTuple(args, "O&O&:open_library", PyUnicode_FSConverter, &path,
                          PyUnicode_FSConverter, &framework)) {
        Py_XDECREF(path);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code =
        paml_tf_open(PyBytes_AS_STRING(path), PyBytes_AS_STRING(framework), &error);
    Py_END_ALLOW_THREADS Py_DECREF(path);
    Py_DECREF(framework);
    if (code != PAML_OK) {
        return raise(module, &error);
    }
    paml_tensorflow_backend.version = tf.Version();
    return PyUnicode_FromString(tf.Version());
}

/* --- programs that several models share --- */

static void
program_destructor(PyObject *capsule)
{
    struct paml_tf_program *program = PyCapsule_GetPointer(capsule, PROGRAM_CAPSULE);

    Py_BEGIN_ALLOW_THREADS paml_tf_program_unref(program);
    Py_END_ALLOW_THREADS
}

PyDoc_STRVAR(
    program_doc,
    "program(folder, /)\n--\n\n"
    "A capsule of a SavedModel that isn't loaded yet: options for as many models\n"
    "as are to share its variables.");

static PyObject *
program(PyObject *Py_UNUSED(module), PyObject *argument)
{
    struct paml_tf_program *made;
    PyObject *folder, *capsule;

    if (!PyUnicode_FSConverter(argument, &folder)) {
        return NULL;
    }
    made = paml_tf_program_new(PyBytes_AS_STRING(folder));
    Py_DECREF(folder);
    if (made == NULL) {
        return PyErr_NoMemory();
    }
    capsule = PyCapsule_New(made, PROGRAM_CAPSULE, program_destructor);
    if (capsule == NULL) {
        paml_tf_program_unref(made);
    }
    return capsule;
}

PyDoc_STRVAR(
    save_doc,
    "save(program, prefix, device=None, /)\n--\n\n"
    "Write its variables to a checkpoint, those on a device (type, index) or the\n"
    "first session's; without the GIL.");

static PyObject *
save(PyObject *module, PyObject *args)
{
    struct paml_error error = {0};
    struct paml_tf_program *shared;
    PyObject *capsule, *prefix = NULL, *where = Py_None;
    DLDevice device;
    int code, type, index;

    if (!PyArg_ParseTuple(args, "OO&|O:save", &capsule, PyUnicode_FSConverter, &prefix,
                          &where)) {
        Py_XDECREF(prefix);
        return NULL;
    }
    shared = PyCapsule_GetPointer(capsule, PROGRAM_CAPSULE);
    if (shared == NULL ||
        (where != Py_None && !PyArg_ParseTuple(where, "ii:save", &type, &index))) {
        Py_DECREF(prefix);
        return NULL;
    }
    if (where != Py_None) {
        device = (DLDevice){(DLDeviceType)type, index};
    }
    Py_BEGIN_ALLOW_THREADS code = paml_tf_save(
        shared, where != Py_None ? &device : NULL, PyBytes_AS_STRING(prefix), &error);
    Py_END_ALLOW_THREADS Py_DECREF(prefix);
    if (code != PAML_OK) {
        return raise(module, &error);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(restore_doc,
             "restore(program, prefix, /)\n--\n\n"
             "Read its variables on all its devices from a checkpoint; without the\n"
             "GIL.");

static PyObject *
restore(PyObject *module, PyObject *args)
{
    struct paml_error error = {0};
    struct paml_tf_program *shared;
    PyObject *capsule, *prefix = NULL;
    int code;

    if (!PyArg_ParseTuple(args, "OO&:restore", &capsule, PyUnicode_FSConverter,
                          &prefix)) {
        Py_XDECREF(prefix);
        return NULL;
    }
    shared = PyCapsule_GetPointer(capsule, PROGRAM_CAPSULE);
    if (shared == NULL) {
        Py_DECREF(prefix);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code =
        paml_tf_restore(shared, PyBytes_AS_STRING(prefix), &error);
    Py_END_ALLOW_THREADS Py_DECREF(prefix);
    if (code != PAML_OK) {
        return raise(module, &error);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"program", program, METH_O, program_doc},
    {"save", save, METH_VARARGS, save_doc},
    {"restore", restore, METH_VARARGS, restore_doc},
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
    state->load_error = PyObject_GetAttrString(errors, "LoadError");
    state->backend_error = PyObject_GetAttrString(errors, "BackendError");
    state->out_of_memory = PyObject_GetAttrString(errors, "OutOfMemory");
    Py_DECREF(errors);
    if (state->load_error == NULL || state->backend_error == NULL ||
        state->out_of_memory == NULL) {
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
    struct state *state = PyModule_GetState(module);

    Py_VISIT(state->load_error);
    Py_VISIT(state->backend_error);
    Py_VISIT(state->out_of_memory);
    return 0;
}

static int
module_clear(PyObject *module)
{
    struct state *state = PyModule_GetState(module);

    Py_CLEAR(state->load_error);
    Py_CLEAR(state->backend_error);
    Py_CLEAR(state->out_of_memory);
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
    .m_doc =
        "The tensorflow backend's native half; use `pyasyncml.backends.tensorflow`.",
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
