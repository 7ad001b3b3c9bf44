/* A model: one program, a queue, and a worker thread for each instance of it.
 *
 * Lifetime: one reference for whoever made it and one for each live worker. The last
 * worker to leave unloads the program and answers those who asked for the close: at
 * once, or, where the model had replaced another, when that has ended as well.
 *
 * Lock: `lock` guards status, error, program, entry, the counts and the lists of ops
 * that wait for a change of status. Nothing is called under it, and it is never held
 * together with the queue's.
 *
 * Status only moves forward:
 *     NEW -> LOADING -> READY -> CLOSING -> CLOSED
 *                 \-> FAILED (load, open or warm-up went wrong; the queue is closed)
 */
#ifndef PAML_MODEL_H
#define PAML_MODEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "backend.h"
#include "batch.h"
#include "cost.h"
#include "home.h"
#include "op.h"
#include "queue.h"
#include "stats.h"
#include "stop.h"

enum paml_status {
    PAML_STATUS_NEW,
    PAML_STATUS_LOADING,
    PAML_STATUS_READY,
    PAML_STATUS_CLOSING,
    PAML_STATUS_CLOSED,
    PAML_STATUS_FAILED,
};

struct paml_model_options {
    const char *name; /* for people */
    struct paml_load_spec load;
    const DLDevice *devices; /* one a group of instances */
    int n_devices;
    int instances; /* per device */
    int threads;   /* intra-op, of one instance */
    int warmup_runs;
    int64_t spin_ns;
    struct paml_queue_limits limits;
    struct paml_batching_options batching;
};

struct paml_model;

/* A ring that a worker owes a mailbox. Owner: the worker. */
struct paml_debt {
    struct paml_mailbox *mailbox; /* NULL: none */
    bool guarded;                 /* an alarm is under way */
    int64_t due_ns;
    int64_t usual_run_ns; /* moving average */
};

struct paml_worker {
    struct paml_model *model;
    int index;
    DLDevice device;
    struct paml_patience patience;
    struct paml_debt debt;  /* worker.c */
    struct paml_home *home; /* NULL where memory had run out: it does without */
    bool has_tokens;        /* of the process's budget */
    int64_t last_run_ns;
    struct paml_batch batch; /* what it took */
    struct paml_batcher batcher;
    struct paml_cost_model cost;
    struct paml_worker_stats stats;
    struct paml_stopping stopping;
    atomic_bool lost; /* its device is: it takes nothing more */
    bool refuses;     /* as there is no other: it answers all with that */
};

struct paml_model {
    struct paml_queue queue;
    const struct paml_backend *backend;
    atomic_int refs;
    char *name, *path, *entry_name;
    void *backend_options;
    int threads, warmup_runs, n_workers;
    struct paml_worker *workers;
    struct paml_batching_options batching_options;
    struct paml_batching batching; /* there once `entry` is */

    /* Written by those who submit, cancel or expire; statistics, so relaxed. */
    _Alignas(64) atomic_uint_least64_t submitted, rejected, cancelled, expired;
    /* Served by those who submit: requests, the rows and nanoseconds of both. */
    atomic_uint_least64_t inlined, inline_failed, inline_rows, inline_ns;

    /* Runs that failed since the last one that didn't. */
    _Alignas(64) atomic_uint_least64_t failing;
    atomic_int serving; /* workers whose device isn't lost */

    pthread_mutex_t lock;
    pthread_cond_t loaded; /* status left LOADING, or the program is there */
    enum paml_status status;
    void *program;
    const struct paml_entry *entry; /* valid from READY on, while a worker lives */
    struct paml_error error;        /* of a FAILED model, or of the last failed run */
    struct paml_error loss;         /* of the first device that was lost */
    int live;                       /* workers that haven't left, and pins */
    int opened;                     /* instances that are warm */
    bool ended;                     /* unloaded; no worker will touch it again */
    struct paml_op *opening;        /* answered when READY, or when all have left */
    struct paml_op *closing;        /* list, answered when all have left */
    struct paml_model *predecessor; /* one reference: see paml_model_succeed() */
};

/* NULL when memory ran out. Copies the options but load.options, which must outlive the
   workers. */
struct paml_model *paml_model_new(const struct paml_backend *backend,
                                  const struct paml_model_options *options);
void paml_model_unref(struct paml_model *model);

/* Starts the workers. `op` is answered when every instance is open and warm, or when
   one could not be (the others end): its inputs are the example that instances are
   warmed with; none: no warm-up. Takes the op. */
void paml_model_start(struct paml_model *model, struct paml_op *op);

/* PAML_OK: the op is the model's. Otherwise a code, and the op stays the caller's. */
int paml_model_submit(struct paml_model *model, struct paml_op *op);

/* Stops accepting. `drain`: what waits is served, else it is answered with
   PAML_ERR_CLOSED. `op` (may be NULL) is answered when the last worker has left. */
void paml_model_close(struct paml_model *model, bool drain, struct paml_op *op);

/* `model` has come in the place of `predecessor`, and keeps a reference to it, behind
   those that it has to others: closing the one closes and awaits them all. Callers of
   this and the next, and who reads `predecessor` without the lock, take turns (in
   Python: by the GIL). */
void paml_model_succeed(struct paml_model *model, struct paml_model *predecessor);
/* Lets go of a predecessor that has ended and that nobody else knows any more: returns
   the reference. What that had replaced is the model's own predecessor then. NULL where
   it isn't so far. */
struct paml_model *paml_model_forget(struct paml_model *model);

/* The program's description, and with it the program, kept until the unpin; NULL where
   there is none (yet, or any more): nothing to unpin then. */
const struct paml_entry *paml_model_pin(struct paml_model *model);
void paml_model_unpin(struct paml_model *model);

enum paml_status paml_model_status(struct paml_model *model, struct paml_error *error);

#endif
