#include "string_tensor.h"

/* The element that comes `index`th in C order. */
static const struct paml_string *
element_at(const DLTensor *tensor, int64_t index)
{
    const struct paml_string *elements =
        (const struct paml_string *)((const char *)tensor->data + tensor->byte_offset);

    if (tensor->strides == NULL) {
        return elements + index;
    }
    for (int32_t axis = tensor->ndim - 1; axis >= 0; axis--) {
        elements += index % tensor->shape[axis] * tensor->strides[axis];
        index /= tensor->shape[axis];
    }
    return elements;
}

size_t
paml_strings_bytes(const DLTensor *tensor)
{
    int64_t count = paml_tensor_elements(tensor);
    size_t bytes = 0;

    for (int64_t i = 0; i < count; i++) {
        bytes += element_at(tensor, i)->size;
    }
    return bytes;
}

int
paml_strings_copy(const DLTensor *from, struct paml_value *to)
{
    int64_t count = paml_tensor_elements(from);
    struct paml_string *elements;
    char *room;

    if (paml_strings_new(to, from->dtype.code, from->ndim, from->shape,
                         paml_strings_bytes(from), &room) < 0) {
        return -1;
    }
    elements = to->tensor.data;
    for (int64_t i = 0; i < count; i++) {
        const struct paml_string *string = element_at(from, i);

        elements[i].data = room;
        elements[i].size = string->size;
        if (string->size > 0) {
            memcpy(room, string->data, string->size);
            room += string->size;
        }
    }
    return 0;
}
