/* OrtValues to values. Tensors of numbers are handed on as they are: the value owns the
   OrtValue, which may be released on any thread. */
#include <stdlib.h>
#include <string.h>

#include "instance.h"
#include "status.h"
#include "string_tensor.h"
#include "types.h"

/* Larger ones are better off in the library's arena, whose pages are there already. */
#define MADE_MOST (64 << 10)

/* What a tensor's value owns. */
struct lease {
    OrtValue *value;
    int64_t shape[];
};

struct writing {
    const struct paml_run *run;
    struct paml_outputs *outputs;
    struct paml_error *err;
};

/* Thread: any. GIL: either way. */
static void
lease_release(void *owner)
{
    struct lease *lease = owner;

    ort.ReleaseValue(lease->value);
    free(lease);
}

static int
no_memory(const struct writing *writing)
{
    return paml_fail(writing->err, PAML_ERR_MEMORY, "no memory for the outputs");
}

static int
failed(const struct writing *writing, OrtStatus *status)
{
    return ort_fail(status, PAML_ERR_BACKEND, writing->err);
}

/* An output that is an input given back lies in memory that is only borrowed. */
static bool
is_borrowed(const struct paml_run *run, const void *data, size_t bytes)
{
    for (uint32_t i = 0; i < run->n_inputs; i++) {
        const struct paml_value *value = &run->inputs[i];

        if (value->kind == PAML_TENSOR && !paml_dtype_is_strings(value->tensor.dtype)) {
            const char *from =
                (const char *)value->tensor.data + value->tensor.byte_offset;
            size_t size = paml_dtype_bytes(value->tensor.dtype,
                                           paml_tensor_elements(&value->tensor));
            if ((const char *)data < from + size && from < (const char *)data + bytes) {
                return true;
            }
        }
    }
    return false;
}

static int
put_strings(const struct writing *writing, const OrtValue *value, int32_t ndim,
            const int64_t *shape, struct paml_value *to)
{
    struct paml_string *strings;
    size_t bytes = 0, count, *offsets;
    OrtStatus *status = ort.GetStringTensorDataLength(value, &bytes);
    char *room;

    if (status != NULL) {
        return failed(writing, status);
    }
    if (paml_strings_new(to, PAML_CODE_TEXT, ndim, shape, bytes, &room) < 0) {
        return no_memory(writing);
    }
    count = (size_t)paml_tensor_elements(&to->tensor);
    offsets = malloc((count + 1) * sizeof(*offsets));
    if (offsets == NULL) {
        return no_memory(writing);
    }
    status = count > 0 ? ort.GetStringTensorContent(value, room, bytes, offsets, count)
                       : NULL;
    strings = to->tensor.data;
    for (size_t i = 0; i < count && status == NULL; i++) {
        strings[i].data = room + offsets[i];
        strings[i].size = (i + 1 < count ? offsets[i + 1] : bytes) - offsets[i];
    }
    free(offsets);
    return status == NULL ? PAML_OK : failed(writing, status);
}

/* Takes *value over, and sets it to NULL, if the output owns it from then on. */
static int
put_numbers(const struct writing *writing, OrtValue **value, int type, int32_t ndim,
            struct lease *lease, struct paml_value *to)
{
    DLTensor tensor = {.device = {kDLCPU, 0},
                       .ndim = ndim,
                       .dtype = ort_dtype(type),
                       .shape = lease->shape};
    OrtStatus *status = ort.GetTensorMutableData(*value, &tensor.data);
    size_t bytes = paml_dtype_bytes(tensor.dtype, paml_tensor_elements(&tensor));

    if (status != NULL) {
        return failed(writing, status);
    }
    if (is_borrowed(writing->run, tensor.data, bytes)) {
        return paml_tensor_clone(&tensor, to) < 0 ? no_memory(writing) : PAML_OK;
    }
    lease->value = *value;
    *value = NULL;
    to->kind = PAML_TENSOR;
    to->tensor = tensor;
    to->owner = lease;
    to->release = lease_release;
    return PAML_OK;
}

static int
put_tensor(const struct writing *writing, OrtValue **value)
{
    struct paml_value *to = paml_outputs_append(writing->outputs, 1);
    OrtTensorInfo *info = NULL;
    OrtStatus *status = ort.GetTensorTypeAndShape(*value, &info);
    struct lease *lease = NULL;
    size_t ndim = 0;
    int type = 0, code;

    if (status == NULL) {
        status = ort.GetTensorElementType(info, &type);
    }
    if (status == NULL) {
        status = ort.GetDimensionsCount(info, &ndim);
    }
    if (status == NULL) {
        lease = malloc(sizeof(*lease) + (ndim + 1) * sizeof(int64_t));
    }
    if (lease != NULL) {
        status = ort.GetDimensions(info, lease->shape, ndim);
    }
    if (info != NULL) {
        ort.ReleaseTensorTypeAndShapeInfo(info);
    }
    if (status != NULL) {
        code = failed(writing, status);
    } else if (to == NULL || lease == NULL) {
        code = no_memory(writing);
    } else if (ndim > PAML_MAX_RANK || ort_dtype(type).bits == 0) {
        code = paml_fail(writing->err, PAML_ERR_BACKEND,
                         "an output is a %s of %zu dimensions, which isn't served",
                         ort_type_name(type), ndim);
    } else if (type == ORT_STRING) {
        code = put_strings(writing, *value, (int32_t)ndim, lease->shape, to);
    } else {
        code = put_numbers(writing, value, type, (int32_t)ndim, lease, to);
    }
    if (to == NULL || to->owner != lease) {
        free(lease);
    }
    return code;
}

/* --- maps and sequences --- */

static int put(const struct writing *writing, OrtValue **value);

/* The numbers or strings of a tensor, one by one: keys and values of a map. They are
   read through a structure of their own. */
static int
read_column(const struct writing *writing, const OrtValue *map, int which,
            struct paml_outputs *column)
{
    struct writing inner = {writing->run, column, writing->err};
    OrtValue *tensor = NULL;
    OrtStatus *status = ort.GetValue(map, which, ort.allocator, &tensor);
    int code = status == NULL ? put_tensor(&inner, &tensor) : failed(writing, status);

    if (tensor != NULL) {
        ort.ReleaseValue(tensor);
    }
    return code;
}

/* Element `index` of a dense tensor as a value of its own; -1: memory ran out, -2:
   there is no such kind of value. */
static int
item_of(const DLTensor *tensor, int64_t index, struct paml_value *to)
{
    const char *data = (const char *)tensor->data + tensor->byte_offset;

    switch (tensor->dtype.code << 8 | tensor->dtype.bits) {
    case kDLInt << 8 | 64:
        to->kind = PAML_INT;
        to->integer = ((const int64_t *)data)[index];
        return 0;
    case kDLFloat << 8 | 32:
        to->kind = PAML_FLOAT;
        to->real = ((const float *)data)[index];
        return 0;
    case kDLFloat << 8 | 64:
        to->kind = PAML_FLOAT;
        to->real = ((const double *)data)[index];
        return 0;
    default:
        break;
    }
    if (paml_dtype_is_strings(tensor->dtype)) {
        const struct paml_string *string = (const struct paml_string *)data + index;
        char *copy = malloc(string->size + 1);

        if (copy == NULL) {
            return -1;
        }
        if (string->size > 0) {
            memcpy(copy, string->data, string->size);
        }
        to->kind = PAML_STRING;
        to->string.data = copy;
        to->string.size = string->size;
        to->owner = copy;
        to->release = free;
        return 0;
    }
    return -2;
}

static int
put_map(const struct writing *writing, const OrtValue *map)
{
    struct paml_outputs keys, values;
    struct paml_value *to;
    int64_t count;
    int code, status = 0;

    paml_outputs_init(&keys);
    paml_outputs_init(&values);
    code = read_column(writing, map, 0, &keys);
    if (code == PAML_OK) {
        code = read_column(writing, map, 1, &values);
    }
    if (code == PAML_OK) {
        count = paml_tensor_elements(&keys.values->tensor);
        to = paml_outputs_append(writing->outputs, 1 + 2 * (uint32_t)count);
        if (to == NULL) {
            code = no_memory(writing);
            goto done;
        }
        to->kind = PAML_DICT;
        to->count = (uint32_t)count;
        for (int64_t i = 0; i < count && status == 0; i++) {
            status = item_of(&keys.values->tensor, i, &to[1 + 2 * i]);
            if (status == 0) {
                status = item_of(&values.values->tensor, i, &to[2 + 2 * i]);
            }
        }
        if (status == -1) {
            code = no_memory(writing);
        } else if (status < 0) {
            code = paml_fail(writing->err, PAML_ERR_BACKEND,
                             "an output is a map of other than int64 or strings to "
                             "numbers or strings");
        }
    }
done:
    paml_outputs_clear(&keys);
    paml_outputs_clear(&values);
    return code;
}

static int
put_sequence(const struct writing *writing, const OrtValue *sequence)
{
    struct paml_value *to;
    OrtValue *item;
    size_t count = 0;
    OrtStatus *status = ort.GetValueCount(sequence, &count);
    int code = PAML_OK;

    if (status != NULL) {
        return failed(writing, status);
    }
    to = paml_outputs_append(writing->outputs, 1);
    if (to == NULL) {
        return no_memory(writing);
    }
    to->kind = PAML_LIST;
    to->count = (uint32_t)count;
    for (size_t i = 0; i < count && code == PAML_OK; i++) {
        item = NULL;
        status = ort.GetValue(sequence, (int)i, ort.allocator, &item);
        code = status == NULL ? put(writing, &item) : failed(writing, status);
        if (item != NULL) {
            ort.ReleaseValue(item);
        }
    }
    return code;
}

/* Puts whatever it is, known by the value itself. */
static int
put(const struct writing *writing, OrtValue **value)
{
    int kind = 0;
    OrtStatus *status = ort.GetValueType(*value, &kind);

    if (status != NULL) {
        return failed(writing, status);
    }
    switch (kind) {
    case ORT_KIND_TENSOR:
        return put_tensor(writing, value);
    case ORT_KIND_MAP:
        return put_map(writing, *value);
    case ORT_KIND_SEQUENCE:
        return put_sequence(writing, *value);
    default:
        return paml_fail(writing->err, PAML_ERR_BACKEND,
                         "an output is no tensor, sequence or map");
    }
}

/* An optional output that has nothing is None. */
static int
put_optional(const struct writing *writing, OrtValue **value)
{
    int there = 0;
    OrtStatus *status = ort.HasValue(*value, &there);

    if (status != NULL) {
        return failed(writing, status);
    }
    if (!there) {
        return paml_outputs_append(writing->outputs, 1) != NULL ? PAML_OK
                                                                : no_memory(writing);
    }
    return put(writing, value);
}

/* The shape that the run's inputs give an output; false: one of them is left out. */
static bool
shape_of(const struct ort_port *port, const struct paml_run *run, int64_t *shape)
{
    for (int32_t axis = 0; axis < port->ndim; axis++) {
        const struct ort_place *place = &port->places[axis];
        const struct paml_value *value = &run->inputs[place->input];

        shape[axis] = port->shape[axis];
        if (shape[axis] >= 0) {
            continue;
        }
        if ((uint32_t)place->input >= run->n_inputs || value->kind != PAML_TENSOR ||
            place->axis >= value->tensor.ndim) {
            return false;
        }
        shape[axis] = value->tensor.shape[place->axis];
    }
    return true;
}

/* Thread: worker. GIL: not held. Locks: none. */
void
ort_outputs_make(struct ort_instance *instance, const struct paml_run *run)
{
    const struct ort_program *program = instance->program;
    int64_t shape[PAML_MAX_RANK], elements;
    size_t bytes;

    for (uint32_t i = 0; i < program->n_outputs; i++) {
        const struct ort_port *port = &program->outputs[i];
        struct paml_value *made = &instance->made[i];
        OrtStatus *status;

        if (port->places == NULL || !shape_of(port, run, shape)) {
            continue;
        }
        elements = 1;
        for (int32_t axis = 0; axis < port->ndim && elements <= MADE_MOST; axis++) {
            elements =
                shape[axis] <= MADE_MOST ? elements * shape[axis] : MADE_MOST + 1;
        }
        bytes = elements <= MADE_MOST ? paml_dtype_bytes(port->dtype, elements) : 0;
        if (bytes == 0 || bytes > MADE_MOST ||
            paml_tensor_new(made, port->dtype, port->ndim, shape) < 0) {
            continue; /* the library makes it */
        }
        status = ort.CreateTensorWithDataAsOrtValue(ort.host, made->tensor.data, bytes,
                                                    shape, (size_t)port->ndim,
                                                    port->type, &instance->outputs[i]);
        if (status != NULL) {
            ort_ignore(status);
            paml_value_release(made);
            made->kind = PAML_NONE;
        }
    }
}

/* Thread: worker. GIL: not held. Locks: none. */
void
ort_outputs_release(struct ort_instance *instance)
{
    for (uint32_t i = 0; i < instance->program->n_outputs; i++) {
        if (instance->outputs[i] != NULL) {
            ort.ReleaseValue(instance->outputs[i]);
            instance->outputs[i] = NULL;
        }
        if (instance->made[i].kind != PAML_NONE) {
            paml_value_release(&instance->made[i]);
            instance->made[i].kind = PAML_NONE;
        }
    }
}

/* What was made for it is the output. */
static int
put_made(const struct writing *writing, struct paml_value *made)
{
    struct paml_value *to = paml_outputs_append(writing->outputs, 1);

    if (to == NULL) {
        return no_memory(writing);
    }
    *to = *made;
    made->kind = PAML_NONE;
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: none. */
int
ort_outputs_write(struct ort_instance *instance, const struct paml_run *run,
                  struct paml_error *err)
{
    const struct ort_program *program = instance->program;
    struct writing writing = {run, run->outputs, err};
    struct paml_value *tuple;
    int code = PAML_OK;

    if (program->n_outputs != 1) {
        tuple = paml_outputs_append(run->outputs, 1);
        if (tuple == NULL) {
            return no_memory(&writing);
        }
        tuple->kind = PAML_TUPLE;
        tuple->count = program->n_outputs;
    }
    for (uint32_t i = 0; i < program->n_outputs && code == PAML_OK; i++) {
        const struct ort_port *port = &program->outputs[i];
        OrtValue **value = &instance->outputs[i];

        code = instance->made[i].kind != PAML_NONE
                   ? put_made(&writing, &instance->made[i])
               : port->optional                ? put_optional(&writing, value)
               : port->kind == ORT_KIND_TENSOR ? put_tensor(&writing, value)
                                               : put(&writing, value);
    }
    return code;
}
