/* The Python type `Model`: the C half of pyasyncml.Model.
 *
 * Owner: Python references, one of them in each request in flight. Thread: any, GIL
 * held. The engine's model (model.h) has a life of its own: it ends when its workers
 * have, which may be after this object.
 */
#ifndef PAML_MODEL_OBJECT_H
#define PAML_MODEL_OBJECT_H

#include "hub.h"
#include "model.h"
#include "signature.h"

typedef struct model_object {
    PyObject_HEAD struct module_state *state;
    struct paml_model *model;
    struct signature *signature; /* NULL until ready */
    PyObject *name;
    PyObject *backend; /* capsule */
    PyObject *options; /* what load.options points into, or the Python callable */
    DLDevice *devices;
    int n_devices;
    int closing;
    struct model_object *previous, *next; /* state->models */
    PyObject *dict, *weakrefs;
} ModelObj;

/* What it needs of its own from the Python backend: ops of opaque objects. */
extern const struct paml_backend paml_python_backend;

/* Checks fork and exit: -1 with an error set. */
int paml_usable(struct module_state *state);

/* How many ops wait and for how long the oldest has, and who runs: model_stats.c. */
PyObject *Model_stats(ModelObj *self, PyObject *ignored);
PyObject *Model_health(ModelObj *self, PyObject *ignored);

/* atexit: closes every model, waits for running work. shutdown.c. */
PyObject *paml_shut_down(PyObject *module, PyObject *ignored);

#endif
