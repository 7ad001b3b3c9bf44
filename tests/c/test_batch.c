/* Batches: who shares a run.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <math.h>

#include "batch_helpers.h"

static bool
share(const struct paml_batching *batching, struct request *a, struct request *b)
{
    bool equal, same;

    classify(batching, a);
    classify(batching, b);
    equal = a->op.batch_key != 0 && a->op.batch_key == b->op.batch_key;
    same = paml_batch_same(batching, &a->op, &b->op);
    CHECK(equal == same);
    request_drop(a);
    request_drop(b);
    return equal;
}

/* Requests of a tensor and one more value that differs. */
static struct request *
with_value(uint32_t kind, int64_t integer)
{
    struct request *request = request_of(1, 3, 0);
    struct paml_value *value = add(request, kind);

    value->integer = integer;
    return request;
}

static struct request *
with_string(uint32_t kind, const char *text)
{
    struct request *request = with_value(kind, 0);

    set_string(&request->values[1], text);
    return request;
}

static struct request *
with_float(double real)
{
    struct request *request = with_value(PAML_FLOAT, 0);

    request->values[1].real = real;
    return request;
}

static struct request *
with_rank_0(DLDataType dtype, unsigned char byte)
{
    struct request *request = request_of(1, 3, 0);

    *(unsigned char *)set_tensor(add(request, PAML_TENSOR), dtype, -1)->data = byte;
    return request;
}

static struct request *
with_dtype(DLDataType dtype, int32_t device)
{
    struct request *request = request_new();

    set_tensor(add(request, PAML_TENSOR), dtype, 2, 3, -1)->device.device_id = device;
    return request;
}

static struct request *
with_list(uint32_t kind, uint32_t count)
{
    struct request *request = request_of(1, 3, 0);

    add_container(request, kind, count);
    for (uint32_t i = 0; i < count; i++) {
        set_tensor(add_inside(request, PAML_TENSOR), f32, 1, 2, -1);
    }
    return request;
}

static void
requests_that_differ_in_rows_alone_share_a_run(void)
{
    struct request *request = request_of(5, 3, 0);

    classify(&plain, request);
    CHECK(request->op.rows == 5);
    request_drop(request);
    CHECK(share(&plain, request_of(1, 3, 0), request_of(7, 3, 9)));
    CHECK(share(&plain, with_list(PAML_LIST, 2), with_list(PAML_LIST, 2)));
    CHECK(share(&plain, with_string(PAML_STRING, "a long enough text"),
                with_string(PAML_STRING, "a long enough text")));
    CHECK(share(&plain, with_rank_0(f32, 3), with_rank_0(f32, 3)));
    CHECK(share(&plain, with_float(NAN), with_float(NAN)));
}

static void
requests_that_differ_in_more_than_rows_run_apart(void)
{
    struct request *absent = with_value(PAML_NONE, 0);
    struct request *nested = with_list(PAML_LIST, 2);
    struct request *longer = request_of(1, 3, 0);

    absent->values[1].count = PAML_ABSENT;
    CHECK(!share(&plain, with_value(PAML_NONE, 0), absent));
    nested->op.n_arguments = 4; /* two tensors after an empty list */
    nested->values[1].count = 0;
    CHECK(!share(&plain, with_list(PAML_LIST, 2), nested));
    set_tensor(add(longer, PAML_TENSOR), f32, 1, 2, -1);
    CHECK(!share(&plain, request_of(1, 3, 0), longer));
    CHECK(!share(&plain, request_of(1, 3, 0), request_of(1, 4, 0)));
    CHECK(!share(&plain, with_value(PAML_INT, 1), with_value(PAML_INT, 2)));
    CHECK(!share(&plain, with_value(PAML_INT, 1), with_value(PAML_BOOL, 1)));
    CHECK(!share(&plain, with_float(1), with_float(1.5)));
    CHECK(!share(&plain, with_string(PAML_STRING, "mean"),
                 with_string(PAML_STRING, "sum")));
    CHECK(!share(&plain, with_string(PAML_STRING, "mean"),
                 with_string(PAML_BYTES, "mean")));
    CHECK(!share(&plain, with_rank_0(f32, 3), with_rank_0(f32, 4)));
    CHECK(!share(&plain, with_rank_0(f32, 3), with_rank_0(i32, 3)));
    CHECK(!share(&plain, with_list(PAML_LIST, 2), with_list(PAML_LIST, 1)));
    CHECK(!share(&plain, with_list(PAML_LIST, 2), with_list(PAML_TUPLE, 2)));
    CHECK(!share(&plain, with_dtype(f32, 0), with_dtype(i32, 0)));
    CHECK(!share(&plain, with_dtype(f32, 0), with_dtype(f32, 1)));
}

static void
requests_without_rows_and_with_objects_run_alone(void)
{
    struct paml_batching off = {.mask_argument = -1};
    struct request *scalars = request_new();
    struct request *object = with_value(PAML_OBJECT, 0);
    struct request *empty = request_of(0, 3, 0);
    struct request *many = request_of(5, 3, 0);
    struct request *device = with_rank_0(f32, 3);

    add(scalars, PAML_INT);
    set_tensor(add(scalars, PAML_TENSOR), f32, -1);
    classify(&plain, scalars);
    CHECK(scalars->op.batch_key == 0 && scalars->op.rows == 1);
    request_drop(scalars);
    classify(&plain, object);
    CHECK(object->op.batch_key == 0 && object->op.rows == 1);
    CHECK(!paml_batch_same(&plain, &object->op, &object->op));
    request_drop(object);
    classify(&plain, empty);
    CHECK(empty->op.batch_key == 0 && empty->op.rows == 0);
    request_drop(empty);
    classify(&off, many);
    CHECK(many->op.batch_key == 0 && many->op.rows == 1);
    request_drop(many);
    device->values[1].tensor.device.device_type = kDLCUDA;
    classify(&plain, device);
    CHECK(device->op.batch_key == 0);
    request_drop(device);
}

static void
padded_lengths_may_differ_within_their_bucket(void)
{
    struct request *request = request_of(2, 7, 0);

    classify(&padding, request);
    CHECK(request->op.lengths[0] == 7);
    request_drop(request);
    CHECK(share(&padding, request_of(1, 3, 0), request_of(2, 700, 0)));
    CHECK(share(&bucketing, request_of(1, 0, 0), request_of(2, 4, 0)));
    CHECK(share(&bucketing, request_of(1, 5, 0), request_of(2, 16, 0)));
    CHECK(!share(&bucketing, request_of(1, 4, 0), request_of(2, 5, 0)));
}

static void
refused(const struct paml_batching *batching, struct request *request,
        const char *message)
{
    struct paml_error error = {0};

    CHECK(paml_batch_classify(batching, &request->op, &error) == PAML_ERR_INPUT);
    if (strcmp(error.message, message) != 0) {
        fprintf(stderr, "got:      %s\nexpected: %s\n", error.message, message);
        exit(1);
    }
    request_drop(request);
}

static void
requests_that_cannot_be_batched_are_refused_with_the_reason(void)
{
    static const int32_t axes[] = {0, 1};
    static const struct paml_axis_place both[] = {{0, 1}, {1, 1}};
    static const double fills[] = {-1};
    struct paml_padded_axis two = length_axis;
    struct paml_batching columns = plain, pairs = padding, filled = padding;
    struct request *request;

    request = request_of(2, 3, 0);
    set_tensor(add(request, PAML_TENSOR), f32, 3, -1);
    refused(&plain, request,
            "batching= makes axis 0 the batch axis: input 1 has 3 rows, input 0 has 2");
    request = request_of(2, 3, 0);
    set_tensor(add(request, PAML_TENSOR), f32, 2, -1);
    columns.input_axes = axes;
    columns.n_input_axes = 2;
    refused(&columns, request,
            "batching= makes axis 1 the batch axis of input 1, which has shape [2]");
    request = request_new();
    set_tensor(add(request, PAML_TENSOR), f32, 2, -1);
    refused(&padding, request,
            "batching= pads axis 1 ('length') of input 0, which has shape [2]");
    request = request_new();
    add(request, PAML_INT);
    refused(&padding, request,
            "batching= pads axis 1 ('length') of input 0, which is int, not a tensor");
    two.inputs = both;
    two.n_inputs = 2;
    pairs.padded = &two;
    request = request_of(2, 3, 0);
    set_tensor(add(request, PAML_TENSOR), f32, 2, 4, -1);
    refused(&pairs, request,
            "input 1 has length 4 along axis 1 ('length'), expected 3, as input 0 has");
    refused(&bucketing, request_of(1, 17, 0),
            "input 0 has length 17 along axis 1 ('length'), expected 16, the largest "
            "bucket, at most");
    filled.fills = fills;
    filled.n_fills = 1;
    request = request_new();
    set_tensor(add(request, PAML_TENSOR), u8, 2, 4, -1);
    refused(&filled, request,
            "input 0 is uint8, which can't hold -1, the value that it is padded with");
    request = request_new();
    set_tensor(add(request, PAML_TENSOR), i4, 2, 4, -1);
    refused(&plain, request,
            "input 0 is int4: batching= needs elements of whole bytes");
}

int
main(void)
{
    RUN(requests_that_differ_in_rows_alone_share_a_run);
    RUN(requests_that_differ_in_more_than_rows_run_apart);
    RUN(requests_without_rows_and_with_objects_run_alone);
    RUN(padded_lengths_may_differ_within_their_bucket);
    RUN(requests_that_cannot_be_batched_are_refused_with_the_reason);
    return 0;
}
