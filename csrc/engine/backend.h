/* The one contract between the engine and a machine-learning framework.
 *
 * A backend is a table of C functions, found through a PyCapsule named
 * PAML_BACKEND_CAPSULE whose pointer is a `const struct paml_backend *` that lives as
 * long as the process. The table is append-only: `abi_version` changes when a member
 * changes its meaning, `struct_size` tells which members are there.
 *
 * Threads. All but `devices`, `stop` and a flight's `ready` are called on the model's
 * worker threads, never with the GIL, and must not take it (the python backend, which
 * lives in csrc/python, is the exception that proves the rule). An instance is used by
 * one thread only, the one that opened it. `describe` is called on a worker after
 * `load`, before any `open`; what it returns stays valid until `unload`. `devices` may
 * be called from any thread.
 *
 * Errors. A function returns 0, or fills `err` and returns its code. C++ exceptions
 * must not cross: every function is noexcept.
 */
#ifndef PAML_BACKEND_H
#define PAML_BACKEND_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "value.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PAML_ABI_VERSION 2u
#define PAML_BACKEND_CAPSULE "pyasyncml.backend"

/* One named input or output of an entry. */
struct paml_spec {
    const char *name;     /* NULL: by position only */
    const char *type;     /* the framework's own words, for people; may be NULL */
    uint32_t kinds;       /* PAML_KIND_BIT of every kind accepted at the top */
    DLDataType dtype;     /* bits == 0: any */
    int32_t ndim;         /* -1: any */
    const int64_t *shape; /* ndim sizes, -1: any; NULL where ndim is -1 */
    int32_t batch_axis;   /* -1: not stated */
    uint32_t optional;    /* 1: has a default, may be left out */
};

/* Whether instances keep state from one run to the next. */
enum paml_stateful {
    PAML_STATE_NONE = 0,
    PAML_STATE_KEPT,
    PAML_STATE_TRAINED, /* and it is what runs are for: a warm-up would spoil it */
};

/* One function of a loaded program: "forward", a SavedModel signature, … */
struct paml_entry {
    const char *name;
    uint32_t n_inputs, n_outputs;
    const struct paml_spec *inputs, *outputs;
    uint32_t variadic; /* 1: takes any number of positional inputs of any kind */
    uint32_t stateful; /* enum paml_stateful */
};

struct paml_load_spec {
    const char *path;  /* NULL where the backend needs none */
    const char *entry; /* name of the entry to serve; NULL: the default one */
    void *options;     /* the backend's own; the caller keeps it alive */
    /* What the first instance will be opened with, for what may as well be made now. */
    DLDevice device;
    int threads;
};

struct paml_run {
    /* Positional inputs in the entry's order; a left-out optional input in the middle
       has kind PAML_NONE and `count` PAML_ABSENT. Prefix order, see value.h. */
    const struct paml_value *inputs;
    uint32_t n_inputs;    /* values in all, containers and their items counted */
    uint32_t n_arguments; /* inputs at the top level */
    struct paml_outputs *outputs; /* empty; filled by the run, one structure */
    int64_t deadline_ns;          /* CLOCK_MONOTONIC; 0: none. A hint. */
};

#define PAML_ABSENT 0xffffffffu

/* A run that was begun and may not have ended. Owner: the worker. */
struct paml_flight {
    struct paml_run run; /* its inputs stay valid until finish() has returned */
    void *ticket;        /* the backend's own, set by submit() */
    /* The engine's: the run is done, finish() won't wait. Any thread, submit()'s caller
       included; doesn't block. At most once a flight, and not after poll() has said 0
       or finish() has returned. The flight may be gone as soon as it returns, so what
       finish() frees is not to be touched after it (or finish() waits for that). */
    void (*ready)(struct paml_flight *flight);
};

struct paml_device_info {
    DLDevice device;
    char name[64];    /* "NVIDIA H100", … or "cpu"; "": there is no such device */
    uint64_t memory;  /* bytes; 0: unknown */
    char reason[192]; /* why there is none, or why its memory is unknown */
};

struct paml_backend {
    uint32_t abi_version; /* PAML_ABI_VERSION */
    uint32_t struct_size; /* sizeof(struct paml_backend) where it was compiled */
    const char *name;     /* "torch", "echo", … */
    const char *version;  /* of the framework, for people */

    int (*load)(const struct paml_load_spec *spec, void **program,
                struct paml_error *err);
    void (*unload)(void *program);
    /* The entry that `load` was asked for. */
    const struct paml_entry *(*describe)(void *program);

    /* One instance: whatever one worker needs to run alone. `threads` is the number of
       intra-op threads it may use, this one included; 0: as the thread has it, which is
       not the backend's to change (open, a run and close are then one call's). */
    int (*open)(void *program, DLDevice device, int threads, void **instance,
                struct paml_error *err);
    int (*run)(void *instance, struct paml_run *run, struct paml_error *err);
    void (*close)(void *instance);

    /* Fills at most `capacity` and returns how many there are. NULL: the CPU only. */
    int (*devices)(struct paml_device_info *infos, int capacity);

    /* 1: runs on the CPU keep as many processors busy as the instance has threads, and
       take them from the process's budget (budget.h). 0: they mostly wait. */
    uint32_t computes;

    /* NULL: a run() can't be stopped. (What is in flight never is.) `on`: the run that
       this instance is in, or about to be in, is to end as soon as it can, whichever
       way; nobody wants what it gives. Any thread, during runs only; must not wait. Not
       `on`: runs are to run again; on the instance's thread, between two runs, after
       each stop. */
    void (*stop)(void *instance, int on);

    /* Asynchronous instances: all four of these, or none. */

    /* How many runs of this instance may be in flight; 0 or 1: none, it runs by `run`
       alone. Asked once, after open. */
    uint32_t (*depth)(void *instance);
    /* Begins what `run` would do, and returns without waiting for the device. A code:
       nothing was begun. */
    int (*submit)(void *instance, struct paml_flight *flight, struct paml_error *err);
    /* 0: done, finish() won't wait. More: ask again in so many ns. INT64_MAX: don't
       ask, flight->ready() will be called (or was). Asked of the oldest flight. */
    int64_t (*poll)(void *instance, struct paml_flight *flight);
    /* Waits if need be, then fills run.outputs or gives the run's error. Called once
       for each flight that was begun, in the order of submission. `run` is called only
       while none is up. */
    int (*finish)(void *instance, struct paml_flight *flight, struct paml_error *err);

    /* NULL: there are no streams to order. What the calling thread has enqueued on its
       current stream of the device until now comes before whatever runs begun from now
       on do there with inputs that lie on it. Any thread, GIL or not; must not wait. */
    void (*order)(DLDevice device);

    /* NULL: outputs are in host memory. A tensor that a run of this instance has given,
       and that has ended, copied from its device into `to`: host memory, dense in C
       order. */
    int (*download)(void *instance, const DLTensor *from, void *to,
                    struct paml_error *err);

    /* NULL: never. 1: the instance's device has as many runs in flight as it should,
       whosesoever: this instance begins another only when none of its own is up. Asked
       before each run that would be one more; on its thread, must not wait. */
    int (*crowded)(void *instance);
};

/* In bytes; 0: unknown. */
static inline uint64_t
paml_host_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);

    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : 0;
}

/* Whether a table, of whichever size, has that function. */
#define PAML_BACKEND_HAS(backend, function)                                            \
    ((backend)->struct_size >=                                                         \
         offsetof(struct paml_backend, function) + sizeof((backend)->function) &&      \
     (backend)->function != NULL)

static inline int
paml_backend_can_stop(const struct paml_backend *backend)
{
    return PAML_BACKEND_HAS(backend, stop);
}

static inline int
paml_backend_is_asynchronous(const struct paml_backend *backend)
{
    return PAML_BACKEND_HAS(backend, finish) && backend->depth != NULL &&
           backend->submit != NULL && backend->poll != NULL;
}

static inline int
paml_backend_orders(const struct paml_backend *backend)
{
    return PAML_BACKEND_HAS(backend, order);
}

static inline int
paml_backend_downloads(const struct paml_backend *backend)
{
    return PAML_BACKEND_HAS(backend, download);
}

static inline int
paml_backend_is_crowded(const struct paml_backend *backend, void *instance)
{
    return PAML_BACKEND_HAS(backend, crowded) && backend->crowded(instance);
}

/* Room for `more` further values; the new ones are zeroed (PAML_NONE). Returns the
   first of them, or NULL when memory ran out. Inline, so that a backend links to
   nothing of the core. */
static inline struct paml_value *
paml_outputs_append(struct paml_outputs *outputs, uint32_t more)
{
    struct paml_value *values;
    uint32_t capacity;

    if (outputs->capacity - outputs->count < more) {
        capacity = outputs->count + more + outputs->count / 2;
        if (outputs->values == outputs->first) {
            values = (struct paml_value *)malloc(capacity * sizeof(*values));
            if (values != NULL) {
                memcpy(values, outputs->first, outputs->count * sizeof(*values));
            }
        } else {
            values = (struct paml_value *)realloc(outputs->values,
                                                  capacity * sizeof(*values));
        }
        if (values == NULL) {
            return NULL;
        }
        outputs->values = values;
        outputs->capacity = capacity;
    }
    values = outputs->values + outputs->count;
    memset(values, 0, more * sizeof(*values));
    outputs->count += more;
    return values;
}

#ifdef __cplusplus
}
#endif
#endif
