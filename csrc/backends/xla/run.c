/* One run: inputs to the device, the program, outputs back.
 *
 * Rows are taken in parts: as many as the largest bucket has, then what is left in the
 * smallest bucket that holds it, padded with zeros. The padding's results are cut off.
 */
#include <stdlib.h>
#include <string.h>

#include "bind.h"
#include "instance.h"

/* The rows of a run that one execution computes. */
struct part {
    uint32_t program; /* which executable */
    int64_t from, rows, bucket;
};

static struct part
next_part(const struct paml_xla_bundle *bundle, int64_t from, int64_t rows)
{
    struct part part = {.from = from, .rows = rows - from, .bucket = rows - from};

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

/* Rows that all parts together compute, padding included. */
static int64_t
rows_computed(const struct paml_xla_bundle *bundle, int64_t rows)
{
    int64_t computed = 0;

    for (int64_t from = 0; from < rows;) {
        struct part part = next_part(bundle, from, rows);
        computed += part.bucket;
        from += part.rows;
    }
    return computed;
}

/* --- inputs --- */

static int
send_input(struct paml_xla_instance *instance, uint32_t i, const struct part *part,
           struct paml_error *err)
{
    const struct paml_xla_array *array = &instance->program->bundle.inputs[i];
    const struct paml_value *leaf = instance->leaves[i];
    const void *data;

    if (leaf->kind == PAML_TENSOR) {
        data = paml_xla_rows(array, &leaf->tensor, part->from, part->rows, part->bucket,
                             &instance->staging[i]);
        if (data == NULL) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for a padded batch");
        }
    } else {
        data = instance->numbers[i];
        if (paml_xla_write_number(array->dtype, leaf, instance->numbers[i], err) !=
            PAML_OK) {
            return err->code;
        }
    }
    return paml_xla_buffer_new(array, data, part->bucket, true, instance->device,
                               &instance->latch, &instance->inputs[i], err);
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
execute(struct paml_xla_instance *instance, const struct part *part,
        struct paml_error *err)
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
    code = paml_xla_report(paml_xla_client()->api,
                           paml_xla_call(PJRT_LOADED_EXECUTE, &execute),
                           PAML_ERR_BACKEND, "XLA", err);
    if (code == PAML_OK) {
        paml_xla_latch_add(&instance->latch, complete);
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
fetch_outputs(struct paml_xla_instance *instance, const struct part *part,
              int64_t before, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    int code = PAML_OK;

    for (uint32_t i = 0; i < bundle->n_outputs && code == PAML_OK; i++) {
        const struct paml_xla_array *array = &bundle->outputs[i];
        char *to = instance->outputs[i].tensor.data;

        if (paml_xla_array_has_batch(array)) {
            to += paml_xla_array_bytes(array, before);
        }
        code = paml_xla_buffer_fetch(instance->results[bundle->n_state + i], array,
                                     part->bucket, to, &instance->latch, err);
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

/* Runs a part; `before` rows of outputs are those of parts before it. */
static int
run_part(struct paml_xla_instance *instance, const struct part *part, int64_t before,
         struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    struct paml_error late;
    bool begun = false;
    int code = PAML_OK, waited;

    for (uint32_t i = 0; i < bundle->n_inputs && code == PAML_OK; i++) {
        if (bundle->inputs[i].kept) {
            code = send_input(instance, i, part, err);
        }
    }
    if (code == PAML_OK) {
        begun = true;
        code = execute(instance, part, err);
    }
    if (code == PAML_OK) {
        take_state(instance);
        code = fetch_outputs(instance, part, before, err);
    }
    drop_buffers(instance);
    /* In any case: the plugin reads the inputs and writes the outputs until then. */
    waited = paml_xla_latch_wait(&instance->latch, &late);
    if (code == PAML_OK && waited != PAML_OK) {
        *err = late;
        code = waited;
    }
    if (code != PAML_OK && begun && bundle->n_state > 0) {
        instance->lost = true;
    }
    return code;
}

/* --- outputs --- */

static void
release_outputs(struct paml_xla_instance *instance)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;

    for (uint32_t i = 0; i < bundle->n_state + bundle->n_outputs; i++) {
        if (instance->outputs[i].release != NULL) {
            instance->outputs[i].release(instance->outputs[i].owner);
        }
        memset(&instance->outputs[i], 0, sizeof(instance->outputs[i]));
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
make_outputs(struct paml_xla_instance *instance, const struct paml_xla_array *arrays,
             uint32_t count, int64_t rows, struct paml_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        if (paml_xla_output_new(&arrays[i], rows, &instance->outputs[i]) < 0) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for the outputs");
        }
    }
    return PAML_OK;
}

static int
give_outputs(struct paml_xla_instance *instance, int64_t rows,
             struct paml_outputs *outputs, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;

    for (uint32_t i = 0; i < bundle->n_outputs; i++) {
        if (paml_xla_array_has_batch(&bundle->outputs[i])) {
            instance->outputs[i].tensor.shape[0] = rows;
        }
    }
    if (give(bundle->output_tree, bundle->n_output_nodes, instance->outputs, outputs) <
        0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the outputs");
    }
    return PAML_OK;
}

static int
run_program(struct paml_xla_instance *instance, struct paml_run *run,
            struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    int64_t rows, before = 0;
    int code;

    code = paml_xla_bind(bundle, run, instance->leaves, &rows, err);
    if (code == PAML_OK) {
        code = make_outputs(instance, bundle->outputs, bundle->n_outputs,
                            rows_computed(bundle, rows), err);
    }
    for (int64_t from = 0; from < rows && code == PAML_OK;) {
        struct part part = next_part(bundle, from, rows);

        code = run_part(instance, &part, before, err);
        before += part.bucket;
        from += part.rows;
    }
    return code == PAML_OK ? give_outputs(instance, rows, run->outputs, err) : code;
}

static int
read_state(struct paml_xla_instance *instance, struct paml_run *run,
           struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &instance->program->bundle;
    struct paml_error late;
    int code, waited;

    code = make_outputs(instance, bundle->state, bundle->n_state, 0, err);
    for (uint32_t i = 0; i < bundle->n_state && code == PAML_OK; i++) {
        code = paml_xla_buffer_fetch(instance->state[i], &bundle->state[i], 0,
                                     instance->outputs[i].tensor.data, &instance->latch,
                                     err);
    }
    waited = paml_xla_latch_wait(&instance->latch, &late);
    if (code == PAML_OK && waited != PAML_OK) {
        *err = late;
        code = waited;
    }
    if (code == PAML_OK && give(bundle->state_tree, bundle->n_state_nodes,
                                instance->outputs, run->outputs) < 0) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the state");
    }
    return code;
}

/* Thread: worker. GIL: not held. Locks: the latch's. */
int
paml_xla_instance_run(struct paml_xla_instance *instance, struct paml_run *run,
                      struct paml_error *err)
{
    int code;

    if (instance->lost) {
        return paml_fail(err, PAML_ERR_BACKEND,
                         "the state was lost in a run that failed: load the bundle "
                         "again");
    }
    if (run->n_arguments == 0 && instance->program->bundle.n_state > 0 &&
        instance->program->bundle.n_arguments > 0) {
        code = read_state(instance, run, err);
    } else {
        code = run_program(instance, run, err);
    }
    if (code != PAML_OK) {
        release_outputs(instance);
    }
    return code;
}
