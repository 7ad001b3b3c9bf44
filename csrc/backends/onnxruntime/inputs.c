/* Values to OrtValues. Tensors are lent where they lie dense and aligned. */
#include <stdlib.h>
#include <string.h>

#include "instance.h"
#include "numbers.h"
#include "status.h"
#include "types.h"

/* Room for that many bytes in the slot; NULL when memory ran out. */
static void *
slot_room(struct ort_slot *slot, size_t bytes)
{
    if (bytes > slot->capacity || slot->copy == NULL) {
        size_t capacity = (bytes + 64) / 64 * 64;

        free(slot->copy);
        slot->capacity = 0;
        slot->copy = aligned_alloc(64, capacity);
        if (slot->copy != NULL) {
            slot->capacity = capacity;
        }
    }
    return slot->copy;
}

static int
no_room(const struct ort_port *port, struct paml_error *err)
{
    return paml_fail(err, PAML_ERR_MEMORY, "no memory for input '%s'", port->name);
}

/* Whether the elements lie where processors want them. */
static bool
is_aligned(const void *data, DLDataType dtype)
{
    return (uintptr_t)data % paml_dtype_bytes(dtype, 1) == 0;
}

static int
wrap(const OrtMemoryInfo *memory, const struct ort_port *port, void *data, size_t bytes,
     int32_t ndim, const int64_t *shape, OrtValue **value, struct paml_error *err)
{
    OrtStatus *status = ort.CreateTensorWithDataAsOrtValue(
        memory, data, bytes, shape, (size_t)ndim, port->type, value);

    return status == NULL ? PAML_OK : ort_fail(status, PAML_ERR_BACKEND, err);
}

static int
make_strings(const struct ort_port *port, const DLTensor *tensor, struct ort_slot *slot,
             struct paml_error *err)
{
    size_t count = (size_t)paml_tensor_elements(tensor);
    const struct paml_string *strings;
    OrtStatus *status;
    char *room;

    /* Strides: the elements are laid down in order. */
    strings = (const void *)((const char *)tensor->data + tensor->byte_offset);
    if (!paml_tensor_is_contiguous(tensor)) {
        if (slot_room(slot, count * sizeof(*strings)) == NULL) {
            return no_room(port, err);
        }
        paml_tensor_gather(tensor, slot->copy);
        strings = slot->copy;
    }
    status = ort.CreateTensorAsOrtValue(ort.allocator, tensor->shape,
                                        (size_t)tensor->ndim, ORT_STRING, &slot->value);
    for (size_t i = 0; i < count && status == NULL; i++) {
        if (strings[i].size > 0) {
            status = ort.GetResizedStringTensorElementBuffer(slot->value, i,
                                                             strings[i].size, &room);
            if (status == NULL) {
                memcpy(room, strings[i].data, strings[i].size);
            }
        }
    }
    return status == NULL ? PAML_OK : ort_fail(status, PAML_ERR_BACKEND, err);
}

static int
make_tensor(const struct ort_instance *instance, const struct ort_port *port,
            const DLTensor *tensor, struct ort_slot *slot, struct paml_error *err)
{
    size_t bytes = paml_dtype_bytes(tensor->dtype, paml_tensor_elements(tensor));
    const OrtMemoryInfo *memory = ort.host;
    void *data = (char *)tensor->data + tensor->byte_offset;
    char got[64], expected[64];

    /* Python checks this at the call; a warm-up or a third party may not. */
    if (memcmp(&tensor->dtype, &port->dtype, sizeof(port->dtype)) != 0) {
        return paml_fail(err, PAML_ERR_INPUT, "input '%s': expected dtype %s, got %s",
                         port->name,
                         paml_dtype_name(port->dtype, expected, sizeof(expected)),
                         paml_dtype_name(tensor->dtype, got, sizeof(got)));
    }
    if (port->type == ORT_STRING) {
        return make_strings(port, tensor, slot, err);
    }
    if (tensor->device.device_type != kDLCPU) {
        if (instance->device_memory == NULL || !paml_tensor_is_contiguous(tensor)) {
            return paml_fail(err, PAML_ERR_INPUT,
                             "input '%s': expected a tensor in host memory, or a "
                             "contiguous one on the model's device",
                             port->name);
        }
        memory = instance->device_memory;
    } else if (bytes == 0 || !paml_tensor_is_contiguous(tensor) ||
               !is_aligned(data, tensor->dtype)) {
        if (slot_room(slot, bytes) == NULL) {
            return no_room(port, err);
        }
        if (bytes > 0) {
            paml_tensor_gather(tensor, slot->copy);
        }
        data = slot->copy;
    }
    return wrap(memory, port, data, bytes, tensor->ndim, tensor->shape, &slot->value,
                err);
}

static int
make_number(const struct ort_port *port, const struct paml_value *number,
            struct ort_slot *slot, struct paml_error *err)
{
    char text[64];

    if (slot_room(slot, PAML_NUMBER_MOST) == NULL) {
        return no_room(port, err);
    }
    if (paml_number_write(number, port->dtype, slot->copy) < 0) {
        return paml_fail(err, PAML_ERR_INPUT, "input '%s': the %s isn't one of %s",
                         port->name, paml_kind_name((int)number->kind),
                         paml_dtype_name(port->dtype, text, sizeof(text)));
    }
    return wrap(ort.host, port, slot->copy, paml_dtype_bytes(port->dtype, 1), 0, NULL,
                &slot->value, err);
}

/* Thread: worker. GIL: not held. Locks: none. */
int
ort_inputs_make(struct ort_instance *instance, const struct paml_run *run,
                size_t *count, struct paml_error *err)
{
    const struct ort_program *program = instance->program;
    int code = PAML_OK;

    if (run->n_arguments > program->n_inputs) {
        return paml_fail(err, PAML_ERR_INPUT, "the model takes %u inputs, it got %u",
                         program->n_inputs, run->n_arguments);
    }
    for (uint32_t i = 0; i < run->n_inputs && code == PAML_OK; i++) {
        const struct paml_value *value = &run->inputs[i];
        const struct ort_port *port = &program->inputs[i];
        struct ort_slot *slot = &instance->slots[i];

        if (i >= run->n_arguments ||
            (value->kind != PAML_TENSOR && value->kind != PAML_NONE &&
             value->kind != PAML_BOOL && value->kind != PAML_INT &&
             value->kind != PAML_FLOAT)) {
            return paml_fail(err, PAML_ERR_INPUT,
                             "input '%s': expected a tensor, got %s", port->name,
                             paml_kind_name((int)value->kind));
        }
        if (value->kind == PAML_NONE) {
            continue; /* left out */
        }
        code = value->kind == PAML_TENSOR
                   ? make_tensor(instance, port, &value->tensor, slot, err)
                   : make_number(port, value, slot, err);
        instance->names[*count] = port->name;
        instance->inputs[(*count)++] = slot->value;
    }
    return code;
}

void
ort_inputs_release(struct ort_instance *instance)
{
    for (uint32_t i = 0; i < instance->program->n_inputs; i++) {
        if (instance->slots[i].value != NULL) {
            ort.ReleaseValue(instance->slots[i].value);
            instance->slots[i].value = NULL;
        }
    }
}
