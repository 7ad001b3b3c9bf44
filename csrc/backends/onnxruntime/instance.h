/* An instance: what one worker needs to run a session alone. */
#ifndef PAML_ORT_INSTANCE_H
#define PAML_ORT_INSTANCE_H

#include "model.h"

/* One input between runs: kept to be used again. */
struct ort_slot {
    OrtValue *value; /* of this run */
    void *copy;      /* where what isn't dense, or a number, is laid down */
    size_t capacity; /* bytes there */
};

struct ort_instance {
    struct ort_program *program;
    OrtSession *session;
    bool owns_session;
    DLDevice device;
    OrtMemoryInfo *device_memory; /* NULL on the CPU */
    OrtRunOptions *options;
    struct ort_slot *slots; /* one an input of the entry */
    /* Of a run: the inputs that are given, and what comes out. */
    const char **names;
    const OrtValue **inputs;
    OrtValue **outputs;
    struct paml_value *made; /* memory that was made for an output, or PAML_NONE */
};

/* As in backend.h. Thread: the worker's, but for stop. GIL: not held, not taken. */
int ort_instance_open(void *program, DLDevice device, int threads, void **instance,
                      struct paml_error *err);
int ort_instance_run(void *instance, struct paml_run *run, struct paml_error *err);
void ort_instance_close(void *instance);
/* Thread: any. */
void ort_instance_stop(void *instance, int on);

/* Makes the inputs of a run: names, inputs, and how many in *count. Whatever happens,
   the slots' values are to be released by ort_inputs_release(). */
int ort_inputs_make(struct ort_instance *instance, const struct paml_run *run,
                    size_t *count, struct paml_error *err);
void ort_inputs_release(struct ort_instance *instance);

/* Makes memory for the small outputs whose shape the inputs tell. */
void ort_outputs_make(struct ort_instance *instance, const struct paml_run *run);
void ort_outputs_release(struct ort_instance *instance);

/* Writes instance->outputs, whose values move out of it. */
int ort_outputs_write(struct ort_instance *instance, const struct paml_run *run,
                      struct paml_error *err);

#endif
