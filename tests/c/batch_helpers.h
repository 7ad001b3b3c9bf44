/* Requests by hand, and a model that gives its inputs back: for the tests of batches.
 */
#ifndef PAML_BATCH_HELPERS_H
#define PAML_BATCH_HELPERS_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "axes.h"
#include "batch.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

/* In main(): the tests one after the other. */
#define RUN(test)                                                                      \
    do {                                                                               \
        printf("%s\n", #test);                                                         \
        fflush(stdout);                                                                \
        test();                                                                        \
    } while (0)

#define VALUES_MOST 32

static const DLDataType f32 = {kDLFloat, 32, 1}, f16 = {kDLFloat, 16, 1},
                        bf16 = {kDLBfloat, 16, 1}, f64 = {kDLFloat, 64, 1},
                        i64 = {kDLInt, 64, 1}, i32 = {kDLInt, 32, 1},
                        u8 = {kDLUInt, 8, 1}, boolean = {kDLBool, 8, 1},
                        c64 = {kDLComplex, 64, 1}, i4 = {kDLInt, 4, 1};

static const struct paml_batching plain = {.max_rows = 32, .mask_argument = -1};

static const struct paml_axis_place place_0_1 = {0, 1};
/* Axis 1 of input 0 is padded, and cut from output 0. */
static const struct paml_padded_axis length_axis = {.name = "length",
                                                    .n_inputs = 1,
                                                    .n_outputs = 1,
                                                    .inputs = &place_0_1,
                                                    .outputs = &place_0_1};
static const int64_t two_buckets[] = {4, 16};
static const struct paml_padded_axis bucket_axis = {.name = "length",
                                                    .n_inputs = 1,
                                                    .n_outputs = 1,
                                                    .n_buckets = 2,
                                                    .inputs = &place_0_1,
                                                    .outputs = &place_0_1,
                                                    .buckets = two_buckets};
static const struct paml_batching padding = {
    .max_rows = 32, .n_padded = 1, .padded = &length_axis, .mask_argument = -1};
static const struct paml_batching bucketing = {
    .max_rows = 32, .n_padded = 1, .padded = &bucket_axis, .mask_argument = -1};

/* An op and room for its inputs; released by request_drop(). */
struct request {
    struct paml_op op;
    struct paml_value values[VALUES_MOST];
    int64_t strides[VALUES_MOST][PAML_MAX_RANK];
};

static inline struct request *
request_new(void)
{
    struct request *request = calloc(1, sizeof(*request));

    CHECK(request != NULL);
    paml_op_init(&request->op, NULL);
    request->op.inputs = request->values;
    return request;
}

static inline void
request_drop(struct request *request)
{
    for (uint32_t i = 0; i < request->op.n_inputs; i++) {
        paml_value_release(&request->values[i]);
    }
    paml_op_clear(&request->op);
    free(request);
}

/* A value inside a container that was added before. */
static inline struct paml_value *
add_inside(struct request *request, uint32_t kind)
{
    struct paml_value *value = &request->values[request->op.n_inputs++];

    CHECK(request->op.n_inputs <= VALUES_MOST);
    value->kind = kind;
    return value;
}

/* A value at the top level. */
static inline struct paml_value *
add(struct request *request, uint32_t kind)
{
    request->op.n_arguments++;
    return add_inside(request, kind);
}

static inline void
add_container(struct request *request, uint32_t kind, uint32_t count)
{
    add(request, kind)->count = count;
}

static inline void
set_string(struct paml_value *value, const char *text)
{
    value->string.data = text;
    value->string.size = strlen(text);
}

/* Makes a tensor of the value: dimensions follow, -1 ends them. Its bytes count up. */
static inline DLTensor *
set_tensor(struct paml_value *value, DLDataType dtype, ...)
{
    int64_t shape[PAML_MAX_RANK], size;
    int32_t ndim = 0;
    va_list dims;

    va_start(dims, dtype);
    while ((size = va_arg(dims, int)) >= 0) {
        shape[ndim++] = size;
    }
    va_end(dims);
    CHECK(paml_tensor_new(value, dtype, ndim, shape) == 0);
    for (size_t i = 0; i < paml_value_nbytes(value); i++) {
        ((unsigned char *)value->tensor.data)[i] = (unsigned char)(i + 1);
    }
    return &value->tensor;
}

/* A request of one float32 tensor, its elements first, first + 1, … */
static inline struct request *
request_of(int64_t rows, int64_t columns, float first)
{
    struct request *request = request_new();
    float *data =
        set_tensor(add(request, PAML_TENSOR), f32, (int)rows, (int)columns, -1)->data;

    for (int64_t i = 0; i < rows * columns; i++) {
        data[i] = first + (float)i;
    }
    return request;
}

static inline struct paml_slice
whole_of(struct request *request)
{
    return (struct paml_slice){.op = &request->op, .to = request->op.rows};
}

static inline void
classify(const struct paml_batching *batching, struct request *request)
{
    struct paml_error error = {0};

    if (paml_batch_classify(batching, &request->op, &error) != PAML_OK) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
}

/* Whether two tensors hold the same, whatever their strides. */
static inline bool
tensors_equal(const DLTensor *a, const DLTensor *b)
{
    size_t bytes = paml_dtype_bytes(a->dtype, paml_tensor_elements(a));
    char *dense_a, *dense_b;
    bool equal;

    if (a->ndim != b->ndim || memcmp(&a->dtype, &b->dtype, sizeof(a->dtype)) != 0 ||
        memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof(int64_t)) != 0) {
        return false;
    }
    dense_a = malloc(bytes + 1);
    dense_b = malloc(bytes + 1);
    CHECK(dense_a != NULL && dense_b != NULL);
    paml_tensor_gather(a, dense_a);
    paml_tensor_gather(b, dense_b);
    equal = memcmp(dense_a, dense_b, bytes) == 0;
    free(dense_a);
    free(dense_b);
    return equal;
}

/* A model that gives a tuple of its inputs back. */
static inline void
identity(const struct paml_run *run, struct paml_outputs *outputs)
{
    struct paml_value *values;

    paml_outputs_init(outputs);
    values = paml_outputs_append(outputs, run->n_inputs + 1);
    CHECK(values != NULL);
    values->kind = PAML_TUPLE;
    values->count = run->n_arguments;
    for (uint32_t i = 0; i < run->n_inputs; i++) {
        const struct paml_value *input = &run->inputs[i];
        if (input->kind == PAML_TENSOR) {
            CHECK(paml_tensor_new(&values[i + 1], input->tensor.dtype,
                                  input->tensor.ndim, input->tensor.shape) == 0);
            paml_tensor_gather(&input->tensor, values[i + 1].tensor.data);
        } else {
            values[i + 1] = *input;
            values[i + 1].release = NULL;
        }
    }
}

/* Gathers, runs the identity and scatters. */
static inline void
serve(struct paml_batcher *batcher, const struct paml_batching *batching,
      struct paml_slice *slices, uint32_t n)
{
    struct paml_error error = {0};
    struct paml_run run = {0};
    struct paml_outputs whole;

    if (paml_batch_gather(batcher, batching, slices, n, &run, &error) == PAML_OK) {
        identity(&run, &whole);
        paml_batch_scatter(batcher, batching, slices, n, &whole, &error);
        CHECK(whole.count == 0);
    }
    if (error.code != PAML_OK) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
}

/* Whether the outputs are a tuple of the request's inputs. */
static inline bool
gives_back(const struct paml_outputs *outputs, const struct request *request)
{
    uint32_t n = request->op.n_inputs;

    if (outputs->count < n + 1 || outputs->values[0].kind != PAML_TUPLE) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct paml_value *a = &request->values[i], *b = &outputs->values[i + 1];
        if (a->kind == PAML_NONE && a->count == PAML_ABSENT) {
            continue; /* the engine may have made it */
        }
        if (a->kind != b->kind || a->count != b->count ||
            (a->kind == PAML_TENSOR && !tensors_equal(&a->tensor, &b->tensor)) ||
            (a->kind == PAML_INT && a->integer != b->integer) ||
            (a->kind == PAML_STRING &&
             (a->string.size != b->string.size ||
              memcmp(a->string.data, b->string.data, a->string.size) != 0))) {
            return false;
        }
    }
    return true;
}

#endif
