/* The module `pyasyncml._core`: multi-phase init, heap types, per-module state. */
#include <dlfcn.h>

#include "model_object.h"

struct module_state *
paml_state_of_module(PyObject *module)
{
    return PyModule_GetState(module);
}

struct module_state *
paml_state_of_type(PyTypeObject *type)
{
    /* Called for every request: for a type of ours the module hangs on the type. A
       class made in Python has none of its own; one of its bases does. */
    PyObject *mro = type->tp_mro, *module;

    for (Py_ssize_t i = -1; i < 0 || i < PyTuple_GET_SIZE(mro); i++) {
        if (i >= 0) {
            type = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        }
        if (!PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) {
            continue;
        }
        module = ((PyHeapTypeObject *)type)->ht_module;
        if (module != NULL && PyModule_GetDef(module) == &paml_module) {
            return PyModule_GetState(module);
        }
    }
    PyErr_Format(PyExc_TypeError, "%s is no type of pyasyncml", type->tp_name);
    return NULL;
}

static int
module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);

    state->module = module;
    if (paml_future_exec(module, state) < 0 || paml_request_exec(module, state) < 0 ||
        paml_hub_exec(module, state) < 0 || paml_values_exec(module, state) < 0 ||
        paml_echo_exec(module, state) < 0 || paml_model_exec(module, state) < 0 ||
        paml_session_exec(module, state) < 0 || paml_steps_exec(module, state) < 0 ||
        paml_python_backend_exec(module, state) < 0) {
        return -1;
    }
    return 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);

#define VISIT(type, name) Py_VISIT(state->name);
    STATE_OBJECTS(VISIT)
#undef VISIT
    return 0;
}

static int
module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);

#define CLEAR(type, name) Py_CLEAR(state->name);
    STATE_OBJECTS(CLEAR)
#undef CLEAR
    return 0;
}

static void
module_free(void *module)
{
    (void)module_clear(module);
    paml_request_free_spare(PyModule_GetState(module));
}

PyDoc_STRVAR(preload_doc,
             "preload($module, path, /)\n--\n\n"
             "dlopen() a library with the GIL released, so that importing it\n"
             "afterwards is quick. Failures are left for the import to tell.");

static PyObject *
preload(PyObject *module, PyObject *path)
{
    const char *name = PyUnicode_AsUTF8(path);

    (void)module;
    if (name == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS(void) dlopen(name, RTLD_NOW | RTLD_LOCAL);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

PyDoc_STRVAR(backend_devices_doc,
             "backend_devices($module, backend, /)\n--\n\n"
             "[(device type, index, name, memory in bytes, reason), …]: what `devices` "
             "in csrc/engine/backend.h says.");

static PyObject *
backend_devices(PyObject *module, PyObject *capsule)
{
    const struct paml_backend *backend =
        PyCapsule_GetPointer(capsule, PAML_BACKEND_CAPSULE);
    struct paml_device_info infos[64];
    PyObject *list;
    int count = 0;

    (void)module;
    if (backend == NULL) {
        return NULL;
    }
    if (backend->devices != NULL) {
        count = backend->devices(infos, 64);
    }
    list = PyList_New(count);
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *item = Py_BuildValue(
            "(iisKs)", (int)infos[i].device.device_type, (int)infos[i].device.device_id,
            infos[i].name, (unsigned long long)infos[i].memory, infos[i].reason);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyMethodDef module_methods[] = {
    {"preload", preload, METH_O, preload_doc},
    {"backend_devices", backend_devices, METH_O, backend_devices_doc},
    {"shut_down", paml_shut_down, METH_NOARGS,
     "Close every model and wait for running work; called at exit."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

struct PyModuleDef paml_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pyasyncml._core",
    .m_doc = "The C half of pyasyncml; use the names in `pyasyncml`.",
    .m_size = sizeof(struct module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&paml_module);
}
