/* The Python type `Model`: the C half of pyasyncml.Model.
 *
 * A reload loads another Model and swaps the two's engine models, with what belongs to
 * those (paml_model_of() is who a request was made for; request->served what it was
 * pushed to). Signature and devices are the same then, and stay.
 *
 * Owner: Python references, one of them in each request in flight. Thread: any, GIL
 * held. The engine's model (model.h) has a life of its own: it ends when its workers
 * have, which may be after this object.
 */
#ifndef PAML_MODEL_OBJECT_H
#define PAML_MODEL_OBJECT_H

#include "hub.h"
#include "model.h"
#include "served.h"
#include "signature.h"

/* inline.c: what runs of one kind take, about. */
#define INLINE_COSTS 16

struct inline_cost {
    uint64_t key;
    int64_t ns;
};

typedef struct model_object {
    PyObject_HEAD struct module_state *state;
    PyObject *module; /* owned: at exit types may let go of it before their objects */
    struct paml_served *served;
    struct paml_model *model;    /* that of `served` */
    struct paml_totals *past;    /* of models it served and that are gone, or NULL */
    struct signature *signature; /* NULL until ready */
    PyObject *name;
    PyObject *backend; /* capsule */
    PyObject *options; /* what load.options points into, or the Python callable */
    PyObject *finish;  /* what outputs go through before anybody sees them, or NULL */
    DLDevice *devices;
    int n_devices;
    int closing;
    int64_t inline_below_ns; /* 0: nothing is run inline */
    struct inline_cost inline_costs[INLINE_COSTS];
    struct model_object *previous, *next; /* state->models */
    PyObject *dict, *weakrefs;
} ModelObj;

/* What it needs of its own from the Python backend: ops of opaque objects. */
extern const struct paml_backend paml_python_backend;

/* Checks fork and exit: -1 with an error set. */
int paml_usable(struct module_state *state);

/* The Model a request was made for. */
static inline ModelObj *
paml_model_of(struct paml_request *request)
{
    return (ModelObj *)request->owner;
}

/* -1 with an error set: not initialised, forked, or exiting. */
int paml_model_check(ModelObj *self);
/* Copies the program's description, once it is there. -1 with an error set. */
int paml_model_learn_signature(ModelObj *self);

/* batching_object.c: None, or the tuple that pyasyncml._batching makes. The options
   point into the object; their `settings` are the caller's to PyMem_Free(). */
int paml_parse_batching(PyObject *object, struct paml_batching_options *options);

/* infer.c. Inputs of a live module or of call(), opaque to the engine: args and kwargs
   (None: there are none) are stolen and may be NULL with an error set. */
int paml_append_call(struct paml_request *request, PyObject *function, PyObject *args,
                     PyObject *kwargs);
PyObject *paml_tuple_of(PyObject *const *items, Py_ssize_t count);
/* inline.c. Whether the request may be run where it was made; runs it and settles it
   (0: it can't be after all); notes what it took. */
int paml_inline_may(ModelObj *self, struct paml_request *request);
int paml_inline_run(ModelObj *self, struct paml_request *request);
void paml_inline_note(ModelObj *self, const struct paml_request *request);

/* infer() of a model, or of a session with it (NULL: none). */
PyObject *paml_infer(ModelObj *self, struct paml_session *session,
                     PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *Model_infer(ModelObj *self, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames);
PyObject *Model_call(ModelObj *self, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames);
PyObject *Model_run_direct(ModelObj *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *Model_withdraw(ModelObj *self, PyObject *future);
extern const char Model_withdraw_doc[], Model_infer_doc[], Model_call_doc[],
    Model_run_direct_doc[];

/* How many ops wait and for how long the oldest has, and who runs: model_stats.c.
   paml_totals_fold() lets go of models that were replaced and have ended, keeping
   their counts in `past`. */
void paml_totals_fold(ModelObj *self);
PyObject *Model_stats(ModelObj *self, PyObject *ignored);
PyObject *Model_health(ModelObj *self, PyObject *ignored);

/* atexit: closes every model, waits for running work. shutdown.c. */
PyObject *paml_shut_down(PyObject *module, PyObject *ignored);

#endif
