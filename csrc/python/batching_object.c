/* What pyasyncml.Batching says, from plain Python objects to the engine's options. */
#include "model_object.h"

/* (kind, which, name or None, position, value). The name stays the caller's. */
static int
parse_setting(PyObject *item, struct paml_setting *setting)
{
    const char *name;
    int kind, which, position;

    if (!PyArg_ParseTuple(item, "iizid", &kind, &which, &name, &position,
                          &setting->value)) {
        return -1;
    }
    setting->kind = (enum paml_setting_kind)kind;
    setting->which = (uint32_t)which;
    setting->position = (uint32_t)position;
    setting->name = (char *)name;
    return 0;
}

int
paml_parse_batching(PyObject *object, struct paml_batching_options *options)
{
    PyObject *names, *settings;
    long long max_rows, max_delay_ns;
    int mask_code, mask_bits;
    Py_ssize_t count;

    memset(options, 0, sizeof(*options));
    if (object == Py_None) {
        return 0;
    }
    if (!PyArg_ParseTuple(object, "LLO!iiO!", &max_rows, &max_delay_ns, &PyTuple_Type,
                          &names, &mask_code, &mask_bits, &PyTuple_Type, &settings)) {
        return -1;
    }
    if (PyTuple_GET_SIZE(names) > PAML_PADDED_MOST) {
        PyErr_Format(PyExc_ValueError, "pad: at most %d axes can be padded",
                     PAML_PADDED_MOST);
        return -1;
    }
    options->max_rows = max_rows;
    options->max_delay_ns = max_delay_ns;
    options->mask_dtype = (DLDataType){(uint8_t)mask_code, (uint8_t)mask_bits, 1};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        options->axis_names[i] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (options->axis_names[i] == NULL) {
            return -1;
        }
        options->n_padded++;
    }
    count = PyTuple_GET_SIZE(settings);
    options->settings = PyMem_New(struct paml_setting, count + 1);
    if (options->settings == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_setting(PyTuple_GET_ITEM(settings, i), &options->settings[i]) < 0) {
            PyMem_Free(options->settings);
            options->settings = NULL;
            return -1;
        }
        options->n_settings++;
    }
    return 0;
}
