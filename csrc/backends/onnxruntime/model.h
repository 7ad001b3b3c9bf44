/* A loaded .onnx file: its first session, and what goes in and out by name.
 *
 * Sessions. One of one thread computes in whoever calls it, and any number may. But its
 * locks cost: two workers on a tiny model get 0.56 million runs a second out of one
 * session and 1.59 out of two. Next to runs of milliseconds that is nothing, while each
 * session has the weights to itself. So instances of large models share the program's,
 * those of small ones have their own. A session of more threads has a pool, for which
 * two runs would fight: there, too, each instance has its own.
 */
#ifndef PAML_ORT_MODEL_H
#define PAML_ORT_MODEL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "library.h"
#include "settings.h"

/* Where a symbolic size is found when a run begins: an axis of an input. */
struct ort_place {
    int32_t input; /* -1: nowhere */
    int32_t axis;
};

/* One input or output. */
struct ort_port {
    char *name;
    int kind;     /* enum ort_kind; of what an optional may hold, where it is one */
    int type;     /* element type; tensors only */
    int optional; /* may be None */
    DLDataType dtype;
    int32_t ndim; /* 0: a scalar, or not known: ONNX Runtime doesn't tell them apart */
    int64_t *shape;
    char **symbols;           /* ndim names, NULL where there is none */
    struct ort_place *places; /* of outputs whose shape the inputs tell, else NULL */
};

struct ort_program {
    char *path;
    struct ort_settings *settings; /* one reference; NULL: nothing was said */
    OrtSession *session;
    DLDevice device; /* of that session */
    int threads;
    bool shared;       /* by all instances on that device */
    atomic_bool taken; /* by an instance, where it isn't */
    /* An output had another shape than the file says: nobody believes it any more. */
    atomic_bool misled;
    uint32_t n_inputs, n_outputs;
    struct ort_port *inputs, *outputs;
    struct paml_spec *specs; /* inputs, then outputs (those that are computed) */
    const char **output_names;
    struct paml_entry entry;
};

/* As in backend.h. Thread: worker. GIL: not held, not taken. */
int ort_program_load(const struct paml_load_spec *spec, void **program,
                     struct paml_error *err);
void ort_program_unload(void *program);
const struct paml_entry *ort_program_describe(void *program);

/* A session of its own for that device and so many threads. */
int ort_session_new(const struct ort_program *program, DLDevice device, int threads,
                    OrtSession **session, struct paml_error *err);

#endif
