/* The module `pyasyncml.backends._onnxruntime`: opens the library and hands the
 * backend's table out as a capsule. Importing it loads nothing.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "instance.h"
#include "library.h"
#include "settings.h"

/* Thread: any. GIL: either way. */
static int
ort_devices(struct paml_device_info *infos, int capacity)
{
    int count = 0;

    if (count < capacity) {
        infos[count] = (struct paml_device_info){
            .device = {kDLCPU, 0}, .name = "cpu", .memory = paml_host_memory()};
    }
    count++;
    if (count < capacity) {
        infos[count] =
            ort_has_provider("CUDAExecutionProvider")
                ? (struct paml_device_info){.device = {kDLCUDA, 0},
                                            .name = "CUDAExecutionProvider",
                                            .reason = "memory: ONNX Runtime doesn't "
                                                      "tell"}
                : (struct paml_device_info){.device = {kDLCUDA, 0},
                                            .reason = "this library has no "
                                                      "CUDAExecutionProvider; that of "
                                                      "onnxruntime-gpu has"};
    }
    return count + 1;
}

/* What it says of the version is known once the library is open. */
static struct paml_backend table = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "onnxruntime",
    .load = ort_program_load,
    .unload = ort_program_unload,
    .describe = ort_program_describe,
    .open = ort_instance_open,
    .run = ort_instance_run,
    .close = ort_instance_close,
    .devices = ort_devices,
    .computes = 1,
    .stop = ort_instance_stop,
};

PyDoc_STRVAR(open_library_doc,
             "open_library($module, path, debug, /)\n--\n\n"
             "The backend's capsule, its library opened. Raises OSError.");

static PyObject *
open_library(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct paml_error error = {0};
    PyObject *path, *text;
    int debug, code;

    if (!PyArg_ParseTuple(args, "O&p:open_library", PyUnicode_FSConverter, &path,
                          &debug)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code =
        ort_library_open(PyBytes_AS_STRING(path), debug, &error);
    Py_END_ALLOW_THREADS Py_DECREF(path);
    if (code != PAML_OK) {
        text = PyUnicode_DecodeUTF8(error.message, (Py_ssize_t)strlen(error.message),
                                    "replace");
        if (text != NULL) {
            PyErr_SetObject(PyExc_OSError, text);
            Py_DECREF(text);
        }
        return NULL;
    }
    table.version = ort.version;
    return PyCapsule_New(&table, PAML_BACKEND_CAPSULE, NULL);
}

#define SETTINGS_CAPSULE "pyasyncml.onnxruntime.settings"

static void
settings_destroy(PyObject *capsule)
{
    ort_settings_unref(PyCapsule_GetPointer(capsule, SETTINGS_CAPSULE));
}

PyDoc_STRVAR(
    settings_doc,
    "settings($module, graph_optimization_level, mem_pattern, cpu_mem_arena, items, "
    "/)\n--\n\n"
    "A model's settings for `load`, as a capsule. Each number is -1 where the library\n"
    "chooses; items: (kind, name, value), kinds as in settings.h.");

static PyObject *
make_settings(PyObject *Py_UNUSED(module), PyObject *args)
{
    int level, mem_pattern, cpu_mem_arena, kind;
    struct ort_settings *settings;
    PyObject *items, *capsule;
    const char *name, *value;

    if (!PyArg_ParseTuple(args, "iiiO!:settings", &level, &mem_pattern, &cpu_mem_arena,
                          &PyTuple_Type, &items)) {
        return NULL;
    }
    settings = ort_settings_new((size_t)PyTuple_GET_SIZE(items));
    if (settings == NULL) {
        return PyErr_NoMemory();
    }
    settings->graph_optimization_level = level;
    settings->mem_pattern = mem_pattern;
    settings->cpu_mem_arena = cpu_mem_arena;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items); i++) {
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(items, i), "iss", &kind, &name,
                              &value)) {
            goto fail;
        }
        if (kind < 0 || kind >= ORT_N_SETTING_KINDS) {
            PyErr_Format(PyExc_ValueError, "no kind of setting: %d", kind);
            goto fail;
        }
        if (ort_settings_put(settings, (enum ort_setting_kind)kind, name, value) < 0) {
            PyErr_NoMemory();
            goto fail;
        }
    }
    capsule = PyCapsule_New(settings, SETTINGS_CAPSULE, settings_destroy);
    if (capsule != NULL) {
        return capsule;
    }

fail:
    ort_settings_unref(settings);
    return NULL;
}

static PyMethodDef module_methods[] = {
    {"open_library", open_library, METH_VARARGS, open_library_doc},
    {"settings", make_settings, METH_VARARGS, settings_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "pyasyncml.backends._onnxruntime",
    .m_doc = "ONNX Runtime's native half; use `pyasyncml.backends.onnxruntime`.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__onnxruntime(void)
{
    return PyModuleDef_Init(&module_def);
}
