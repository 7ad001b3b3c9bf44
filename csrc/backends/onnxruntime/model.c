#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "status.h"
#include "types.h"

/* Where a port is described. */
typedef OrtStatus *(*type_getter)(const OrtSession *, size_t, OrtTypeInfo **);
typedef OrtStatus *(*name_getter)(const OrtSession *, size_t, OrtAllocator *, char **);

static int
no_memory(const struct ort_program *program, struct paml_error *err)
{
    return paml_fail(err, PAML_ERR_MEMORY, "%s: no memory for its description",
                     program->path);
}

/* The names of symbolic sizes; without memory for them none is known. */
static OrtStatus *
read_symbols(const OrtTensorInfo *tensor, size_t ndim, struct ort_port *port)
{
    const char **names = calloc(ndim, sizeof(char *));
    OrtStatus *status = NULL;

    port->symbols = calloc(ndim, sizeof(char *));
    if (names != NULL && port->symbols != NULL) {
        status = ort.GetSymbolicDimensions(tensor, names, ndim);
        for (size_t i = 0; i < ndim && status == NULL; i++) {
            if (names[i] != NULL && names[i][0] != '\0') {
                port->symbols[i] = strdup(names[i]);
            }
        }
    }
    free(names);
    return status;
}

/* Element type, rank and shape of a tensor. */
static OrtStatus *
read_tensor(const OrtTypeInfo *info, struct ort_port *port)
{
    const OrtTensorInfo *tensor = NULL; /* the info's */
    size_t ndim = 0;
    OrtStatus *status = ort.CastTypeInfoToTensorInfo(info, &tensor);

    if (status == NULL && tensor != NULL) {
        status = ort.GetTensorElementType(tensor, &port->type);
        if (status == NULL) {
            status = ort.GetDimensionsCount(tensor, &ndim);
        }
        port->ndim = (int32_t)ndim;
        port->shape = calloc(ndim + 1, sizeof(int64_t));
        if (status == NULL && port->shape != NULL) {
            status = ort.GetDimensions(tensor, port->shape, ndim);
        }
    }
    for (size_t i = 0; port->shape != NULL && i < ndim; i++) {
        port->shape[i] = port->shape[i] < 0 ? -1 : port->shape[i];
    }
    if (status == NULL && tensor != NULL && ndim > 0) {
        status = read_symbols(tensor, ndim, port);
    }
    port->dtype = ort_dtype(port->type);
    return status;
}

static OrtStatus *
read_type(const OrtTypeInfo *info, struct ort_port *port)
{
    OrtStatus *status = ort.GetOnnxTypeFromTypeInfo(info, &port->kind);

    if (status == NULL && port->kind == ORT_KIND_OPTIONAL) {
        const OrtOptionalInfo *optional = NULL; /* the info's */
        OrtTypeInfo *held = NULL;

        port->optional = 1;
        status = ort.CastTypeInfoToOptionalTypeInfo(info, &optional);
        if (status == NULL && optional != NULL) {
            status = ort.GetOptionalContainedTypeInfo(optional, &held);
        }
        if (status == NULL && held != NULL) {
            status = ort.GetOnnxTypeFromTypeInfo(held, &port->kind);
        }
        if (status == NULL && port->kind == ORT_KIND_TENSOR) {
            status = read_tensor(held, port);
        }
        if (held != NULL) {
            ort.ReleaseTypeInfo(held);
        }
        return status;
    }
    if (status == NULL && port->kind == ORT_KIND_TENSOR) {
        status = read_tensor(info, port);
    }
    return status;
}

static int
read_port(const struct ort_program *program, type_getter get_type, name_getter get_name,
          size_t index, struct ort_port *port, struct paml_error *err)
{
    OrtTypeInfo *info = NULL;
    char *name = NULL;
    OrtStatus *status = get_name(program->session, index, ort.allocator, &name);

    if (name != NULL) {
        port->name = strdup(name);
        ort_ignore(ort.AllocatorFree(ort.allocator, name));
    }
    if (status == NULL) {
        status = get_type(program->session, index, &info);
    }
    if (status == NULL) {
        status = read_type(info, port);
    }
    if (info != NULL) {
        ort.ReleaseTypeInfo(info);
    }
    if (status != NULL) {
        return ort_fail(status, PAML_ERR_LOAD, err);
    }
    if (port->name == NULL || (port->kind == ORT_KIND_TENSOR && port->shape == NULL)) {
        return no_memory(program, err);
    }
    return PAML_OK;
}

/* What can't be handed over is refused at load, not in a run. */
static int
check_port(const struct ort_program *program, const struct ort_port *port,
           const char *what, struct paml_error *err)
{
    static const char *const kinds[] = {
        "an unknown type", "a tensor",        "a sequence", "a map",
        "opaque",          "a sparse tensor", "an optional"};
    int is_input = strcmp(what, "input") == 0;

    if (port->kind == ORT_KIND_TENSOR && port->dtype.bits == 0) {
        return paml_fail(
            err, PAML_ERR_LOAD,
            "%s: %s '%s' is a %s; numbers of whole bytes, bools and strings "
            "are served",
            program->path, what, port->name, ort_type_name(port->type));
    }
    if (port->kind == ORT_KIND_TENSOR && port->ndim > PAML_MAX_RANK) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "%s: %s '%s' has %d dimensions, at most %d are served",
                         program->path, what, port->name, port->ndim, PAML_MAX_RANK);
    }
    if (port->kind == ORT_KIND_TENSOR ||
        (!is_input &&
         (port->kind == ORT_KIND_SEQUENCE || port->kind == ORT_KIND_MAP))) {
        return PAML_OK;
    }
    return paml_fail(
        err, PAML_ERR_LOAD, "%s: %s '%s' is %s; %s are served", program->path, what,
        port->name,
        kinds[port->kind >= 0 && port->kind <= ORT_KIND_OPTIONAL ? port->kind : 0],
        is_input ? "tensors" : "tensors, sequences and maps");
}

static void
describe_port(const struct ort_port *port, int has_default, int is_input,
              struct paml_spec *spec)
{
    spec->name = port->name;
    spec->ndim = -1;
    spec->batch_axis = -1;
    spec->optional = (uint32_t)has_default;
    if (port->kind != ORT_KIND_TENSOR) {
        spec->type = port->kind == ORT_KIND_MAP ? "map" : "sequence";
        spec->kinds = PAML_KIND_BIT(port->kind == ORT_KIND_MAP ? PAML_DICT : PAML_LIST);
    } else {
        spec->type = ort_type_name(port->type);
        spec->dtype = port->dtype;
        spec->kinds = PAML_KIND_BIT(PAML_TENSOR);
        if (port->ndim > 0) {
            spec->ndim = port->ndim;
            spec->shape = port->shape;
        } else if (is_input) {
            spec->kinds |= paml_number_kinds(port->dtype);
        }
        if (is_input && port->type == ORT_STRING) {
            spec->kinds |= PAML_KIND_BIT(PAML_STRING) | PAML_KIND_BIT(PAML_BYTES) |
                           PAML_KIND_BIT(PAML_LIST);
        }
    }
    if (port->optional) {
        spec->kinds |= PAML_KIND_BIT(PAML_NONE);
        spec->optional = 1;
    }
}

static void find_places(const struct ort_program *program, struct ort_port *port);

static size_t
count_wanted(const struct ort_program *program)
{
    size_t from = 0, count = 0;

    while (ort_settings_find(program->settings, ORT_SET_OUTPUT, &from) != NULL) {
        count++;
    }
    return count;
}

/* Where the output of that name is among the file's `count`. */
static int
find_output(const struct ort_program *program, const char *wanted, size_t count,
            size_t *index, struct paml_error *err)
{
    char names[PAML_MESSAGE_SIZE / 2] = "";
    size_t length = 0;

    for (size_t i = 0; i < count; i++) {
        char *name = NULL;
        OrtStatus *status =
            ort.SessionGetOutputName(program->session, i, ort.allocator, &name);
        bool found;

        if (status != NULL) {
            return ort_fail(status, PAML_ERR_LOAD, err);
        }
        found = strcmp(name, wanted) == 0;
        if (length < sizeof(names)) {
            length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                       i > 0 ? ", " : "", name);
        }
        ort_ignore(ort.AllocatorFree(ort.allocator, name));
        if (found) {
            *index = i;
            return PAML_OK;
        }
    }
    return paml_fail(err, PAML_ERR_LOAD, "%s: options: outputs: no output '%s' (%s)",
                     program->path, wanted, names);
}

/* Required inputs first, then those with an initialiser that may be overridden. */
static int
read_ports(struct ort_program *program, struct paml_error *err)
{
    size_t n_inputs = 0, n_defaults = 0, n_outputs = 0, at = 0, from = 0, most;
    size_t n_wanted = count_wanted(program);
    const struct ort_setting *wanted =
        ort_settings_find(program->settings, ORT_SET_OUTPUT, &from);
    OrtStatus *status = ort.SessionGetInputCount(program->session, &n_inputs);
    int code = PAML_OK;

    if (status == NULL) {
        status =
            ort.SessionGetOverridableInitializerCount(program->session, &n_defaults);
    }
    if (status == NULL) {
        status = ort.SessionGetOutputCount(program->session, &n_outputs);
    }
    if (status != NULL) {
        return ort_fail(status, PAML_ERR_LOAD, err);
    }
    program->inputs = calloc(n_inputs + n_defaults + 1, sizeof(*program->inputs));
    most = n_wanted > n_outputs ? n_wanted : n_outputs;
    program->outputs = calloc(most + 1, sizeof(*program->outputs));
    program->output_names = calloc(most + 1, sizeof(char *));
    program->specs = calloc(n_inputs + n_defaults + most + 1, sizeof(*program->specs));
    if (program->inputs == NULL || program->outputs == NULL ||
        program->output_names == NULL || program->specs == NULL) {
        return no_memory(program, err);
    }
    program->n_inputs = (uint32_t)(n_inputs + n_defaults);
    program->n_outputs = (uint32_t)(n_wanted > 0 ? n_wanted : n_outputs);
    for (size_t i = 0; i < program->n_inputs && code == PAML_OK; i++, at++) {
        struct ort_port *port = &program->inputs[i];
        int has_default = i >= n_inputs;

        code = has_default
                   ? read_port(program, ort.SessionGetOverridableInitializerTypeInfo,
                               ort.SessionGetOverridableInitializerName, i - n_inputs,
                               port, err)
                   : read_port(program, ort.SessionGetInputTypeInfo,
                               ort.SessionGetInputName, i, port, err);
        if (code == PAML_OK) {
            code = check_port(program, port, "input", err);
        }
        if (code == PAML_OK) {
            describe_port(port, has_default, 1, &program->specs[at]);
        }
    }
    for (size_t i = 0; i < program->n_outputs && code == PAML_OK; i++, at++) {
        struct ort_port *port = &program->outputs[i];
        size_t index = i;

        if (wanted != NULL) {
            code = find_output(program, wanted->name, n_outputs, &index, err);
            wanted = ort_settings_find(program->settings, ORT_SET_OUTPUT, &from);
        }
        if (code == PAML_OK) {
            code = read_port(program, ort.SessionGetOutputTypeInfo,
                             ort.SessionGetOutputName, index, port, err);
        }
        if (code == PAML_OK) {
            code = check_port(program, port, "output", err);
        }
        if (code == PAML_OK) {
            describe_port(port, 0, 0, &program->specs[at]);
            program->output_names[i] = port->name;
            find_places(program, port);
        }
    }
    return code;
}

#define LARGE_BYTES (32 << 20)

/* Whether it has much to share: a large file, or weights in other files. */
static bool
is_large(const char *path)
{
    static const char location[] = "\n\010location"; /* a key of TensorProto's */
    FILE *file = fopen(path, "rb");
    char *content = malloc(LARGE_BYTES);
    size_t size = 0;
    bool large = true;

    if (file != NULL && content != NULL) {
        size = fread(content, 1, LARGE_BYTES, file);
        large = size == LARGE_BYTES ||
                memmem(content, size, location, sizeof(location) - 1) != NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    free(content);
    return large;
}

/* The first input that has an axis of that name. */
static struct ort_place
find_symbol(const struct ort_program *program, const char *symbol)
{
    for (uint32_t i = 0; symbol != NULL && i < program->n_inputs; i++) {
        const struct ort_port *port = &program->inputs[i];

        for (int32_t axis = 0; port->symbols != NULL && axis < port->ndim; axis++) {
            if (port->symbols[axis] != NULL &&
                strcmp(port->symbols[axis], symbol) == 0) {
                return (struct ort_place){(int32_t)i, axis};
            }
        }
    }
    return (struct ort_place){-1, 0};
}

/* Which output's shape is known once the inputs are: those are run into memory of our
   own (outputs.c). */
static void
find_places(const struct ort_program *program, struct ort_port *port)
{
    struct ort_place *places;

    for (uint32_t i = 0; i < program->n_inputs; i++) {
        if (strcmp(port->name, program->inputs[i].name) == 0) {
            return; /* what is given back isn't written, but referred to */
        }
    }
    if (port->kind != ORT_KIND_TENSOR || port->optional || port->type == ORT_STRING ||
        port->ndim == 0 || port->symbols == NULL ||
        (places = calloc((size_t)port->ndim, sizeof(*places))) == NULL) {
        return;
    }
    for (int32_t axis = 0; axis < port->ndim; axis++) {
        places[axis] = find_symbol(program, port->symbols[axis]);
        if (port->shape[axis] < 0 && places[axis].input < 0) {
            free(places);
            return;
        }
    }
    port->places = places;
}

int
ort_program_load(const struct paml_load_spec *spec, void **loaded,
                 struct paml_error *err)
{
    struct ort_program *program;
    int code;

    if (spec->path == NULL) {
        return paml_fail(err, PAML_ERR_LOAD, "the onnxruntime backend needs a file");
    }
    if (spec->entry != NULL && strcmp(spec->entry, "main") != 0) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "%s: has no entry '%s'; an ONNX model has one, 'main'",
                         spec->path, spec->entry);
    }
    program = calloc(1, sizeof(*program));
    if (program == NULL || (program->path = strdup(spec->path)) == NULL) {
        free(program);
        return paml_fail(err, PAML_ERR_MEMORY, "%s: no memory to load it", spec->path);
    }
    atomic_init(&program->taken, false);
    atomic_init(&program->misled, false);
    program->device =
        spec->device.device_type != 0 ? spec->device : (DLDevice){kDLCPU, 0};
    program->threads = spec->threads > 0 ? spec->threads : 1;
    program->shared = program->threads <= 1 && is_large(program->path);
    program->settings = ort_settings_ref(spec->options);
    code = ort_session_new(program, program->device, program->threads,
                           &program->session, err);
    if (code == PAML_OK) {
        code = read_ports(program, err);
    }
    if (code != PAML_OK) {
        ort_program_unload(program);
        return code;
    }
    program->entry = (struct paml_entry){.name = "main",
                                         .n_inputs = program->n_inputs,
                                         .n_outputs = program->n_outputs,
                                         .inputs = program->specs,
                                         .outputs = program->specs + program->n_inputs};
    *loaded = program;
    return PAML_OK;
}

static void
free_ports(struct ort_port *ports, uint32_t count)
{
    for (uint32_t i = 0; ports != NULL && i < count; i++) {
        free(ports[i].name);
        for (int32_t axis = 0; ports[i].symbols != NULL && axis < ports[i].ndim;
             axis++) {
            free(ports[i].symbols[axis]);
        }
        free(ports[i].symbols);
        free(ports[i].places);
        free(ports[i].shape);
    }
    free(ports);
}

void
ort_program_unload(void *loaded)
{
    struct ort_program *program = loaded;

    if (program->session != NULL) {
        ort.ReleaseSession(program->session);
    }
    free_ports(program->inputs, program->n_inputs);
    free_ports(program->outputs, program->n_outputs);
    free(program->specs);
    free(program->output_names);
    free(program->path);
    ort_settings_unref(program->settings);
    free(program);
}

const struct paml_entry *
ort_program_describe(void *program)
{
    return &((struct ort_program *)program)->entry;
}
