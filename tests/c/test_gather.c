/* Batches: how the inputs of requests become those of a run.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <math.h>

#include "batch_helpers.h"

static void
gather(struct paml_batcher *batcher, const struct paml_batching *batching,
       struct request **requests, uint32_t n, struct paml_run *run)
{
    struct paml_slice slices[8];
    struct paml_error error = {0};

    for (uint32_t i = 0; i < n; i++) {
        classify(batching, requests[i]);
        slices[i] = whole_of(requests[i]);
    }
    CHECK(paml_batch_gather(batcher, batching, slices, n, run, &error) == PAML_OK);
}

static void
a_request_alone_is_passed_on_without_a_copy(void)
{
    struct paml_batcher batcher;
    struct paml_run run;
    struct request *request = request_of(2, 3, 0), *full = request_of(2, 4, 0);

    paml_batcher_init(&batcher);
    gather(&batcher, &plain, &request, 1, &run);
    CHECK(run.inputs == request->op.inputs);
    gather(&batcher, &padding, &request, 1, &run);
    CHECK(run.inputs == request->op.inputs);
    gather(&batcher, &bucketing, &full, 1, &run);
    CHECK(run.inputs == full->op.inputs);
    gather(&batcher, &bucketing, &request, 1, &run);
    CHECK(run.inputs != request->op.inputs && run.inputs->tensor.shape[1] == 4);
    paml_batcher_destroy(&batcher);
    request_drop(request);
    request_drop(full);
}

static void
a_part_of_a_request_is_a_view_where_rows_are_outermost(void)
{
    static const int32_t axes[] = {0, 1};
    struct paml_batching batching = plain;
    struct request *request = request_of(6, 3, 0);
    struct paml_batcher batcher;
    struct paml_error error = {0};
    struct paml_slice slice;
    struct paml_run run;
    const DLTensor *part;

    batching.input_axes = axes;
    batching.n_input_axes = 2;
    set_tensor(add(request, PAML_TENSOR), u8, 2, 6, -1);
    classify(&batching, request);
    slice = (struct paml_slice){.op = &request->op, .from = 2, .to = 5};
    paml_batcher_init(&batcher);
    CHECK(paml_batch_gather(&batcher, &batching, &slice, 1, &run, &error) == PAML_OK);
    part = &run.inputs[0].tensor;
    CHECK(part->data == request->values[0].tensor.data);
    CHECK(part->byte_offset == 2 * 3 * sizeof(float));
    CHECK(part->shape[0] == 3 && part->shape[1] == 3 && run.inputs[0].release == NULL);
    part = &run.inputs[1].tensor;
    CHECK(part->shape[0] == 2 && part->shape[1] == 3);
    CHECK(memcmp(part->data, "\3\4\5\11\12\13", 6) == 0);
    paml_batcher_destroy(&batcher);
    request_drop(request);
}

static void
rows_lie_one_after_the_other_along_any_axis(void)
{
    static const int32_t axes[] = {0, 1};
    struct paml_batching batching = plain;
    struct request *requests[2];
    struct paml_batcher batcher;
    struct paml_run run;
    void *staging;

    batching.input_axes = axes;
    batching.n_input_axes = 2;
    for (int i = 0; i < 2; i++) {
        struct request *request = requests[i] = request_of(1 + i, 2, (float)(10 * i));
        add_container(request, PAML_DICT, 1);
        set_string(add_inside(request, PAML_STRING), "mask");
        set_tensor(add_inside(request, PAML_TENSOR), u8, 2, 1 + i, -1);
        add(request, PAML_INT)->integer = 7;
        set_tensor(add(request, PAML_TENSOR), i64, -1);
    }
    /* The other way round: element (0, 0) of input 0 comes last in memory. */
    requests[1]->values[0].tensor.strides = requests[1]->strides[0];
    requests[1]->strides[0][0] = -2;
    requests[1]->strides[0][1] = -1;
    requests[1]->values[0].tensor.byte_offset = 3 * sizeof(float);
    paml_batcher_init(&batcher);
    gather(&batcher, &batching, requests, 2, &run);
    CHECK(run.n_inputs == 6 && run.n_arguments == 4 && batcher.rows == 3);
    CHECK(run.inputs[0].tensor.shape[0] == 3 && run.inputs[0].tensor.shape[1] == 2);
    CHECK(memcmp(run.inputs[0].tensor.data, (float[]){0, 1, 13, 12, 11, 10}, 24) == 0);
    CHECK(run.inputs[1].kind == PAML_DICT && run.inputs[1].count == 1);
    CHECK(memcmp(run.inputs[2].string.data, "mask", 4) == 0);
    CHECK(run.inputs[3].tensor.shape[0] == 2 && run.inputs[3].tensor.shape[1] == 3);
    CHECK(memcmp(run.inputs[3].tensor.data, "\1\1\2\2\3\4", 6) == 0);
    CHECK(run.inputs[4].integer == 7);
    CHECK(run.inputs[5].tensor.data == requests[0]->values[5].tensor.data);
    /* The next batch goes where this one was. */
    staging = run.inputs[0].tensor.data;
    CHECK((uintptr_t)staging % 64 == 0);
    gather(&batcher, &batching, requests, 2, &run);
    CHECK(run.inputs[0].tensor.data == staging);
    paml_batcher_destroy(&batcher);
    request_drop(requests[0]);
    request_drop(requests[1]);
}

static void
padding_reaches_the_longest_or_the_bucket(void)
{
    static const double fills[] = {-1};
    struct request *requests[] = {request_of(1, 2, 1), request_of(2, 3, 10)};
    struct paml_batching batching = padding;
    struct paml_batcher batcher;
    struct paml_run run;

    batching.fills = fills;
    batching.n_fills = 1;
    paml_batcher_init(&batcher);
    gather(&batcher, &batching, requests, 2, &run);
    CHECK(run.inputs->tensor.shape[0] == 3 && run.inputs->tensor.shape[1] == 3);
    CHECK(memcmp(run.inputs->tensor.data, (float[]){1, 2, -1, 10, 11, 12, 13, 14, 15},
                 36) == 0);
    CHECK(batcher.cells == 9 && batcher.real_cells == 8 && batcher.lengths[0] == 3);
    gather(&batcher, &bucketing, requests, 2, &run);
    CHECK(run.inputs->tensor.shape[1] == 4);
    CHECK(memcmp(run.inputs->tensor.data,
                 (float[]){1, 2, 0, 0, 10, 11, 12, 0, 13, 14, 15, 0}, 48) == 0);
    CHECK(batcher.cells == 12 && batcher.real_cells == 8);
    gather(&batcher, &plain, requests, 1, &run);
    CHECK(batcher.cells == 0 && batcher.real_cells == 0);
    paml_batcher_destroy(&batcher);
    request_drop(requests[0]);
    request_drop(requests[1]);
}

static uint64_t
pad_bits(DLDataType dtype, double fill)
{
    uint64_t elements[3] = {0}, bits = 0;
    size_t item = paml_dtype_bytes(dtype, 1);

    CHECK(paml_pad_holds(dtype, fill));
    paml_pad(elements, dtype, fill, 3);
    memcpy(&bits, elements, item);
    CHECK(memcmp((char *)elements + item, elements, item) == 0);
    CHECK(memcmp((char *)elements + 2 * item, elements, item) == 0);
    return bits;
}

static void
padding_is_rounded_to_its_dtype_and_refused_where_it_has_none(void)
{
    CHECK(pad_bits(f16, 1) == 0x3c00 && pad_bits(f16, -2) == 0xc000);
    CHECK(pad_bits(f16, 65504) == 0x7bff && pad_bits(f16, 65519) == 0x7bff);
    CHECK(pad_bits(f16, 65520) == 0x7c00 && pad_bits(f16, -1e300) == 0xfc00);
    CHECK(pad_bits(f16, 0x1p-24) == 1 && pad_bits(f16, 0x1p-25) == 0);
    CHECK(pad_bits(f16, 0x1.8p-24) == 2 && pad_bits(f16, 0x1p-14) == 0x400);
    CHECK(pad_bits(f16, 1 + 0x1p-11) == 0x3c00 && pad_bits(f16, 1 + 0x3p-11) == 0x3c02);
    CHECK(pad_bits(f16, INFINITY) == 0x7c00 && (pad_bits(f16, NAN) & 0x7fff) == 0x7e00);
    CHECK(pad_bits(bf16, 1) == 0x3f80 && pad_bits(bf16, -INFINITY) == 0xff80);
    CHECK(pad_bits(bf16, 3.4e38) == 0x7f80 && pad_bits(bf16, 3.14159) == 0x4049);
    CHECK(pad_bits(f32, -1e9) == 0xce6e6b28 && pad_bits(c64, 1) == 0x3f800000);
    CHECK(pad_bits(f64, 1) == 0x3ff0000000000000 && pad_bits(f32, 0) == 0);
    CHECK(pad_bits(i64, -100) == (uint64_t)-100 && pad_bits(i32, -1) == 0xffffffff);
    CHECK(pad_bits(u8, 255) == 255 && pad_bits(boolean, 3) == 1);
    CHECK(!paml_pad_holds(u8, 256) && !paml_pad_holds(u8, -1));
    CHECK(!paml_pad_holds(i32, 0.5) && !paml_pad_holds(i64, NAN));
    CHECK(!paml_pad_holds(i64, 0x1p63) && paml_pad_holds(i64, -0x1p63));
    CHECK(!paml_pad_holds((DLDataType){kDLFloat8_e4m3fn, 8, 1}, 1));
    CHECK(paml_pad_holds((DLDataType){kDLFloat8_e4m3fn, 8, 1}, 0));
}

static void
a_mask_is_made_where_the_caller_leaves_it_out(void)
{
    struct request *requests[] = {request_of(1, 2, 1), request_of(2, 3, 10)};
    struct paml_batching batching = padding;
    struct paml_batcher batcher;
    struct paml_run run;

    batching.mask_argument = 2;
    batching.mask_dtype = u8;
    paml_batcher_init(&batcher);
    /* Past the end, with an input in between that is left out too. */
    gather(&batcher, &batching, requests, 2, &run);
    CHECK(run.n_inputs == 3 && run.n_arguments == 3);
    CHECK(run.inputs[1].kind == PAML_NONE && run.inputs[1].count == PAML_ABSENT);
    CHECK(run.inputs[2].kind == PAML_TENSOR && run.inputs[2].tensor.ndim == 2);
    CHECK(run.inputs[2].tensor.shape[0] == 3 && run.inputs[2].tensor.shape[1] == 3);
    CHECK(memcmp(run.inputs[2].tensor.data, "\1\1\0\1\1\1\1\1\1", 9) == 0);
    /* In the middle, for a request alone that needs no padding. */
    add(requests[1], PAML_NONE)->count = PAML_ABSENT;
    add(requests[1], PAML_INT);
    batching.mask_argument = 1;
    batching.mask_dtype = i64;
    gather(&batcher, &batching, requests + 1, 1, &run);
    CHECK(run.n_inputs == 3 && run.inputs[2].kind == PAML_INT);
    CHECK(run.inputs[0].tensor.data == requests[1]->values[0].tensor.data);
    CHECK(memcmp(run.inputs[1].tensor.data, (int64_t[]){1, 1, 1, 1, 1, 1}, 48) == 0);
    /* Given: it is the caller's. */
    requests[1]->values[1].count = 0;
    gather(&batcher, &batching, requests + 1, 1, &run);
    CHECK(run.inputs == requests[1]->values);
    paml_batcher_destroy(&batcher);
    request_drop(requests[0]);
    request_drop(requests[1]);
}

static void
tensors_on_a_device_are_not_copied(void)
{
    struct request *requests[] = {request_of(1, 2, 1), request_of(2, 2, 10)};
    struct paml_error error = {0};
    struct paml_slice slices[2];
    struct paml_batcher batcher;
    struct paml_run run;

    paml_batcher_init(&batcher);
    for (int i = 0; i < 2; i++) {
        requests[i]->values[0].tensor.device.device_type = kDLCUDA;
        classify(&plain, requests[i]);
        slices[i] = whole_of(requests[i]);
    }
    CHECK(paml_batch_gather(&batcher, &plain, slices, 1, &run, &error) == PAML_OK);
    CHECK(paml_batch_gather(&batcher, &plain, slices, 2, &run, &error) ==
          PAML_ERR_BACKEND);
    CHECK(strstr(error.message, "input 0 is on cuda:0") != NULL);
    slices[1].to = 1;
    CHECK(paml_batch_gather(&batcher, &plain, slices + 1, 1, &run, &error) == PAML_OK);
    CHECK(run.inputs->tensor.data == requests[1]->values[0].tensor.data);
    paml_batcher_destroy(&batcher);
    request_drop(requests[0]);
    request_drop(requests[1]);
}

int
main(void)
{
    RUN(a_request_alone_is_passed_on_without_a_copy);
    RUN(a_part_of_a_request_is_a_view_where_rows_are_outermost);
    RUN(rows_lie_one_after_the_other_along_any_axis);
    RUN(padding_reaches_the_longest_or_the_bucket);
    RUN(padding_is_rounded_to_its_dtype_and_refused_where_it_has_none);
    RUN(a_mask_is_made_where_the_caller_leaves_it_out);
    RUN(tensors_on_a_device_are_not_copied);
    return 0;
}
