/* A program on one device, with the weights and the state that it holds there.
 *
 * Owner and thread: one worker.
 */
#ifndef PAML_XLA_INSTANCE_H
#define PAML_XLA_INSTANCE_H

#include "buffers.h"
#include "program.h"

struct paml_xla_instance {
    const struct paml_xla_program *program;
    struct pjrt_device *device;
    struct paml_xla_latch latch;
    struct pjrt_buffer **weights, **state; /* on the device */
    struct paml_xla_latch held;            /* what these were made from is let go of */
    struct pjrt_event **held_events;
    bool lost; /* the state went with a run that failed */

    /* Of the run that is on. */
    const struct paml_value **leaves;
    struct paml_xla_staging *staging;             /* one for each input */
    unsigned char (*numbers)[PAML_XLA_ALIGNMENT]; /* inputs given as numbers */
    struct pjrt_buffer **inputs;                  /* the leaves, on the device */
    struct pjrt_buffer **arguments; /* weights, state, inputs: those that are kept */
    struct pjrt_buffer **results;   /* new state, outputs */
    struct paml_value *outputs;     /* each a tensor with room for all rows */
    struct pjrt_event **events;
};

int paml_xla_instance_open(const struct paml_xla_program *program, DLDevice device,
                           struct paml_xla_instance **instance, struct paml_error *err);
void paml_xla_instance_close(struct paml_xla_instance *instance);

/* run.c. One run; without any argument, of a program with state: gives the state. */
int paml_xla_instance_run(struct paml_xla_instance *instance, struct paml_run *run,
                          struct paml_error *err);

#endif
