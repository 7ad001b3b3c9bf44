#include "inputs.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dtypes.h"
#include "numbers.h"
#include "strings_in.h"

/* What TensorFlow's own allocator gives, and what it takes without copying. */
#define ALIGNMENT 64

/* How long TensorFlow may take to give back what was lent. */
#define PATIENCE_NS ((int64_t)5000000000)

/* Memory in TensorFlow's hands. One reference is the instance's, another TensorFlow's
   while it has the memory. */
struct paml_tf_block {
    atomic_uint refs;
    void *memory; /* owned; NULL: the caller's is lent */
    size_t capacity;
};

static struct paml_tf_block *
block_new(void)
{
    struct paml_tf_block *block = calloc(1, sizeof(*block));

    if (block != NULL) {
        atomic_init(&block->refs, 1);
    }
    return block;
}

/* Thread: any. Locks: none. */
static void
block_unref(struct paml_tf_block *block)
{
    /* acq_rel: whoever was in the memory before us is out of it. */
    if (atomic_fetch_sub_explicit(&block->refs, 1, memory_order_acq_rel) == 1) {
        free(block->memory);
        free(block);
    }
}

/* TensorFlow's deallocator. Thread: any. GIL: any. Locks: none. */
static void
give_back(void *data, size_t size, void *argument)
{
    (void)data;
    (void)size;
    block_unref(argument);
}

/* Whether TensorFlow has given it back. */
static bool
block_is_free(const struct paml_tf_block *block)
{
    /* acquire: pairs with the release in block_unref. */
    return atomic_load_explicit(&block->refs, memory_order_acquire) == 1;
}

/* A buffer with room for so many bytes. NULL: memory ran out. */
static struct paml_tf_block *
buffer_for(struct paml_tf_input *input, size_t size)
{
    struct paml_tf_block *block = input->buffer;
    size_t capacity;

    if (block == NULL && (block = input->buffer = block_new()) == NULL) {
        return NULL;
    }
    if (block->memory == NULL || block->capacity < size) {
        /* Half as much again, so that inputs that grow row by row settle soon. */
        capacity = block->capacity + block->capacity / 2;
        capacity = size > capacity ? size : capacity;
        capacity = (capacity + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
        free(block->memory);
        block->capacity = 0;
        block->memory = aligned_alloc(ALIGNMENT, capacity);
        if (block->memory == NULL) {
            return NULL;
        }
        block->capacity = capacity;
    }
    return block;
}

static TF_Tensor *
no_memory(const struct paml_tf_input *input, struct paml_error *err)
{
    paml_fail(err, PAML_ERR_MEMORY, "no memory for input '%.200s'", input->spec->name);
    return NULL;
}

/* The tensor over a block's memory, or over what is lent. */
static TF_Tensor *
tensor_over(struct paml_tf_input *input, struct paml_tf_block *block, void *data,
            int32_t ndim, const int64_t *shape, size_t size, struct paml_error *err)
{
    TF_Tensor *tensor;

    atomic_fetch_add_explicit(&block->refs, 1, memory_order_relaxed);
    tensor = tf.NewTensor(input->type, shape, ndim, data, size, give_back, block);
    if (tensor == NULL) {
        block_unref(block);
        return no_memory(input, err);
    }
    input->block = block;
    return tensor;
}

static TF_Tensor *
new_from_tensor(struct paml_tf_input *input, const DLTensor *tensor,
                struct paml_error *err)
{
    size_t size = paml_dtype_bytes(tensor->dtype, paml_tensor_elements(tensor));
    char *data = (char *)tensor->data + tensor->byte_offset;
    struct paml_tf_block *block;
    char text[64], other[64];

    if (tensor->device.device_type != kDLCPU &&
        tensor->device.device_type != kDLCUDAHost) {
        paml_fail(err, PAML_ERR_INPUT,
                  "input '%.200s' is on %s: TensorFlow takes inputs from host memory",
                  input->spec->name,
                  paml_device_name(tensor->device, text, sizeof(text)));
        return NULL;
    }
    if (paml_tf_type_of(tensor->dtype) != input->type) {
        paml_fail(err, PAML_ERR_INPUT, "input '%.200s': expected dtype %s, got %s",
                  input->spec->name,
                  paml_dtype_name(input->spec->dtype, other, sizeof(other)),
                  paml_dtype_name(tensor->dtype, text, sizeof(text)));
        return NULL;
    }
    if (input->type == PAML_TF_STRING) {
        TF_Tensor *strings = paml_tf_strings_in(tensor);
        return strings != NULL ? strings : no_memory(input, err);
    }
    if (input->may_lend && size > 0 && (uintptr_t)data % ALIGNMENT == 0 &&
        paml_tensor_is_contiguous(tensor)) {
        if (input->loan == NULL && (input->loan = block_new()) == NULL) {
            return no_memory(input, err);
        }
        return tensor_over(input, input->loan, data, tensor->ndim, tensor->shape, size,
                           err);
    }
    block = buffer_for(input, size);
    if (block == NULL) {
        return no_memory(input, err);
    }
    paml_tensor_gather(tensor, block->memory);
    return tensor_over(input, block, block->memory, tensor->ndim, tensor->shape, size,
                       err);
}

/* Waits until it is free, for a while: a session's first run of a function may end
   before the last of TensorFlow's threads has let go of its arguments (10 ms were seen;
   later runs do all in the caller's thread). */
static bool
wait_for_block(const struct paml_tf_block *block)
{
    struct timespec pause = {0, 20000};
    int64_t waited_ns = 0;

    while (!block_is_free(block)) {
        if (waited_ns >= PATIENCE_NS) {
            return false;
        }
        nanosleep(&pause, NULL);
        waited_ns += pause.tv_nsec;
        pause.tv_nsec += pause.tv_nsec / 4;
    }
    return true;
}

TF_Tensor *
paml_tf_input_new(struct paml_tf_input *input, const struct paml_value *value,
                  struct paml_error *err)
{
    struct paml_tf_block *block;
    struct paml_string string;
    DLTensor scalar = {.device = {kDLCPU, 0}, .ndim = 0};

    input->block = NULL;
    switch (value->kind) {
    case PAML_TENSOR:
        return new_from_tensor(input, &value->tensor, err);
    case PAML_STRING:
    case PAML_BYTES:
        string = (struct paml_string){value->string.data, value->string.size};
        scalar.data = &string;
        scalar.dtype = paml_tf_dtype_of(PAML_TF_STRING);
        return new_from_tensor(input, &scalar, err);
    case PAML_BOOL:
    case PAML_INT:
    case PAML_FLOAT:
        block = buffer_for(input, PAML_NUMBER_MOST);
        if (block == NULL) {
            return no_memory(input, err);
        }
        if (paml_number_write(value, paml_tf_dtype_of(input->type), block->memory) <
            0) {
            paml_fail(err, PAML_ERR_INPUT,
                      "input '%.200s': the number is none that a %s holds",
                      input->spec->name, input->spec->type);
            return NULL;
        }
        return tensor_over(input, block, block->memory, 0, NULL,
                           paml_dtype_bytes(paml_tf_dtype_of(input->type), 1), err);
    default:
        paml_fail(err, PAML_ERR_INPUT,
                  "input '%.200s': expected a tensor, got a value that is a %s",
                  input->spec->name, paml_kind_name((int)value->kind));
        return NULL;
    }
}

int
paml_tf_input_end(struct paml_tf_input *input, struct paml_error *err)
{
    struct paml_tf_block *block = input->block;

    input->block = NULL;
    if (block == NULL || block_is_free(block)) {
        return PAML_OK;
    }
    if (block == input->buffer) {
        /* TensorFlow frees it when it is done. */
        block_unref(block);
        input->buffer = NULL;
        return PAML_OK;
    }
    if (wait_for_block(block)) {
        return PAML_OK;
    }
    block_unref(block);
    input->loan = NULL;
    input->may_lend = false;
    return paml_fail(err, PAML_ERR_BACKEND,
                     "TensorFlow has kept the memory of input '%.200s' beyond the run",
                     input->spec->name);
}

void
paml_tf_input_clear(struct paml_tf_input *input)
{
    if (input->loan != NULL) {
        block_unref(input->loan);
    }
    if (input->buffer != NULL) {
        block_unref(input->buffer);
    }
}
