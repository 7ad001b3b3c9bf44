#include "strings_in.h"

#include <stdint.h>
#include <stdlib.h>

#include "dtypes.h"

/* Thread: any. GIL: any. Locks: none. */
static void
strings_free(void *data, size_t size, void *argument)
{
    TF_TString *strings = data;

    (void)argument;
    for (size_t i = 0; i < size / sizeof(*strings); i++) {
        tf.StringDealloc(&strings[i]);
    }
    free(data);
}

TF_Tensor *
paml_tf_strings_in(const DLTensor *tensor)
{
    size_t count = (size_t)paml_tensor_elements(tensor), bytes, size;
    const struct paml_string *from;
    TF_TString *strings;
    TF_Tensor *made;
    void *copy = NULL;

    if (__builtin_mul_overflow(count, sizeof(*strings), &bytes)) {
        return NULL;
    }
    size = (bytes + 64) / 64 * 64;
    strings = aligned_alloc(64, size);
    from = (const void *)((const char *)tensor->data + tensor->byte_offset);
    if (strings != NULL && !paml_tensor_is_contiguous(tensor)) {
        copy = malloc(count * sizeof(*from) + 1);
        if (copy == NULL) {
            free(strings);
            return NULL;
        }
        paml_tensor_gather(tensor, copy);
        from = copy;
    }
    if (strings == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        tf.StringInit(&strings[i]);
        tf.StringCopy(&strings[i], from[i].size > 0 ? from[i].data : "", from[i].size);
    }
    free(copy);
    made = tf.NewTensor(PAML_TF_STRING, tensor->shape, tensor->ndim, strings, bytes,
                        strings_free, NULL);
    if (made == NULL) {
        strings_free(strings, bytes, NULL);
    }
    return made;
}
