#include "program.h"

#include <stdlib.h>
#include <string.h>

/* A CompileOptionsProto: one replica, one partition, and an executable that runs on
   whichever device a run names. Without the first two XLA aborts the process. */
static const char compile_options[] = {0x1a, 0x04, 0x20, 0x01, 0x28, 0x01, 0x20, 0x01};

/* --- compiling --- */

/* What the executable gives must be what the manifest says: runs don't check it, and
   sizes that were wrong would be written past. */
static int
check_output(const struct paml_xla_array *array, enum pjrt_type type,
             const int64_t *dims, size_t rank, int64_t rows)
{
    if (array->dtype->type != type || (size_t)array->ndim != rank) {
        return -1;
    }
    for (size_t i = 0; i < rank; i++) {
        int64_t size = array->shape[i] == PAML_XLA_BATCH ? rows : array->shape[i];
        if (dims[i] != size) {
            return -1;
        }
    }
    return 0;
}

static int
check_outputs(const struct paml_xla_bundle *bundle, struct pjrt_executable *executable,
              int64_t rows, struct paml_error *err)
{
    const struct pjrt_api *api = paml_xla_client()->api;
    const char *what = "the outputs of the program";
    const uint32_t n_outputs = bundle->n_state + bundle->n_outputs;
    PJRT_ARGS(executable_num_outputs, count);
    PJRT_ARGS(executable_output_types, types);
    PJRT_ARGS(executable_output_dimensions, dimensions);
    const int64_t *dims;
    int code;

    count.executable = types.executable = dimensions.executable = executable;
    code = paml_xla_report(api, paml_xla_call(PJRT_EXECUTABLE_NUM_OUTPUTS, &count),
                           PAML_ERR_LOAD, what, err);
    if (code == PAML_OK) {
        code = paml_xla_report(
            api, paml_xla_call(PJRT_EXECUTABLE_OUTPUT_ELEMENT_TYPES, &types),
            PAML_ERR_LOAD, what, err);
    }
    if (code == PAML_OK) {
        code = paml_xla_report(
            api, paml_xla_call(PJRT_EXECUTABLE_OUTPUT_DIMENSIONS, &dimensions),
            PAML_ERR_LOAD, what, err);
    }
    if (code != PAML_OK) {
        return code;
    }
    if (count.n_outputs != n_outputs || types.n_types != n_outputs ||
        dimensions.n_outputs != n_outputs) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "the bundle is damaged: its program gives %zu arrays, its "
                         "manifest says %u",
                         count.n_outputs, (unsigned)n_outputs);
    }
    dims = dimensions.dims;
    for (uint32_t i = 0; i < n_outputs; i++) {
        const struct paml_xla_array *array =
            i < bundle->n_state ? &bundle->state[i]
                                : &bundle->outputs[i - bundle->n_state];
        if (check_output(array, types.types[i], dims, dimensions.ranks[i], rows) < 0) {
            return paml_fail(err, PAML_ERR_LOAD,
                             "the bundle is damaged: result %u of its program isn't "
                             "what its manifest says",
                             (unsigned)i);
        }
        dims += dimensions.ranks[i];
    }
    return PAML_OK;
}

static int
compile(struct paml_xla_program *program, uint32_t index, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &program->bundle;
    const struct paml_xla_client *client = paml_xla_client();
    PJRT_ARGS(program, code);
    PJRT_ARGS(client_compile, compile);
    PJRT_ARGS(loaded_get_executable, get);
    PJRT_ARGS(executable_destroy, destroy);
    const unsigned char *text;
    int status;

    status =
        paml_xla_bundle_member(bundle, "programs", index, &text, &code.code_size, err);
    if (status != PAML_OK) {
        return status;
    }
    code.code = (const char *)text;
    code.format = "mlir";
    code.format_size = 4;
    compile.client = client->client;
    compile.program = &code;
    compile.options = compile_options;
    compile.options_size = sizeof(compile_options);
    status = paml_xla_report(client->api, paml_xla_call(PJRT_CLIENT_COMPILE, &compile),
                             PAML_ERR_LOAD, "XLA can't compile the program", err);
    if (status != PAML_OK) {
        return status;
    }
    program->executables[program->n_executables++] = compile.executable;
    get.loaded = compile.executable;
    status =
        paml_xla_report(client->api, paml_xla_call(PJRT_LOADED_GET_EXECUTABLE, &get),
                        PAML_ERR_LOAD, "the compiled program", err);
    if (status != PAML_OK) {
        return status;
    }
    status = check_outputs(bundle, get.executable,
                           bundle->n_buckets > 0 ? bundle->buckets[index] : 0, err);
    destroy.executable = get.executable;
    paml_xla_call(PJRT_EXECUTABLE_DESTROY, &destroy);
    return status;
}

/* --- describing --- */

static void
describe_tree(const struct paml_xla_node *node, bool may_be_number,
              struct paml_spec *spec)
{
    spec->ndim = -1;
    spec->batch_axis = -1;
    spec->kinds = PAML_KIND_BIT(node->kind);
    if (node->kind == PAML_TENSOR) {
        spec->dtype = node->array->dtype->dlpack;
        spec->ndim = node->array->ndim;
        spec->shape = node->array->shape;
        spec->type = node->array->dtype->name;
        spec->batch_axis = paml_xla_array_has_batch(node->array) ? 0 : -1;
        if (may_be_number && node->array->ndim == 0) {
            spec->kinds |= PAML_KIND_BIT(PAML_BOOL) | PAML_KIND_BIT(PAML_INT) |
                           PAML_KIND_BIT(PAML_FLOAT);
        }
    }
}

/* The node after this one and all that is in it. */
static const struct paml_xla_node *
after(const struct paml_xla_node *node)
{
    uint32_t left = 1;

    for (; left > 0; node++) {
        left += node->count - 1;
    }
    return node;
}

static int
describe(struct paml_xla_program *program, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &program->bundle;
    const struct paml_xla_node *node = bundle->output_tree;
    const bool many = node->kind != PAML_TENSOR && node->kind != PAML_NONE;
    struct paml_entry *entry = &program->entry;
    struct paml_spec *spec;

    entry->name = bundle->entry;
    entry->n_inputs = bundle->n_arguments;
    entry->n_outputs = many ? node->count : 1;
    entry->stateful = bundle->n_state > 0 ? PAML_STATE_TRAINED : 0;
    program->specs = spec =
        calloc(entry->n_inputs + entry->n_outputs + 1, sizeof(*spec));
    if (spec == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the signature");
    }
    entry->inputs = spec;
    for (uint32_t i = 0; i < entry->n_inputs; i++, spec++) {
        describe_tree(bundle->arguments[i].tree, true, spec);
        spec->name = bundle->arguments[i].name;
        spec->optional = bundle->n_state > 0; /* without any, the state is given */
    }
    entry->outputs = spec;
    node += many;
    for (uint32_t i = 0; i < entry->n_outputs; i++, spec++) {
        describe_tree(node, false, spec);
        spec->name = node->key;
        node = after(node);
    }
    return PAML_OK;
}

/* --- the program --- */

/* Thread: worker. Locks: none. */
int
paml_xla_program_check(const struct paml_xla_program *program,
                       const struct paml_load_spec *spec, struct paml_error *err)
{
    const struct paml_xla_bundle *bundle = &program->bundle;

    if (spec->entry != NULL && strcmp(spec->entry, bundle->entry) != 0) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "there is no entry '%.200s'; there is '%s'", spec->entry,
                         bundle->entry);
    }
    if (strcmp(bundle->platform, paml_xla_client()->platform) != 0) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "the bundle was exported for %s, the XLA plugin drives %s: "
                         "export.jax(…, platform='%s')",
                         bundle->platform, paml_xla_client()->platform,
                         paml_xla_client()->platform);
    }
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: none. */
int
paml_xla_program_load(const struct paml_load_spec *spec,
                      struct paml_xla_program **result, struct paml_error *err)
{
    struct paml_xla_program *program;
    uint32_t count;
    int code;

    if (spec->path == NULL) {
        return paml_fail(err, PAML_ERR_LOAD, "the xla backend needs a file");
    }
    code = paml_xla_usable(err);
    if (code != PAML_OK) {
        return code;
    }
    program = calloc(1, sizeof(*program));
    if (program == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the program");
    }
    atomic_init(&program->refs, 1);
    code = paml_xla_bundle_open(&program->bundle, spec->path, err);
    if (code == PAML_OK) {
        code = paml_xla_program_check(program, spec, err);
    }
    if (code == PAML_OK) {
        code = describe(program, err);
    }
    count = program->bundle.n_buckets > 0 ? program->bundle.n_buckets : 1;
    program->executables = calloc(count, sizeof(struct pjrt_loaded *));
    if (code == PAML_OK && program->executables == NULL) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the program");
    }
    for (uint32_t i = 0; code == PAML_OK && i < count; i++) {
        code = compile(program, i, err);
    }
    if (code != PAML_OK) {
        paml_xla_program_unref(program);
        return code;
    }
    *result = program;
    return PAML_OK;
}

/* Thread: any. Locks: none. */
void
paml_xla_program_ref(struct paml_xla_program *program)
{
    atomic_fetch_add_explicit(&program->refs, 1, memory_order_relaxed);
}

/* Thread: any. GIL: not held. Locks: none. */
void
paml_xla_program_unref(struct paml_xla_program *program)
{
    struct paml_error ignored;

    /* acq_rel: what other holders did happens before the end. A forked child's copy is
       left alone: the plugin's threads aren't there. */
    if (atomic_fetch_sub_explicit(&program->refs, 1, memory_order_acq_rel) != 1 ||
        paml_xla_usable(&ignored) != PAML_OK) {
        return;
    }
    for (uint32_t i = 0; i < program->n_executables; i++) {
        PJRT_ARGS(executable_destroy, destroy);
        destroy.executable = program->executables[i];
        paml_xla_call(PJRT_LOADED_DESTROY, &destroy);
    }
    free(program->executables);
    free(program->specs);
    paml_xla_bundle_close(&program->bundle);
    free(program);
}
