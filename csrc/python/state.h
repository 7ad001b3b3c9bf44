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
struct orphan;
struct model_object;
struct paml_request;

/* Every owned reference in the state, listed once: traversed and cleared from here. */
#define STATE_OBJECTS(X)                                                               \
    /* future.c */                                                                     \
    X(PyTypeObject, FutureType)                                                        \
    X(PyTypeObject, FutureIterType)                                                    \
    X(PyObject, CancelledError)                                                        \
    X(PyObject, InvalidStateError)                                                     \
    X(PyObject, AsyncioFuture)                                                         \
    X(PyObject, Handle)                                                                \
    X(PyObject, get_event_loop)                                                        \
    X(PyObject, get_running_loop)                                                      \
    X(PyObject, current_task)                                                          \
    X(PyObject, current_tasks) /* {loop: task}; NULL where there is no such dict */    \
    X(PyObject, future_repr)                                                           \
    X(PyObject, format_callback_source)                                                \
    X(PyObject, extract_stack)                                                         \
    X(PyObject, str_call_soon)                                                         \
    X(PyObject, str_context)                                                           \
    X(PyObject, str_get_debug)                                                         \
    X(PyObject, str_loop)                                                              \
    X(PyObject, str_call_exception_handler)                                            \
    X(PyObject, str_PENDING)                                                           \
    X(PyObject, str_CANCELLED)                                                         \
    X(PyObject, str_FINISHED)                                                          \
    X(PyObject, kw_context) /* ("context",) */                                         \
    /* hub.c, deadlines.c */                                                           \
    X(PyTypeObject, HubType)                                                           \
    X(PyObject, str_drain)                                                             \
    X(PyObject, str_expire)                                                            \
    X(PyObject, str_add_reader)                                                        \
    X(PyObject, str_call_later)                                                        \
    X(PyObject, str_running_loop)                                                      \
    X(PyObject, str_ready)                                                             \
    X(PyObject, str_nest_patched)                                                      \
    /* request.c */                                                                    \
    X(PyObject, InputError)                                                            \
    X(PyObject, BackendError)                                                          \
    X(PyObject, OutOfMemory)                                                           \
    X(PyObject, LoadError)                                                             \
    X(PyObject, DeadlineExceeded)                                                      \
    X(PyObject, QueueFull)                                                             \
    X(PyObject, ModelClosed)                                                           \
    X(PyObject, Error)                                                                 \
    X(PyObject, memory_error)                                                          \
    /* values_in.c, values_out.c */                                                    \
    X(PyTypeObject, TensorType)                                                        \
    X(PyTypeObject, exchange_type) /* the type whose exchange API is cached */         \
    X(PyObject, exchange_capsule)                                                      \
    X(PyObject, numpy)                                                                 \
    X(PyObject, ndarray)                                                               \
    X(PyObject, dtypes) /* dict: DLDataType as int -> numpy.dtype */                   \
    X(PyObject, torch_tensor)                                                          \
    X(PyObject, str_is_neg)                                                            \
    X(PyObject, str_is_conj)                                                           \
    X(PyObject, str_resolve_neg)                                                       \
    X(PyObject, str_resolve_conj)                                                      \
    X(PyObject, str_dlpack)                                                            \
    X(PyObject, str_exchange_api)                                                      \
    /* model_object.c */                                                               \
    X(PyTypeObject, ModelType)                                                         \
    X(PyObject, str_timeout)                                                           \
    X(PyObject, str_priority)                                                          \
    /* echo_object.c */                                                                \
    X(PyTypeObject, EchoScriptType)

struct module_state {
#define DECLARE(type, name) type *name;
    STATE_OBJECTS(DECLARE)
#undef DECLARE
    PyObject *module;       /* borrowed: itself; who needs the state last owns it */
    struct hub *hubs;       /* borrowed; every hub takes itself off when it goes */
    struct orphan *orphans; /* hub.c: what is on its way to loops that are gone */
    struct model_object *models; /* borrowed; every open model */
    const void *exchange_api;    /* of exchange_type */
    int exchange_is_torch;
    struct paml_request *spare_requests; /* request.c: free, linked by op.next */
    int n_spare_requests;
    int shut_down; /* the interpreter is exiting: nothing new is accepted */
};

extern struct PyModuleDef paml_module;

struct module_state *paml_state_of_module(PyObject *module);
/* The state behind an object whose type, or a base of it, this module made. */
struct module_state *paml_state_of_type(PyTypeObject *type);

/* One for each concept: makes its types, looks its names up. 0, or -1. */
int paml_future_exec(PyObject *module, struct module_state *state);
int paml_hub_exec(PyObject *module, struct module_state *state);
int paml_request_exec(PyObject *module, struct module_state *state);
void paml_request_free_spare(struct module_state *state);
int paml_values_exec(PyObject *module, struct module_state *state);
int paml_model_exec(PyObject *module, struct module_state *state);
int paml_session_exec(PyObject *module, struct module_state *state);
int paml_steps_exec(PyObject *module, struct module_state *state);
int paml_echo_exec(PyObject *module, struct module_state *state);
int paml_python_backend_exec(PyObject *module, struct module_state *state);

#endif
