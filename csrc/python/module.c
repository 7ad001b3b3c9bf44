/* The module `pyasyncml._core`: multi-phase init, heap types, per-module state. */
#include "state.h"

struct module_state *
paml_state_of_module(PyObject *module)
{
    return PyModule_GetState(module);
}

static int
module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);

    if (paml_future_exec(module, state) < 0) {
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
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

struct PyModuleDef paml_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pyasyncml._core",
    .m_doc = "The C half of pyasyncml; use the names in `pyasyncml`.",
    .m_size = sizeof(struct module_state),
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
