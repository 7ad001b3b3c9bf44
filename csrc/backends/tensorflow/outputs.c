#include "outputs.h"

#include <stdlib.h>
#include <string.h>

#include "dtypes.h"
#include "string_tensor.h"

struct output {
    TF_Tensor *tensor;
    int64_t shape[];
};

/* Thread: any. GIL: any. Locks: none. */
static void
output_release(void *owner)
{
    struct output *output = owner;

    tf.DeleteTensor(output->tensor);
    free(output);
}

static int
no_memory(const char *name, struct paml_error *err)
{
    return paml_fail(err, PAML_ERR_MEMORY, "no memory for output '%.200s'", name);
}

/* Copies the strings: their bytes lie in one piece then, and mostly they are short. */
static int
copy_strings(const TF_Tensor *tensor, const DLTensor *shape, struct paml_value *value)
{
    const TF_TString *from = tf.TensorData(tensor);
    size_t count = (size_t)paml_tensor_elements(shape), bytes = 0, size;
    struct paml_string *to;
    char *room;

    for (size_t i = 0; i < count; i++) {
        bytes += tf.StringGetSize(&from[i]);
    }
    if (paml_strings_new(value, PAML_CODE_BYTES, shape->ndim, shape->shape, bytes,
                         &room) < 0) {
        return -1;
    }
    to = value->tensor.data;
    for (size_t i = 0; i < count; i++) {
        size = tf.StringGetSize(&from[i]);
        to[i] = (struct paml_string){room, size};
        if (size > 0) {
            memcpy(room, tf.StringGetDataPointer(&from[i]), size);
        }
        room += size;
    }
    return 0;
}

int
paml_tf_output(TF_Tensor *tensor, const char *name, struct paml_value *value,
               struct paml_error *err)
{
    int64_t few[PAML_MAX_RANK];
    int ndim = tf.NumDims(tensor), type = tf.TensorType(tensor), status;
    DLTensor shape = {.device = {kDLCPU, 0},
                      .ndim = ndim,
                      .dtype = paml_tf_dtype_of(type),
                      .shape = few};
    struct output *output;
    TF_Tensor *moved;

    if (ndim > PAML_MAX_RANK || shape.dtype.bits == 0) {
        tf.DeleteTensor(tensor);
        return paml_fail(err, PAML_ERR_BACKEND,
                         "output '%.200s' is a %s of %d dimensions, which can't be "
                         "handed over",
                         name, paml_tf_type_name(type), ndim);
    }
    for (int i = 0; i < ndim; i++) {
        few[i] = tf.Dim(tensor, i);
    }
    if (type == PAML_TF_STRING) {
        status = copy_strings(tensor, &shape, value);
        tf.DeleteTensor(tensor);
        return status < 0 ? no_memory(name, err) : PAML_OK;
    }
    moved = tf.TensorMaybeMove(tensor);
    if (moved == NULL) {
        status = paml_tensor_new(value, shape.dtype, ndim, few);
        if (status == 0 && tf.TensorByteSize(tensor) > 0) {
            memcpy(value->tensor.data, tf.TensorData(tensor),
                   tf.TensorByteSize(tensor));
        }
        tf.DeleteTensor(tensor);
        return status < 0 ? no_memory(name, err) : PAML_OK;
    }
    output = malloc(sizeof(*output) + (size_t)ndim * sizeof(int64_t));
    if (output == NULL) {
        tf.DeleteTensor(moved);
        return no_memory(name, err);
    }
    output->tensor = moved;
    if (ndim > 0) {
        memcpy(output->shape, few, (size_t)ndim * sizeof(int64_t));
    }
    value->kind = PAML_TENSOR;
    value->count = 0;
    value->tensor = shape;
    value->tensor.shape = output->shape;
    value->tensor.data = tf.TensorData(moved);
    value->owner = output;
    value->release = output_release;
    return PAML_OK;
}
