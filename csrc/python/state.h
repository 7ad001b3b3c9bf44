/* The module's state: every Python object that C code keeps for longer than a call.
 *
 * Owner: the module object. Lifetime: from exec to m_clear. Thread: any, GIL held.
 * There is no static PyObject * anywhere; functions reach this struct through their
 * type (paml_state_of_type) or through the defining class.
 *
 * Each concept adds its own section here and three hooks in its own file:
 * paml_X_exec() makes types and looks names up. Traverse and clear walk STATE_OBJECTS.
 */
#ifndef PAML_STATE_H
#define PAML_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

struct hub;

/* Every owned reference in the state, listed once: traversed and cleared from here. */
#define STATE_OBJECTS(X)                                                             \
    /* future.c */                                                                   \
    X(PyTypeObject, FutureType)                                                      \
    X(PyTypeObject, FutureIterType)                                                  \
    X(PyObject, CancelledError)                                                      \
    X(PyObject, InvalidStateError)                                                   \
    X(PyObject, get_event_loop)                                                      \
    X(PyObject, get_running_loop)                                                    \
    X(PyObject, future_repr)                                                         \
    X(PyObject, extract_stack)                                                       \
    X(PyObject, str_call_soon)                                                       \
    X(PyObject, str_context)                                                         \
    X(PyObject, str_get_debug)                                                       \
    X(PyObject, str_call_exception_handler)                                          \
    X(PyObject, kw_context) /* ("context",) */

struct module_state {
#define DECLARE(type, name) type *name;
    STATE_OBJECTS(DECLARE)
#undef DECLARE
};

extern struct PyModuleDef paml_module;

struct module_state *paml_state_of_module(PyObject *module);
/* The state behind an object whose type, or a base of it, this module made. */
struct module_state *paml_state_of_type(PyTypeObject *type);

int paml_future_exec(PyObject *module, struct module_state *state);

#endif
