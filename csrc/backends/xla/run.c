/* One run: inputs to the device, the program, outputs back.
 *
 * Rows are taken in parts: as many as the largest bucket has, then what is left in the
 * smallest bucket that holds it, padded with zeros. The padding's results are cut off.
 * All parts are given to the device at once; a run's latch tells when all has ended.
 */
#include <stdlib.h>
#include <string.h>

#include "bind.h"
#include "instance.h"
#include "probe.h"

/* The first of the rows that are left. */
static struct paml_xla_part
next_part(const struct paml_xla_bundle *bundle, int64_t from, int64_t rows,
          int64_t before, int64_t in_all)
{
    struct paml_xla_part part = {.from = from,
                                 .rows = rows - from,
                                 .bucket = rows - from,
                                 .before = before,
                                 .in_all = in_all};

    if (bundle->n_buckets > 0) {
        while (part.program + 1 < bundle->n_buckets &&
               bundle->buckets[part.program] < part.rows) {
            part.program++;
        }
        part.bucket = bundle->buckets[part.program];
        part.rows = part.rows < part.bucket ? part.rows : part.bucket;
    }
    return part;
}

/* How many parts there are, and the rows that all of them compute, padding included. */
static uint32_t
count_parts(const struct paml_xla_bundle *bundle, int64_t rows, int64_t *computed)
{
    uint32_t count = 0;

    *computed = 0;
    for (int64_t from = 0; from < rows; count++) {
        struct paml_xla_part part = next_part(bundle, from, rows, 0, 0);
        *computed += part.bucket;
        from += part.rows;
    }
    return count;
}

/* --- inputs --- */

static int
send_input(struct paml_xla_instance *instance, struct paml_xla_run *run, uint32_t i,
           const struct paml_xla_part *part, struct paml_error *err)
{
    const struct paml_xla_array *array = &instance->program->bundle.inputs[i];
    const struct paml_value *leaf = instance->leaves[i];
    const void *data;

    if (leaf->kind == PAML_TENSOR) {
        data = paml_xla_rows(array, &leaf->tensor, part, &run->staging[i]);
        if (data == NULL) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for a padded batch");
        }
    } else {
        data = run->numbers[i];
        if (part->before == 0 &&
            paml_xla_write_number(array->dtype, leaf, run->numbers[i], err) !=
                PAML_OK) {
            return err->code;
        }
    }
    return paml_xla_buffer_new(array, data, part->bucket, true, instance->device,
                               &run->latch, &instance->inputs[i], err);
}

/* What the program takes, in its order. Returns how many there are. */
static size_t
list_arguments(const struct paml_xla_instance *instance)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    size_t count = 0;

    for (uint32_t i = 0; i < bundle->n_weights; i++) {
        if (bundle->weights[i].kept) {
            instance->arguments[count++] = instance->weights[i];
        }
    }
    for (uint32_t i = 0; i < bundle->n_state; i++) {
        if (bundle->state[i].kept) {
            instance->arguments[count++] = instance->state[i];
        }
    }
    for (uint32_t i = 0; i < bundle->n_inputs; i++) {
        if (bundle->inputs[i].kept) {
            instance->arguments[count++] = instance->inputs[i];
        }
    }
    return count;
}

/* --- the run --- */

static int
execute(struct paml_xla_instance *instance, struct paml_xla_run *run,
        const struct paml_xla_part *part, struct paml_error *err)
{
    struct pjrt_execute_options options = {.struct_size = sizeof(options)};
    struct pjrt_buffer *const *arguments = instance->arguments;
    struct pjrt_buffer **results = instance->results;
    struct pjrt_event *complete = NULL;
    PJRT_ARGS(loaded_execute, execute);
    int code;

    execute.executable = instance->program->executables[part->program];
    execute.options = &options;
    execute.arguments = &arguments;
    execute.n_devices = 1;
    execute.n_arguments = list_arguments(instance);
    execute.outputs = &results;
    execute.complete = &complete;
    execute.device = instance->device;
    /* Relaxed: it is only counted. */
    atomic_fetch_add_explicit(instance->executing, 1, memory_order_relaxed);
    run->executing++;
    code = paml_xla_report(paml_xla_client()->api,
                           paml_xla_call(PJRT_LOADED_EXECUTE, &execute),
                           PAML_ERR_BACKEND, "XLA", err);
    if (code == PAML_OK) {
        paml_xla_latch_add(&run->latch, complete);
    }
    return code;
}

/* The new state takes the place of the old one, which the program was given for good.
 */
static void
take_state(struct paml_xla_instance *instance)
{
    for (uint32_t i = 0; i < instance->program->bundle.n_state; i++) {
        paml_xla_buffer_destroy(instance->state[i]);
        instance->state[i] = instance->results[i];
        instance->results[i] = NULL;
    }
}

/* Begins to copy the outputs to where the part's rows belong. */
static int
fetch_outputs(struct paml_xla_instance *instance, struct paml_xla_run *run,
              const struct paml_xla_part *part, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    int code = PAML_OK;

    for (uint32_t i = 0; i < bundle->n_outputs && code == PAML_OK; i++) {
        const struct paml_xla_array *array = &bundle->outputs[i];
        char *to = run->outputs[i].tensor.data;

        if (paml_xla_array_has_batch(array)) {
            to += paml_xla_array_bytes(array, part->before);
        }
        code = paml_xla_buffer_fetch(instance->results[bundle->n_state + i], array,
                                     part->bucket, to, &run->latch, err);
    }
    return code;
}

/* Lets go of what a part left on the device; what still runs keeps what it needs. */
static void
drop_buffers(struct paml_xla_instance *instance)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;

    for (uint32_t i = 0; i < bundle->n_inputs; i++) {
        paml_xla_buffer_destroy(instance->inputs[i]);
        instance->inputs[i] = NULL;
    }
    for (uint32_t i = 0; i < bundle->n_state + bundle->n_outputs; i++) {
        paml_xla_buffer_destroy(instance->results[i]);
        instance->results[i] = NULL;
    }
}

/* Gives a part to the device; waits for nothing. */
static int
begin_part(struct paml_xla_instance *instance, struct paml_xla_run *run,
           const struct paml_xla_part *part, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    int code = PAML_OK;

    for (uint32_t i = 0; i < bundle->n_inputs && code == PAML_OK; i++) {
        if (bundle->inputs[i].kept) {
            code = send_input(instance, run, i, part, err);
        }
    }
    if (code == PAML_OK) {
        run->begun = true;
        code = execute(instance, run, part, err);
    }
    if (code == PAML_OK) {
        take_state(instance);
        code = fetch_outputs(instance, run, part, err);
    }
    drop_buffers(instance);
    return code;
}

/* --- outputs --- */

static void
release_outputs(const struct paml_xla_bundle *bundle, struct paml_xla_run *run)
{
    for (uint32_t i = 0; i < bundle->n_state + bundle->n_outputs; i++) {
        if (run->outputs[i].release != NULL) {
            run->outputs[i].release(run->outputs[i].owner);
        }
        memset(&run->outputs[i], 0, sizeof(run->outputs[i]));
    }
}

/* Gives arrays in the structure of a tree; they are left empty. -1: no memory. */
static int
give(const struct paml_xla_node *tree, uint32_t n_nodes, struct paml_value *arrays,
     struct paml_outputs *outputs)
{
    struct paml_value *value;
    uint32_t n_values = n_nodes;

    for (uint32_t i = 0; i < n_nodes; i++) {
        n_values += tree[i].key != NULL;
    }
    value = paml_outputs_append(outputs, n_values);
    if (value == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < n_nodes; i++) {
        if (tree[i].key != NULL) {
            /* A copy: outputs may be looked at when the program is gone. */
            value->string.data = value->owner = strdup(tree[i].key);
            if (value->owner == NULL) {
                return -1;
            }
            value->kind = PAML_STRING;
            value->string.size = strlen(tree[i].key);
            value->release = free;
            value++;
        }
        if (tree[i].kind == PAML_TENSOR) {
            *value = *arrays;
            memset(arrays++, 0, sizeof(*arrays));
        } else {
            value->kind = tree[i].kind;
            value->count = tree[i].count;
        }
        value++;
    }
    return 0;
}

static int
make_outputs(struct paml_xla_run *run, const struct paml_xla_array *arrays,
             uint32_t count, int64_t rows, struct paml_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        if (paml_xla_output_new(&arrays[i], rows, &run->outputs[i]) < 0) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for the outputs");
        }
    }
    return PAML_OK;
}

static int
give_outputs(const struct paml_xla_bundle *bundle, struct paml_xla_run *run,
             struct paml_outputs *outputs, struct paml_error *err)
{
    for (uint32_t i = 0; i < bundle->n_outputs; i++) {
        if (paml_xla_array_has_batch(&bundle->outputs[i])) {
            run->outputs[i].tensor.shape[0] = run->rows;
        }
    }
    if (give(bundle->output_tree, bundle->n_output_nodes, run->outputs, outputs) < 0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the outputs");
    }
    return PAML_OK;
}

/* --- from its beginning to its end --- */

/* Room for a run's outputs and events. */
static int
prepare(const struct paml_xla_bundle *bundle, struct paml_xla_run *run,
        uint32_t n_parts, int64_t computed, struct paml_error *err)
{
    /* At most an event for each input and each output, and one for the execution. */
    const uint32_t n_events = bundle->n_inputs + bundle->n_outputs + 1;

    if (paml_xla_latch_reserve(&run->latch, n_parts * n_events) < 0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the run");
    }
    return make_outputs(run, bundle->outputs, bundle->n_outputs, computed, err);
}

/* A code: nothing was begun. What goes wrong later is for end_run() to tell, since some
   of it is on by then. */
static int
begin_run(struct paml_xla_instance *instance, struct paml_xla_run *run,
          const struct paml_run *its, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    int64_t computed, before = 0;
    uint32_t n_parts;
    int code;

    run->begun = false;
    run->error.code = PAML_OK;
    code = paml_xla_bind(bundle, its, instance->leaves, &run->rows, err);
    if (code != PAML_OK) {
        return code;
    }
    n_parts = count_parts(bundle, run->rows, &computed);
    code = prepare(bundle, run, n_parts, computed, err);
    if (code != PAML_OK) {
        release_outputs(bundle, run);
        return code;
    }
    for (int64_t from = 0; from < run->rows && run->error.code == PAML_OK;) {
        struct paml_xla_part part =
            next_part(bundle, from, run->rows, before, computed);

        begin_part(instance, run, &part, &run->error);
        before += part.bucket;
        from += part.rows;
    }
    return PAML_OK;
}

/* A device that can still do anything has had a failure of the program's; one that
   can't will never again. Nothing is pending on the run's latch. */
static int
judge_failure(const struct paml_xla_instance *instance, struct paml_xla_run *run,
              struct paml_error *err)
{
    struct paml_error why = *err;

    if (err->code != PAML_ERR_BACKEND ||
        paml_xla_device_works(instance->device, &run->latch)) {
        return err->code;
    }
    return paml_fail(err, PAML_ERR_DEVICE, "device xla:%d was lost: %.900s",
                     (int)instance->named.device_id, why.message);
}

/* Waits for the run, also for one that went wrong: the plugin reads the inputs and
   writes the outputs until then. */
static int
end_run(struct paml_xla_instance *instance, struct paml_xla_run *run,
        struct paml_outputs *outputs, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    int code = paml_xla_latch_wait(&run->latch, err);

    atomic_fetch_sub_explicit(instance->executing, run->executing,
                              memory_order_relaxed);
    run->executing = 0;
    if (run->error.code != PAML_OK) {
        *err = run->error;
        code = err->code;
    }
    if (code != PAML_OK && run->begun && bundle->n_state > 0) {
        instance->lost = true;
    }
    if (code == PAML_OK) {
        code = give_outputs(bundle, run, outputs, err);
    }
    if (code != PAML_OK) {
        release_outputs(bundle, run);
        return judge_failure(instance, run, err);
    }
    return PAML_OK;
}

static int
read_state(struct paml_xla_instance *instance, struct paml_xla_run *run,
           struct paml_outputs *outputs, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    struct paml_error late;
    int code, waited;

    if (paml_xla_latch_reserve(&run->latch, bundle->n_state) < 0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the run");
    }
    code = make_outputs(run, bundle->state, bundle->n_state, 0, err);
    for (uint32_t i = 0; i < bundle->n_state && code == PAML_OK; i++) {
        code = paml_xla_buffer_fetch(instance->state[i], &bundle->state[i], 0,
                                     run->outputs[i].tensor.data, &run->latch, err);
    }
    waited = paml_xla_latch_wait(&run->latch, &late);
    if (code == PAML_OK && waited != PAML_OK) {
        *err = late;
        code = waited;
    }
    if (code == PAML_OK &&
        give(bundle->state_tree, bundle->n_state_nodes, run->outputs, outputs) < 0) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the state");
    }
    if (code != PAML_OK) {
        release_outputs(bundle, run);
        return judge_failure(instance, run, err);
    }
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: the latch's. */
int
paml_xla_instance_run(struct paml_xla_instance *instance, struct paml_run *its,
                      struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    struct paml_xla_run *run = &instance->runs[0]; /* none is in flight */
    int code;

    if (instance->lost) {
        return paml_fail(err, PAML_ERR_BACKEND,
                         "the state was lost in a run that failed: load the bundle "
                         "again");
    }
    if (its->n_arguments == 0 && bundle->n_state > 0 && bundle->n_arguments > 0) {
        return read_state(instance, run, its->outputs, err);
    }
    code = begin_run(instance, run, its, err);
    return code == PAML_OK ? end_run(instance, run, its->outputs, err) : code;
}

/* --- in flight --- */

/* Thread: whichever finds out. GIL: not held. Locks: the caller holds the latch's. */
static void
tell_flight(void *argument)
{
    struct paml_flight *flight = argument;

    flight->ready(flight);
}

/* Thread: worker. GIL: not held. Locks: the latch's. */
int
paml_xla_instance_submit(struct paml_xla_instance *instance, struct paml_flight *flight,
                         struct paml_error *err)
{
    struct paml_xla_run *run = &instance->runs[instance->next_run];
    int code = begin_run(instance, run, &flight->run, err);

    if (code == PAML_OK) {
        instance->next_run = (instance->next_run + 1) % instance->n_runs;
        flight->ticket = run;
        paml_xla_latch_tell(&run->latch, tell_flight, flight);
    }
    return code;
}

/* Thread: worker. GIL: not held. Locks: the latch's. */
int
paml_xla_instance_finish(struct paml_xla_instance *instance, struct paml_flight *flight,
                         struct paml_error *err)
{
    return end_run(instance, flight->ticket, flight->run.outputs, err);
}
