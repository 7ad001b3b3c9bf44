#include "value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "string_tensor.h"

#define ALIGNMENT 64

/* One allocation: the shape, then the bytes at the next multiple of ALIGNMENT. */
static void
buffer_release(void *owner)
{
    free(owner);
}

int64_t
paml_tensor_elements(const DLTensor *tensor)
{
    int64_t elements = 1;

    for (int32_t i = 0; i < tensor->ndim; i++) {
        elements *= tensor->shape[i];
    }
    return elements;
}

size_t
paml_dtype_bytes(DLDataType dtype, int64_t elements)
{
    return ((size_t)elements * dtype.bits * dtype.lanes + 7) / 8;
}

size_t
paml_tensor_nbytes(const DLTensor *tensor)
{
    size_t bytes = paml_dtype_bytes(tensor->dtype, paml_tensor_elements(tensor));

    return paml_dtype_is_strings(tensor->dtype) ? bytes + paml_strings_bytes(tensor)
                                                : bytes;
}

size_t
paml_value_nbytes(const struct paml_value *value)
{
    switch (value->kind) {
    case PAML_TENSOR:
        return paml_tensor_nbytes(&value->tensor);
    case PAML_STRING:
    case PAML_BYTES:
        return value->string.size;
    default:
        return 0;
    }
}

int
paml_tensor_is_contiguous(const DLTensor *tensor)
{
    int64_t expected = 1;

    if (tensor->strides == NULL) {
        return 1;
    }
    for (int32_t i = tensor->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] == 0) {
            return 1;
        }
        if (tensor->shape[i] != 1 && tensor->strides[i] != expected) {
            return 0;
        }
        expected *= tensor->shape[i];
    }
    return 1;
}

int
paml_tensor_new(struct paml_value *value, DLDataType dtype, int32_t ndim,
                const int64_t *shape)
{
    size_t head =
        ((size_t)ndim * sizeof(int64_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    DLTensor tensor = {
        .device = {kDLCPU, 0}, .ndim = ndim, .dtype = dtype, .shape = (int64_t *)shape};
    size_t bytes = paml_dtype_bytes(dtype, paml_tensor_elements(&tensor));
    int64_t *dims;

    /* aligned_alloc wants a multiple of the alignment, and never zero bytes. */
    dims = aligned_alloc(ALIGNMENT, head + (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    if (dims == NULL) {
        return -1;
    }
    if (ndim > 0) {
        memcpy(dims, shape, (size_t)ndim * sizeof(int64_t));
    }
    tensor.shape = dims;
    tensor.data = (char *)dims + head;
    value->kind = PAML_TENSOR;
    value->count = 0;
    value->tensor = tensor;
    value->owner = dims;
    value->release = buffer_release;
    return 0;
}

/* The usual sizes without a call. */
static inline void
copy_block(char *to, const char *from, size_t size)
{
    switch (size) {
    case 1:
        *to = *from;
        break;
    case 2:
        memcpy(to, from, 2);
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    case 8:
        memcpy(to, from, 8);
        break;
    default:
        memcpy(to, from, size);
    }
}

void
paml_tensor_copy(const DLTensor *from, const DLTensor *to)
{
    struct {
        int64_t size, index, from, to; /* from and to: bytes from one to the next */
    } axes[PAML_MAX_RANK];
    const char *source;
    char *target;
    int64_t item = (int64_t)paml_dtype_bytes(from->dtype, 1);
    int64_t dense = item, block = item;
    int count = 0, outer;

    /* Innermost first; what is dense on both sides becomes one block. */
    for (int32_t axis = from->ndim - 1; axis >= 0; axis--) {
        int64_t size = from->shape[axis];
        int64_t step_from = from->strides != NULL ? from->strides[axis] * item : dense;
        int64_t step_to = to->strides != NULL ? to->strides[axis] * item : dense;

        if (size == 0) {
            return;
        }
        dense *= size;
        if (count == 0 && (size == 1 || (step_from == block && step_to == block))) {
            block *= size;
        } else if (size > 1) {
            axes[count].size = size;
            axes[count].index = 0;
            axes[count].from = step_from;
            axes[count++].to = step_to;
        }
    }
    source = (const char *)from->data + from->byte_offset;
    target = (char *)to->data + to->byte_offset;
    if (count == 0) {
        memcpy(target, source, (size_t)block);
        return;
    }
    /* Blocks along the innermost of the other axes; the rest count up like an
       odometer. */
    do {
        for (int64_t i = 0; i < axes[0].size; i++) {
            copy_block(target + i * axes[0].to, source + i * axes[0].from,
                       (size_t)block);
        }
        for (outer = 1; outer < count; outer++) {
            source += axes[outer].from;
            target += axes[outer].to;
            if (++axes[outer].index < axes[outer].size) {
                break;
            }
            source -= axes[outer].from * axes[outer].size;
            target -= axes[outer].to * axes[outer].size;
            axes[outer].index = 0;
        }
    } while (outer < count);
}

void
paml_tensor_gather(const DLTensor *from, void *to)
{
    DLTensor dense = *from;

    if (paml_tensor_is_contiguous(from)) {
        size_t bytes = paml_dtype_bytes(from->dtype, paml_tensor_elements(from));
        if (bytes > 0) {
            memcpy(to, (const char *)from->data + from->byte_offset, bytes);
        }
        return;
    }
    dense.data = to;
    dense.byte_offset = 0;
    dense.strides = NULL;
    paml_tensor_copy(from, &dense);
}

int
paml_tensor_clone(const DLTensor *from, struct paml_value *to)
{
    if (paml_dtype_is_strings(from->dtype)) {
        return paml_strings_copy(from, to);
    }
    if (paml_tensor_new(to, from->dtype, from->ndim, from->shape) < 0) {
        return -1;
    }
    paml_tensor_gather(from, to->tensor.data);
    return 0;
}

void
paml_value_release(struct paml_value *value)
{
    void (*release)(void *) = value->release;

    value->release = NULL;
    if (release != NULL) {
        release(value->owner);
    }
}

void
paml_outputs_init(struct paml_outputs *outputs)
{
    outputs->values = outputs->first;
    outputs->count = 0;
    outputs->capacity = PAML_INLINE_VALUES;
}

void
paml_outputs_clear(struct paml_outputs *outputs)
{
    for (uint32_t i = 0; i < outputs->count; i++) {
        paml_value_release(&outputs->values[i]);
    }
    if (outputs->values != outputs->first) {
        free(outputs->values);
    }
    paml_outputs_init(outputs);
}

void
paml_outputs_move(struct paml_outputs *from, struct paml_outputs *to)
{
    *to = *from;
    if (from->values == from->first) {
        to->values = to->first;
    }
    paml_outputs_init(from);
}

const char *
paml_kind_name(int kind)
{
    static const char *const names[] = {
        [PAML_NONE] = "None",   [PAML_TENSOR] = "tensor", [PAML_BOOL] = "bool",
        [PAML_INT] = "int",     [PAML_FLOAT] = "float",   [PAML_STRING] = "str",
        [PAML_BYTES] = "bytes", [PAML_TUPLE] = "tuple",   [PAML_LIST] = "list",
        [PAML_DICT] = "dict",   [PAML_OBJECT] = "object",
    };

    if (kind < 0 || (size_t)kind >= sizeof(names) / sizeof(names[0])) {
        return "unknown";
    }
    return names[kind];
}

const char *
paml_dtype_name(DLDataType dtype, char *text, size_t size)
{
    const char *base;

    switch (dtype.code) {
    case kDLInt:
        base = "int";
        break;
    case kDLUInt:
        base = "uint";
        break;
    case kDLFloat:
        base = "float";
        break;
    case kDLBfloat:
        base = "bfloat";
        break;
    case kDLComplex:
        base = "complex";
        break;
    case kDLBool:
        snprintf(text, size, "bool");
        return text;
    case PAML_CODE_TEXT:
        snprintf(text, size, "str");
        return text;
    case PAML_CODE_BYTES:
        snprintf(text, size, "bytes");
        return text;
    case kDLFloat8_e4m3fn:
        snprintf(text, size, "float8_e4m3fn");
        return text;
    case kDLFloat8_e4m3fnuz:
        snprintf(text, size, "float8_e4m3fnuz");
        return text;
    case kDLFloat8_e5m2:
        snprintf(text, size, "float8_e5m2");
        return text;
    case kDLFloat8_e5m2fnuz:
        snprintf(text, size, "float8_e5m2fnuz");
        return text;
    default:
        snprintf(text, size, "dtype(code=%d, bits=%d, lanes=%d)", dtype.code,
                 dtype.bits, dtype.lanes);
        return text;
    }
    if (dtype.lanes == 1) {
        snprintf(text, size, "%s%d", base, dtype.bits);
    } else {
        snprintf(text, size, "%s%dx%d", base, dtype.bits, dtype.lanes);
    }
    return text;
}

const char *
paml_device_name(DLDevice device, char *text, size_t size)
{
    const char *base;

    switch ((int)device.device_type) {
    case kDLCPU:
        snprintf(text, size, "cpu");
        return text;
    case kDLCUDA:
        base = "cuda";
        break;
    case kDLROCM:
        base = "rocm";
        break;
    case kDLMetal:
        base = "mps";
        break;
    case kDLOneAPI:
        base = "xpu";
        break;
    case kDLExtDev:
        base = "privateuseone";
        break;
    case PAML_DEVICE_XLA:
        base = "xla";
        break;
    default:
        snprintf(text, size, "device(type=%d):%d", (int)device.device_type,
                 (int)device.device_id);
        return text;
    }
    snprintf(text, size, "%s:%d", base, (int)device.device_id);
    return text;
}
