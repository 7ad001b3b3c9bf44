/* A program on one device, with the weights and the state that it holds there.
 *
 * Owner and thread: one worker.
 */
#ifndef PAML_XLA_INSTANCE_H
#define PAML_XLA_INSTANCE_H

#include "buffers.h"
#include "source.h"

/* How many runs an instance has in flight, and from how many executions on a device, of
   all instances there are, none of them begins another beside its own: together they
   stay below what PJRT takes for a device before it makes the caller wait (32), with up
   to eight instances that look at the same time. */
#define PAML_XLA_IN_FLIGHT 8
#define PAML_XLA_CROWD 24

/* What one run in flight needs until its end. Used again and again.
 *
 * Owner: the instance. Thread: its worker, but for the latch. */
struct paml_xla_run {
    struct paml_xla_latch latch;
    struct paml_xla_staging *staging;             /* one for each input */
    unsigned char (*numbers)[PAML_XLA_ALIGNMENT]; /* inputs given as numbers */
    struct paml_value *outputs; /* each a tensor with room for all rows */
    int64_t rows;
    int executing;           /* how many of the device's executions are its */
    bool begun;              /* something was executed */
    struct paml_error error; /* what went wrong while it was begun; code: PAML_OK */
};

struct paml_xla_instance {
    const struct paml_xla_program *program;
    DLDevice named; /* as the engine calls it */
    struct pjrt_device *device;
    atomic_int *executing;                 /* the device's, see client.h */
    struct pjrt_buffer **weights, **state; /* on the device */
    struct paml_xla_latch held;            /* what these were made from is let go of */
    bool lost;                             /* the state went with a run that failed */

    /* One where runs hand on a state, which makes them wait for each other. */
    struct paml_xla_run *runs;
    uint32_t n_runs, next_run;

    /* Of the run that is being begun. */
    const struct paml_value **leaves;
    struct pjrt_buffer **inputs;    /* the leaves, on the device */
    struct pjrt_buffer **arguments; /* weights, state, inputs: those that are kept */
    struct pjrt_buffer **results;   /* new state, outputs */
};

/* `source`: may be NULL. */
int paml_xla_instance_open(const struct paml_xla_program *program,
                           const struct paml_xla_source *source, DLDevice device,
                           struct paml_xla_instance **instance, struct paml_error *err);
void paml_xla_instance_close(struct paml_xla_instance *instance);

/* run.c. One run; without any argument, of a program with state: gives the state. */
int paml_xla_instance_run(struct paml_xla_instance *instance, struct paml_run *its,
                          struct paml_error *err);

/* The same in flight, of a program without state: see backend.h. */
int paml_xla_instance_submit(struct paml_xla_instance *instance,
                             struct paml_flight *flight, struct paml_error *err);
int paml_xla_instance_finish(struct paml_xla_instance *instance,
                             struct paml_flight *flight, struct paml_error *err);

#endif
