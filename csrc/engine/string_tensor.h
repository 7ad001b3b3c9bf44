/* Tensors of strings (value.h says what they are made of).
 *
 * paml_strings_new() is inline: backends use it and link to nothing of the core.
 */
#ifndef PAML_STRING_TENSOR_H
#define PAML_STRING_TENSOR_H

#include <stdlib.h>
#include <string.h>

#include "value.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A new tensor of strings in host memory, with room for `bytes` of their bytes, all in
   one allocation. `code`: PAML_CODE_TEXT or PAML_CODE_BYTES. The elements, C-contiguous
   at tensor.data, are empty strings; the caller points them into *room. Can be dropped
   on any thread. Returns 0, or -1 when memory ran out. */
static inline int
paml_strings_new(struct paml_value *value, uint8_t code, int32_t ndim,
                 const int64_t *shape, size_t bytes, char **room)
{
    size_t elements = 1, size, head = (size_t)ndim * sizeof(int64_t);
    int64_t *dims;

    for (int32_t i = 0; i < ndim; i++) {
        if (__builtin_mul_overflow(elements, (size_t)shape[i], &elements)) {
            return -1;
        }
    }
    if (__builtin_mul_overflow(elements, sizeof(struct paml_string), &size) ||
        __builtin_add_overflow(size, head + 1, &size) ||
        __builtin_add_overflow(size, bytes, &size) ||
        (dims = (int64_t *)malloc(size)) == NULL) {
        return -1;
    }
    if (ndim > 0) {
        memcpy(dims, shape, head);
    }
    memset(value, 0, sizeof(*value));
    value->kind = PAML_TENSOR;
    value->tensor.data = dims + ndim;
    value->tensor.device.device_type = kDLCPU;
    value->tensor.ndim = ndim;
    value->tensor.dtype.code = code;
    value->tensor.dtype.bits = 8 * sizeof(struct paml_string);
    value->tensor.dtype.lanes = 1;
    value->tensor.shape = dims;
    value->owner = dims;
    value->release = free;
    memset(value->tensor.data, 0, elements * sizeof(struct paml_string));
    *room = (char *)value->tensor.data + elements * sizeof(struct paml_string);
    return 0;
}

/* The bytes of all strings together. Any strides. */
size_t paml_strings_bytes(const DLTensor *tensor);

/* A C-contiguous copy that owns the strings' bytes. -1: memory ran out. */
int paml_strings_copy(const DLTensor *from, struct paml_value *to);

#ifdef __cplusplus
}
#endif
#endif
