#include "instance.h"

#include <stdlib.h>
#include <string.h>

#include "status.h"

static bool
same_device(DLDevice a, DLDevice b)
{
    return a.device_type == b.device_type && a.device_id == b.device_id;
}

/* The program's session where that will do, else a new one (model.h says why). */
static int
take_session(struct ort_instance *instance, int threads, struct paml_error *err)
{
    struct ort_program *program = instance->program;

    /* threads == 0: one run of somebody who lends their thread. */
    if (same_device(program->device, instance->device) &&
        (program->shared || threads == 0 ||
         (threads == program->threads &&
          !atomic_exchange_explicit(&program->taken, true, memory_order_relaxed)))) {
        instance->session = program->session;
        return PAML_OK;
    }
    instance->owns_session = true;
    return ort_session_new(program, instance->device, threads, &instance->session, err);
}

static OrtStatus *
make_options(struct ort_instance *instance)
{
    OrtStatus *status = ort.CreateRunOptions(&instance->options);

    if (status == NULL && instance->device.device_type == kDLCUDA) {
        status = ort.CreateMemoryInfo("Cuda", 0, instance->device.device_id, 0,
                                      &instance->device_memory);
    }
    return status;
}

/* Thread: worker. GIL: not held, not taken. (Of all functions here but stop.) */
int
ort_instance_open(void *program, DLDevice device, int threads, void **opened,
                  struct paml_error *err)
{
    struct ort_instance *instance = calloc(1, sizeof(*instance));
    OrtStatus *status;
    int code;

    if (instance == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for an instance");
    }
    instance->program = program;
    instance->device = device;
    instance->slots = calloc(instance->program->n_inputs + 1, sizeof(*instance->slots));
    instance->names = calloc(instance->program->n_inputs + 1, sizeof(char *));
    instance->inputs = calloc(instance->program->n_inputs + 1, sizeof(OrtValue *));
    instance->outputs = calloc(instance->program->n_outputs + 1, sizeof(OrtValue *));
    instance->made = calloc(instance->program->n_outputs + 1, sizeof(*instance->made));
    if (instance->made == NULL || instance->slots == NULL || instance->names == NULL ||
        instance->inputs == NULL || instance->outputs == NULL) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for an instance");
        goto fail;
    }
    code = take_session(instance, threads, err);
    if (code != PAML_OK) {
        goto fail;
    }
    status = make_options(instance);
    if (status != NULL) {
        code = ort_fail(status, PAML_ERR_LOAD, err);
        goto fail;
    }
    *opened = instance;
    return PAML_OK;

fail:
    ort_instance_close(instance);
    return code;
}

void
ort_instance_close(void *opened)
{
    struct ort_instance *instance = opened;

    if (instance->options != NULL) {
        ort.ReleaseRunOptions(instance->options);
    }
    if (instance->owns_session && instance->session != NULL) {
        ort.ReleaseSession(instance->session);
    }
    if (instance->device_memory != NULL) {
        ort.ReleaseMemoryInfo(instance->device_memory);
    }
    for (uint32_t i = 0; instance->slots != NULL && i < instance->program->n_inputs;
         i++) {
        free(instance->slots[i].copy);
    }
    free(instance->slots);
    free(instance->names);
    free(instance->inputs);
    free(instance->outputs);
    free(instance->made);
    free(instance);
}

/* Whether it may have failed for memory of another shape that was made for an output:
   every version says so in words of its own. */
static bool
may_be_misled(const struct ort_instance *instance, OrtStatus *status)
{
    for (uint32_t i = 0; status != NULL && i < instance->program->n_outputs; i++) {
        if (instance->made[i].kind != PAML_NONE) {
            return strstr(ort.GetErrorMessage(status), "shape") != NULL;
        }
    }
    return false;
}

static OrtStatus *
call(struct ort_instance *instance, size_t count)
{
    struct ort_program *program = instance->program;

    return ort.Run(instance->session, instance->options, instance->names,
                   instance->inputs, count, program->output_names, program->n_outputs,
                   instance->outputs);
}

static OrtStatus *
call_with_outputs(struct ort_instance *instance, const struct paml_run *run,
                  size_t count)
{
    struct ort_program *program = instance->program;
    OrtStatus *status;

    if (!atomic_load_explicit(&program->misled, memory_order_relaxed)) {
        ort_outputs_make(instance, run);
    }
    status = call(instance, count);
    if (may_be_misled(instance, status)) {
        /* Once more, without believing the file. */
        ort.ReleaseStatus(status);
        ort_outputs_release(instance);
        status = call(instance, count);
        if (status == NULL) {
            atomic_store_explicit(&program->misled, true, memory_order_relaxed);
        }
    }
    return status;
}

int
ort_instance_run(void *opened, struct paml_run *run, struct paml_error *err)
{
    struct ort_instance *instance = opened;
    OrtStatus *status;
    size_t count = 0;
    int code = ort_inputs_make(instance, run, &count, err);

    if (code == PAML_OK) {
        status = call_with_outputs(instance, run, count);
        code = status == NULL ? ort_outputs_write(instance, run, err)
                              : ort_fail(status, PAML_ERR_BACKEND, err);
    }
    ort_inputs_release(instance);
    ort_outputs_release(instance);
    return code;
}

/* Thread: any. GIL: either way. */
void
ort_instance_stop(void *opened, int on)
{
    struct ort_instance *instance = opened;

    ort_ignore(on ? ort.RunOptionsSetTerminate(instance->options)
                  : ort.RunOptionsUnsetTerminate(instance->options));
}
