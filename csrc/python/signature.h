/* A model's signature as infer() checks it: a copy of the backend's description that
 * outlives the program, with names as interned Python strings.
 *
 * Owner: the Model object. Thread: any, GIL held; not changed once made.
 */
#ifndef PAML_SIGNATURE_H
#define PAML_SIGNATURE_H

#include "backend.h"
#include "session.h"
#include "values.h"

struct input_spec {
    PyObject *name;   /* interned str, or NULL */
    const char *utf8; /* of name */
    uint32_t kinds;
    DLDataType dtype;
    int32_t ndim;
    int64_t *shape;
    int optional;
};

struct signature {
    uint32_t n_inputs;
    int variadic;
    struct input_spec *inputs;
    PyObject *described; /* what Python shows: (entry, inputs, outputs) as tuples */
};

/* `made`: the input that the engine makes where a call leaves it out (the mask); -1:
   none. NULL with an error set. */
struct signature *paml_signature_new(const struct paml_entry *entry, int32_t made);
void paml_signature_free(struct signature *signature);

/* The position of a named input; -1 where there is none such. */
Py_ssize_t paml_signature_find(const struct signature *signature, PyObject *name);

/* Appends a call's inputs to the request, checked; those that are the session's state
   (NULL: no session) are left out of the call and come from there. -1 with TypeError or
   InputError set. */
int paml_signature_bind(struct module_state *state, const struct signature *signature,
                        struct paml_request *request,
                        const struct paml_session *session, PyObject *const *positional,
                        Py_ssize_t n_positional, PyObject *const *named,
                        PyObject *const *names, Py_ssize_t n_named,
                        struct tensor_census *census);

#endif
