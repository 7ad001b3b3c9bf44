/* Batches: the outputs of a run taken apart, and those of a long request joined.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "batch_helpers.h"

/* A batch of two requests, of 1 and 3 rows and 2 and 5 columns if `batching` pads, else
   of 2 columns, gathered and ready for outputs. */
struct batch {
    struct paml_batcher batcher;
    const struct paml_batching *batching;
    struct request *requests[2];
    struct paml_slice slices[2];
    struct paml_outputs whole;
    struct paml_error error;
};

static void
batch_init(struct batch *batch, const struct paml_batching *batching, uint32_t n)
{
    struct paml_run run;

    memset(batch, 0, sizeof(*batch));
    batch->batching = batching;
    batch->requests[0] = request_of(1, 2, 0);
    batch->requests[1] = request_of(3, batching->n_padded > 0 ? 5 : 2, 100);
    for (int i = 0; i < 2; i++) {
        classify(batching, batch->requests[i]);
        batch->slices[i] = whole_of(batch->requests[i]);
    }
    paml_batcher_init(&batch->batcher);
    paml_outputs_init(&batch->whole);
    CHECK(paml_batch_gather(&batch->batcher, batching, batch->slices, n, &run,
                            &batch->error) == PAML_OK);
}

static int
batch_scatter(struct batch *batch, uint32_t n)
{
    int code = paml_batch_scatter(&batch->batcher, batch->batching, batch->slices, n,
                                  &batch->whole, &batch->error);

    CHECK(batch->whole.count == 0);
    return code;
}

static void
batch_destroy(struct batch *batch)
{
    paml_batcher_destroy(&batch->batcher);
    request_drop(batch->requests[0]);
    request_drop(batch->requests[1]);
}

static struct paml_value *
output(struct batch *batch, uint32_t kind)
{
    struct paml_value *value = paml_outputs_append(&batch->whole, 1);

    CHECK(value != NULL);
    value->kind = kind;
    return value;
}

/* --- what doesn't follow --- */

/* The outputs of a batch of n requests must be refused with the message. */
static void
refused(struct batch *batch, uint32_t n, const char *message)
{
    CHECK(batch_scatter(batch, n) == PAML_ERR_BACKEND);
    if (strcmp(batch->error.message, message) != 0) {
        fprintf(stderr, "got:      %s\nexpected: %s\n", batch->error.message, message);
        exit(1);
    }
    for (uint32_t i = 0; i < n; i++) {
        CHECK(batch->slices[i].outputs.count == 0);
    }
    batch_destroy(batch);
}

#define FOLLOW                                                                         \
    "batching= needs a model whose outputs follow the batch axis of its inputs"

static void
outputs_that_do_not_follow_the_batch_are_refused(void)
{
    struct batch batch;

    for (uint32_t n = 1; n <= 2; n++) {
        char message[256];

        batch_init(&batch, &plain, n);
        set_tensor(output(&batch, PAML_TENSOR), f32, 7, 10, -1);
        snprintf(message, sizeof(message),
                 "output 0 of the model has shape [7, 10], expected %d rows along axis "
                 "0: " FOLLOW,
                 n == 1 ? 1 : 4);
        refused(&batch, n, message);
    }
    batch_init(&batch, &plain, 2);
    output(&batch, PAML_LIST)->count = 2;
    set_tensor(output(&batch, PAML_TENSOR), f32, 4, -1);
    set_tensor(output(&batch, PAML_TENSOR), f32, -1);
    refused(
        &batch, 2,
        "output 1 of the model has shape [], expected 4 rows along axis 0: " FOLLOW);
    batch_init(&batch, &plain, 1);
    output(&batch, PAML_DICT)->count = 1;
    output(&batch, PAML_INT)->integer = 3; /* a key is no output, its value is */
    output(&batch, PAML_FLOAT)->real = 0.5;
    refused(
        &batch, 1,
        "the model gives float among its outputs, expected tensors of 1 rows: " FOLLOW);
    batch_init(&batch, &plain, 2);
    output(&batch, PAML_OBJECT);
    refused(&batch, 2,
            "the model gives object among its outputs, expected tensors of 4 "
            "rows: " FOLLOW);
    batch_init(&batch, &padding, 2);
    set_tensor(output(&batch, PAML_TENSOR), f32, 4, 3, -1);
    refused(&batch, 2,
            "output 0 of the model has shape [4, 3], expected length 5 along axis 1 "
            "('length'), as the padded inputs have");
    batch_init(&batch, &plain, 2);
    set_tensor(output(&batch, PAML_TENSOR), i4, 4, 2, -1);
    refused(&batch, 2,
            "output 0 of the model is int4: batching= needs elements of whole bytes");
}

/* --- who gets what --- */

static atomic_int alive;

static void
counted_release(void *owner)
{
    free(owner);
    atomic_fetch_sub(&alive, 1);
}

/* Outputs of a batch of 1 and 3 rows, n columns each, whose release is counted. */
static void
counted_output(struct batch *batch, int columns)
{
    struct paml_value *value = output(batch, PAML_TENSOR);

    set_tensor(value, u8, 4, columns, -1);
    value->release = counted_release;
    atomic_fetch_add(&alive, 1);
}

static void
small_parts_are_copies_and_large_ones_views(void)
{
    struct batch batch;
    const DLTensor *first, *second;
    void *data;

    batch_init(&batch, &plain, 2);
    batch.slices[1].to = 2; /* rows 1 + 2 of 3: both parts are large */
    batch.batcher.rows = 3;
    set_tensor(output(&batch, PAML_TENSOR), u8, 3, 2, -1);
    data = batch.whole.values[0].tensor.data;
    CHECK(batch_scatter(&batch, 2) == PAML_OK);
    first = &batch.slices[0].outputs.values[0].tensor;
    second = &batch.slices[1].outputs.values[0].tensor;
    CHECK(first->data == data && second->data == data);
    CHECK(first->shape[0] == 1 && second->shape[0] == 2 && second->byte_offset == 2);
    paml_outputs_clear(&batch.slices[0].outputs);
    paml_outputs_clear(&batch.slices[1].outputs);
    /* A part of one row in five is a copy, and doesn't keep the rest. */
    batch.slices[1].to = 4;
    batch.batcher.rows = 5;
    set_tensor(output(&batch, PAML_TENSOR), u8, 5, 2, -1);
    data = batch.whole.values[0].tensor.data;
    CHECK(batch_scatter(&batch, 2) == PAML_OK);
    first = &batch.slices[0].outputs.values[0].tensor;
    second = &batch.slices[1].outputs.values[0].tensor;
    CHECK(first->data != data && second->data == data);
    CHECK(memcmp(first->data, "\1\2", 2) == 0 && first->strides == NULL);
    paml_outputs_clear(&batch.slices[1].outputs);
    CHECK(memcmp(first->data, "\1\2", 2) == 0);
    paml_outputs_clear(&batch.slices[0].outputs);
    batch_destroy(&batch);
}

static void
parts_on_a_device_are_views_of_any_size(void)
{
    struct batch batch;
    void *data;

    batch_init(&batch, &plain, 2);
    batch.slices[1].to = 9;
    batch.batcher.rows = 10;
    set_tensor(output(&batch, PAML_TENSOR), u8, 10, 2, -1)->device.device_type =
        kDLCUDA;
    data = batch.whole.values[0].tensor.data;
    CHECK(batch_scatter(&batch, 2) == PAML_OK);
    for (int i = 0; i < 2; i++) {
        CHECK(batch.slices[i].outputs.values[0].tensor.data == data);
        paml_outputs_clear(&batch.slices[i].outputs);
    }
    batch_destroy(&batch);
}

static void *
look_and_drop(void *argument)
{
    struct paml_outputs *outputs = argument;
    const DLTensor *tensor = &outputs->values[0].tensor;
    const unsigned char *data = tensor->data;

    CHECK(data[tensor->byte_offset] == tensor->byte_offset + 1);
    paml_outputs_clear(outputs);
    return NULL;
}

static void
views_outlive_each_other_on_any_thread(void)
{
    struct batch batch;
    pthread_t threads[2];

    for (int round = 0; round < 3; round++) {
        batch_init(&batch, &plain, 2);
        counted_output(&batch, 2);
        CHECK(batch_scatter(&batch, 2) == PAML_OK);
        batch_destroy(&batch);
        CHECK(atomic_load(&alive) == 1);
        if (round < 2) {
            look_and_drop(&batch.slices[round].outputs);
            CHECK(atomic_load(&alive) == 1);
            look_and_drop(&batch.slices[1 - round].outputs);
        } else {
            for (int i = 0; i < 2; i++) {
                CHECK(pthread_create(&threads[i], NULL, look_and_drop,
                                     &batch.slices[i].outputs) == 0);
            }
            CHECK(pthread_join(threads[0], NULL) == 0);
            CHECK(pthread_join(threads[1], NULL) == 0);
        }
        CHECK(atomic_load(&alive) == 0);
    }
}

static void
what_is_no_tensor_is_copied_to_everybody(void)
{
    char *text = strdup("label");
    struct paml_value *value;
    struct batch batch;

    CHECK(text != NULL);
    batch_init(&batch, &plain, 2);
    output(&batch, PAML_DICT)->count = 2;
    output(&batch, PAML_INT)->integer = 5;
    value = output(&batch, PAML_STRING);
    set_string(value, text);
    value->owner = text;
    value->release = free;
    set_string(output(&batch, PAML_BYTES), "");
    output(&batch, PAML_NONE);
    CHECK(batch_scatter(&batch, 2) == PAML_OK);
    for (int i = 0; i < 2; i++) {
        const struct paml_value *values = batch.slices[i].outputs.values;
        CHECK(batch.slices[i].outputs.count == 5);
        CHECK(values[0].kind == PAML_DICT && values[0].count == 2);
        CHECK(values[1].kind == PAML_INT && values[1].integer == 5);
        CHECK(values[2].kind == PAML_STRING && values[2].string.size == 5);
        CHECK(memcmp(values[2].string.data, "label", 5) == 0);
        CHECK(values[3].kind == PAML_BYTES && values[3].string.size == 0);
        CHECK(values[4].kind == PAML_NONE);
        paml_outputs_clear(&batch.slices[i].outputs);
    }
    batch_destroy(&batch);
}

static void
padding_is_cut_off_again(void)
{
    static const int64_t eight = 8;
    struct paml_padded_axis bucket = length_axis;
    struct paml_batching bucketing = padding;
    struct batch batch;
    const DLTensor *tensor;

    batch_init(&batch, &padding, 2);
    counted_output(&batch, 5);
    CHECK(batch_scatter(&batch, 2) == PAML_OK);
    tensor = &batch.slices[0].outputs.values[0].tensor;
    CHECK(tensor->shape[0] == 1 && tensor->shape[1] == 2);
    CHECK(memcmp(tensor->data, "\1\2", 2) == 0);
    tensor = &batch.slices[1].outputs.values[0].tensor;
    CHECK(tensor->shape[0] == 3 && tensor->shape[1] == 5 && tensor->byte_offset == 5);
    paml_outputs_clear(&batch.slices[0].outputs);
    CHECK(atomic_load(&alive) == 1);
    paml_outputs_clear(&batch.slices[1].outputs);
    CHECK(atomic_load(&alive) == 0);
    batch_destroy(&batch);
    /* Of a request alone: by a view. */
    bucket.buckets = &eight;
    bucket.n_buckets = 1;
    bucketing.padded = &bucket;
    batch_init(&batch, &bucketing, 1);
    set_tensor(output(&batch, PAML_TENSOR), u8, 1, 8, -1);
    CHECK(batch_scatter(&batch, 1) == PAML_OK);
    tensor = &batch.slices[0].outputs.values[0].tensor;
    CHECK(tensor->shape[1] == 2 && tensor->strides[0] == 8);
    paml_outputs_clear(&batch.slices[0].outputs);
    batch_destroy(&batch);
}

/* --- a long request --- */

static void
parts_that_do_not_fit_are_not_joined(void)
{
    for (int difference = 0; difference < 5; difference++) {
        struct paml_outputs parts[2], joined;
        struct paml_error error = {0};
        bool alike = difference == 0;

        for (int i = 0; i < 2; i++) {
            bool odd = i == 1;
            struct paml_value *values;

            paml_outputs_init(&parts[i]);
            values = paml_outputs_append(&parts[i], difference == 1 && odd ? 4 : 3);
            CHECK(values != NULL);
            values[0].kind = PAML_TUPLE;
            values[0].count = 2;
            set_tensor(&values[1], difference == 2 && odd ? i32 : f32, 2 + i,
                       difference == 3 && odd ? 4 : 3, -1);
            values[2].kind = PAML_STRING;
            set_string(&values[2], difference == 4 && odd ? "b" : "a");
        }
        CHECK(paml_batch_join(&plain, parts, 2, &joined, &error) ==
              (alike ? PAML_OK : PAML_ERR_BACKEND));
        CHECK(parts[0].count == 0 && parts[1].count == 0);
        CHECK(joined.count == (alike ? 3u : 0u));
        if (alike) {
            CHECK(joined.values[1].tensor.shape[0] == 5);
            CHECK(joined.values[2].string.data[0] == 'a');
        }
        paml_outputs_clear(&joined);
    }
}

static void
a_request_that_was_cut_comes_back_in_one_piece(void)
{
    struct request *request = request_of(7, 3, 0);
    struct paml_outputs parts[3], joined;
    struct paml_error error = {0};
    struct paml_batcher batcher;

    paml_batcher_init(&batcher);
    classify(&plain, request);
    for (int i = 0; i < 3; i++) {
        struct paml_slice slice = {
            .op = &request->op, .from = 3 * i, .to = i < 2 ? 3 * i + 3 : 7};
        serve(&batcher, &plain, &slice, 1);
        paml_outputs_move(&slice.outputs, &parts[i]);
    }
    CHECK(paml_batch_join(&plain, parts, 3, &joined, &error) == PAML_OK);
    CHECK(gives_back(&joined, request));
    paml_outputs_clear(&joined);
    paml_batcher_destroy(&batcher);
    request_drop(request);
}

int
main(void)
{
    RUN(outputs_that_do_not_follow_the_batch_are_refused);
    RUN(small_parts_are_copies_and_large_ones_views);
    RUN(parts_on_a_device_are_views_of_any_size);
    RUN(views_outlive_each_other_on_any_thread);
    RUN(what_is_no_tensor_is_copied_to_everybody);
    RUN(padding_is_cut_off_again);
    RUN(parts_that_do_not_fit_are_not_joined);
    RUN(a_request_that_was_cut_comes_back_in_one_piece);
    return 0;
}
