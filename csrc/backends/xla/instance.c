#include "instance.h"

#include <stdlib.h>

static int
allocate_run(const struct paml_xla_bundle *bundle, struct paml_xla_run *run)
{
    const size_t n_inputs = bundle->n_inputs + 1; /* none is not nothing */
    const size_t n_outputs = bundle->n_state + bundle->n_outputs + 1;

    paml_xla_latch_init(&run->latch);
    run->staging = calloc(n_inputs, sizeof(*run->staging));
    run->numbers = aligned_alloc(PAML_XLA_ALIGNMENT, n_inputs * sizeof(*run->numbers));
    run->outputs = calloc(n_outputs, sizeof(*run->outputs));
    return run->staging != NULL && run->numbers != NULL && run->outputs != NULL ? 0
                                                                                : -1;
}

static void
free_run(const struct paml_xla_bundle *bundle, struct paml_xla_run *run)
{
    for (uint32_t i = 0; run->staging != NULL && i < bundle->n_inputs; i++) {
        free(run->staging[i].data);
    }
    paml_xla_latch_destroy(&run->latch);
    free(run->staging);
    free(run->numbers);
    free(run->outputs);
}

static int
allocate(struct paml_xla_instance *instance)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    const size_t n_inputs = bundle->n_inputs + 1; /* none is not nothing */
    const size_t n_held = bundle->n_weights + bundle->n_state + 1;
    const size_t n_results = bundle->n_state + bundle->n_outputs + 1;
    const uint32_t n_runs = bundle->n_state > 0 ? 1 : PAML_XLA_IN_FLIGHT;

    paml_xla_latch_init(&instance->held);
    instance->weights = calloc(bundle->n_weights + 1, sizeof(struct pjrt_buffer *));
    instance->state = calloc(bundle->n_state + 1, sizeof(struct pjrt_buffer *));
    instance->leaves = calloc(n_inputs, sizeof(const struct paml_value *));
    instance->inputs = calloc(n_inputs, sizeof(struct pjrt_buffer *));
    instance->arguments = calloc(n_inputs + n_held, sizeof(struct pjrt_buffer *));
    instance->results = calloc(n_results, sizeof(struct pjrt_buffer *));
    instance->runs = calloc(n_runs, sizeof(*instance->runs));
    if (paml_xla_latch_reserve(&instance->held, (uint32_t)n_held) < 0 ||
        instance->weights == NULL || instance->state == NULL ||
        instance->leaves == NULL || instance->inputs == NULL ||
        instance->arguments == NULL || instance->results == NULL ||
        instance->runs == NULL) {
        return -1;
    }
    while (instance->n_runs < n_runs) {
        if (allocate_run(bundle, &instance->runs[instance->n_runs++]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The arrays of one folder of the bundle to the device. `lasts`: they may be used where
   they lie, for as long as the bundle is open. */
static int
upload(struct paml_xla_instance *instance, const struct paml_xla_arrays *own,
       const char *folder, const struct paml_xla_array *arrays, uint32_t count,
       bool lasts, struct pjrt_buffer **buffers, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    const void *data;
    int code;

    for (uint32_t i = 0; i < count; i++) {
        code = paml_xla_source_array(own, bundle, folder, i, &arrays[i], &data, err);
        if (code != PAML_OK) {
            return code;
        }
        code = paml_xla_buffer_new(&arrays[i], data, 0, lasts, instance->device,
                                   &instance->held, &buffers[i], err);
        if (code != PAML_OK) {
            return code;
        }
    }
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: none. */
int
paml_xla_instance_open(const struct paml_xla_program *program,
                       const struct paml_xla_source *source, DLDevice device,
                       struct paml_xla_instance **result, struct paml_error *err)
{
    const struct paml_xla_arrays none = {NULL, 0};
    const struct paml_xla_bundle *bundle = &program->bundle;
    struct paml_xla_instance *instance;
    struct pjrt_device *found;
    int code;

    code = paml_xla_find_device(device, &found, err);
    if (code != PAML_OK) {
        return code;
    }
    instance = calloc(1, sizeof(*instance));
    if (instance == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the instance");
    }
    instance->program = program;
    instance->named = device;
    instance->device = found;
    instance->executing = &paml_xla_client()->executing[device.device_id];
    if (allocate(instance) < 0) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the instance");
    }
    if (code == PAML_OK) {
        code = upload(instance, source != NULL ? &source->weights : &none, "weights",
                      bundle->weights, bundle->n_weights, true, instance->weights, err);
    }
    if (code == PAML_OK) {
        code = upload(instance, source != NULL ? &source->state : &none, "state",
                      bundle->state, bundle->n_state, false, instance->state, err);
    }
    if (code != PAML_OK) {
        paml_xla_instance_close(instance);
        return code;
    }
    *result = instance;
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: none. */
void
paml_xla_instance_close(struct paml_xla_instance *instance)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    struct paml_error ignored;

    for (uint32_t i = 0; instance->weights != NULL && i < bundle->n_weights; i++) {
        paml_xla_buffer_destroy(instance->weights[i]);
    }
    for (uint32_t i = 0; instance->state != NULL && i < bundle->n_state; i++) {
        paml_xla_buffer_destroy(instance->state[i]);
    }
    /* The plugin may use the bundle's memory until it says that it is done. */
    paml_xla_latch_wait(&instance->held, &ignored);
    for (uint32_t i = 0; i < instance->n_runs; i++) {
        free_run(bundle, &instance->runs[i]);
    }
    paml_xla_latch_destroy(&instance->held);
    free(instance->weights);
    free(instance->state);
    free(instance->leaves);
    free(instance->inputs);
    free(instance->arguments);
    free(instance->results);
    free(instance->runs);
    free(instance);
}
