/* Python objects to paml_values and back.
 *
 * In: the memory is borrowed, not copied, where the object lends it (DLPack, buffer
 * protocol); the value's owner holds the loan until the run has ended. Out: arrays view
 * the output buffers and own them.
 *
 * Thread: any, GIL held.
 */
#ifndef PAML_VALUES_H
#define PAML_VALUES_H

#include "request.h"

/* How an input is called in errors: "input 'x'", or "input 0" where it has no name. */
struct input_name {
    const char *name; /* or NULL */
    Py_ssize_t index;
};

/* Raises `type` with "<input>: <message>", keeping the error under way as the cause.
   Returns -1. */
int paml_input_refuse(PyObject *type, const struct input_name *name, const char *format,
                      ...);

/* What a request's tensors were (strings aren't counted): decides what comes back. */
struct tensor_census {
    int torch, other;
};

/* Appends the object's value(s) to the request. `kinds`: what is accepted at the top
   (PAML_KIND_BIT); numbers are converted where that loses nothing. -1 with TypeError or
   InputError set, naming the input. */
int paml_value_append(struct module_state *state, struct paml_request *request,
                      PyObject *object, uint32_t kinds, const struct input_name *name,
                      struct tensor_census *census);

/* An int too large for int64, where an input is uint64: a tensor without axes. 1: done.
   0: the object is something else. -1: as above. */
int paml_value_append_large(struct module_state *state, struct paml_request *request,
                            PyObject *object, const struct input_name *name);

/* An opaque object (stolen), for the python backend. */
int paml_value_append_object(struct paml_request *request, PyObject *object);

/* One structure in prefix order as Python objects: a new reference or NULL. The owners
   move out of the values. */
PyObject *paml_outputs_to_object(struct module_state *state,
                                 struct paml_outputs *outputs, enum flavour flavour);

#endif
