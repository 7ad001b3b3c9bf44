/* The module `pyasyncml.backends._torch`: hands the backend's table out as a capsule.
 *
 * Importing it loads LibTorch (a second or so, with the GIL held, as any import); from
 * then on nothing in this library touches Python but graph(), which reads a
 * description. Its order relative to `import torch` does not matter.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "graph_python.h"
#include "torch_backend.h"

/* Read out of the file before it is loaded, to tell what it was built from. */
extern "C" __attribute__((used, visibility("default")))
const char paml_torch_build_key[] = "pyasyncml-torch-build:" PAML_TORCH_BUILD_KEY ";";

static int
module_exec(PyObject *module)
{
    void *table = const_cast<struct paml_backend *>(&paml_torch_backend);
    PyObject *capsule = PyCapsule_New(table, PAML_BACKEND_CAPSULE, nullptr);
    const int failed = PyModule_AddObjectRef(module, "capsule", capsule);

    Py_XDECREF(capsule);
    if (failed < 0) {
        return -1;
    }
    return PyModule_AddStringConstant(module, "torch_version", PAML_TORCH_VERSION);
}

static PyMethodDef module_methods[] = {
    {"graph", pyasyncml::graph_from_python, METH_VARARGS,
     pyasyncml::graph_from_python_doc},
    {"with_weights", pyasyncml::graph_with_weights, METH_VARARGS,
     pyasyncml::graph_with_weights_doc},
    {nullptr, nullptr, 0, nullptr},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void *>(module_exec)},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "pyasyncml.backends._torch",
    .m_doc = "The torch backend's native half; use `pyasyncml.backends.torch`.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = nullptr,
    .m_clear = nullptr,
    .m_free = nullptr,
};

PyMODINIT_FUNC
PyInit__torch(void)
{
    return PyModuleDef_Init(&module_def);
}
