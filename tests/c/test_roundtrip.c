/* Batches: what goes in comes out, over random requests.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include "batch_helpers.h"

#define TRIPS 3000
#define REQUESTS_MOST 6
#define ARGUMENTS_MOST 4
#define TENSORS_MOST (2 * ARGUMENTS_MOST + 1) /* with a mask */
#define SLICES_MOST 64

static uint64_t seed;

/* Below n, by splitmix64. */
static int
any(int n)
{
    uint64_t x = seed += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (int)((x ^ x >> 31) % (uint64_t)n);
}

enum shape_of_argument { ONE, LIST_OF_TWO, DICT_BY_INT, TEXT };

struct argument {
    enum shape_of_argument kind;
    DLDataType dtype;
    int32_t ndim, batch_axis;
    int64_t shape[4]; /* where it is the same in all requests */
    int along[4];     /* the padded axis it is, or -1 */
};

/* What all requests of a trip have in common. */
struct trip {
    struct paml_batching batching;
    struct paml_padded_axis padded[2];
    struct paml_axis_place inputs[2][4 * ARGUMENTS_MOST], outputs[2][4 * TENSORS_MOST];
    int32_t input_axes[ARGUMENTS_MOST], output_axes[TENSORS_MOST];
    double fills[ARGUMENTS_MOST];
    int n_arguments;
    struct argument arguments[ARGUMENTS_MOST];
};

static void
plan_places(struct trip *trip, uint32_t position)
{
    const struct argument *argument = &trip->arguments[position];
    uint32_t n_tensors = argument->kind == LIST_OF_TWO ? 2 : 1;
    uint32_t *tensors = &trip->batching.n_output_axes;

    for (int32_t axis = 0; axis < argument->ndim; axis++) {
        int k = argument->along[axis];
        if (k < 0) {
            continue;
        }
        trip->inputs[k][trip->padded[k].n_inputs++] =
            (struct paml_axis_place){position, axis};
        for (uint32_t i = 0; i < n_tensors; i++) {
            trip->outputs[k][trip->padded[k].n_outputs++] =
                (struct paml_axis_place){*tensors + i, axis};
        }
    }
    for (uint32_t i = 0; i < n_tensors; i++) {
        trip->output_axes[(*tensors)++] = argument->batch_axis;
    }
}

static void
plan(struct trip *trip)
{
    static const DLDataType dtypes[] = {{kDLFloat, 32, 1},  {kDLFloat, 16, 1},
                                        {kDLBfloat, 16, 1}, {kDLInt, 64, 1},
                                        {kDLUInt, 8, 1},    {kDLComplex, 128, 1}};
    static const int64_t buckets[] = {2, 4, 9};
    struct paml_batching *batching = &trip->batching;

    memset(trip, 0, sizeof(*trip));
    trip->n_arguments = 1 + any(ARGUMENTS_MOST);
    *batching = (struct paml_batching){.max_rows = 1 + any(9),
                                       .input_axes = trip->input_axes,
                                       .output_axes = trip->output_axes,
                                       .n_input_axes = (uint32_t)trip->n_arguments,
                                       .n_padded = 2,
                                       .padded = trip->padded,
                                       .fills = trip->fills,
                                       .n_fills = (uint32_t)trip->n_arguments,
                                       .mask_argument = -1,
                                       .mask_dtype = u8};
    for (int i = 0; i < trip->n_arguments; i++) {
        struct argument *argument = &trip->arguments[i];

        argument->kind = (enum shape_of_argument)(any(2) ? any(4) : 0);
        argument->dtype = dtypes[any(6)];
        argument->ndim = 1 + any(4);
        argument->batch_axis = any(3) ? 0 : any(argument->ndim);
        trip->input_axes[i] = argument->batch_axis;
        trip->fills[i] = any(2);
        for (int32_t axis = 0; axis < argument->ndim; axis++) {
            argument->shape[axis] = any(12) ? 1 + any(5) : 0;
            argument->along[axis] =
                axis != argument->batch_axis && any(2) ? any(2) : -1;
        }
        if (argument->kind != TEXT) {
            plan_places(trip, (uint32_t)i);
        }
    }
    for (int k = 0; k < 2; k++) {
        trip->padded[k].name = k == 0 ? "length" : "width";
        trip->padded[k].inputs = trip->inputs[k];
        trip->padded[k].outputs = trip->outputs[k];
        trip->padded[k].buckets = buckets;
        trip->padded[k].n_buckets = any(2) ? 3 : 0;
    }
    if (trip->padded[0].n_inputs > 0 && any(2)) {
        batching->mask_argument = trip->n_arguments;
        trip->outputs[0][trip->padded[0].n_outputs++] =
            (struct paml_axis_place){batching->n_output_axes++, 1};
    }
}

/* A tensor whose elements lie scattered in a larger buffer: any axis the fastest, some
   of them backwards, filled at random. */
static void
set_scattered(struct paml_value *value, int64_t *strides, DLDataType dtype,
              int32_t ndim, const int64_t *shape)
{
    int64_t room[4], stride = 1, first = 0;
    int32_t order[4] = {0, 1, 2, 3};

    for (int32_t i = ndim - 1; i > 0; i--) {
        int32_t j = any(4) ? i : any(i + 1), other = order[j];
        order[j] = order[i];
        order[i] = other;
    }
    for (int32_t i = ndim - 1; i >= 0; i--) {
        int32_t axis = order[i], step = any(4) ? 1 : 2;

        room[i] = shape[axis] * step;
        strides[axis] = stride * step;
        if (any(6) == 0 && shape[axis] > 0) {
            first += (shape[axis] - 1) * strides[axis];
            strides[axis] = -strides[axis];
        }
        stride *= room[i];
    }
    CHECK(paml_tensor_new(value, dtype, ndim, room) == 0);
    for (size_t i = 0; i < paml_value_nbytes(value); i++) {
        ((unsigned char *)value->tensor.data)[i] = (unsigned char)any(256);
    }
    memcpy(value->tensor.shape, shape, (size_t)ndim * sizeof(int64_t));
    value->tensor.strides = strides;
    value->tensor.byte_offset =
        stride > 0 ? (uint64_t)first * paml_dtype_bytes(dtype, 1) : 0;
}

static struct request *
trip_request(struct trip *trip, int64_t rows)
{
    struct request *request = request_new();
    int64_t lengths[2] = {any(10), any(10)}, shape[4];

    for (int i = 0; i < trip->n_arguments; i++) {
        const struct argument *argument = &trip->arguments[i];
        int n_tensors = argument->kind == LIST_OF_TWO ? 2 : 1;

        if (argument->kind == TEXT) {
            set_string(add(request, PAML_STRING), "mean");
            continue;
        }
        for (int32_t axis = 0; axis < argument->ndim; axis++) {
            int k = argument->along[axis];
            shape[axis] = k >= 0 ? lengths[k] : argument->shape[axis];
        }
        shape[argument->batch_axis] = rows;
        request->op.n_arguments++;
        if (argument->kind == LIST_OF_TWO) {
            add_inside(request, PAML_LIST)->count = 2;
        } else if (argument->kind == DICT_BY_INT) {
            add_inside(request, PAML_DICT)->count = 1;
            add_inside(request, PAML_INT)->integer = 5;
        }
        for (int j = 0; j < n_tensors; j++) {
            int64_t *strides = request->strides[request->op.n_inputs];
            set_scattered(add_inside(request, PAML_TENSOR), strides, argument->dtype,
                          argument->ndim, shape);
        }
    }
    return request;
}

/* Joins what a request got and compares it with what it gave. */
static void
check_parts(const struct trip *trip, const struct request *request,
            struct paml_outputs *parts, uint32_t n)
{
    struct paml_error error = {0};
    struct paml_outputs joined;
    const struct paml_value *mask;

    CHECK(paml_batch_join(&trip->batching, parts, n, &joined, &error) == PAML_OK);
    CHECK(gives_back(&joined, request));
    if (trip->batching.mask_argument >= 0) {
        mask = &joined.values[request->op.n_inputs + 1];
        CHECK(mask->kind == PAML_TENSOR && mask->tensor.ndim == 2);
        CHECK(mask->tensor.shape[0] == request->op.rows);
        CHECK(mask->tensor.shape[1] == request->op.lengths[0]);
    }
    paml_outputs_clear(&joined);
}

/* Serves requests that go together, in runs of max_rows at most. */
static void
trip_serve(struct trip *trip, struct paml_batcher *batcher, struct request **requests,
           uint32_t n)
{
    struct paml_outputs parts[REQUESTS_MOST][SLICES_MOST];
    struct paml_slice slices[SLICES_MOST];
    uint32_t n_parts[REQUESTS_MOST] = {0}, owners[SLICES_MOST], n_slices = 0;
    int64_t room = trip->batching.max_rows;

    for (uint32_t i = 0; i < n; i++) {
        struct paml_op *op = &requests[i]->op;

        for (int64_t from = 0, to; from < op->rows; from = to) {
            to = from + room < op->rows ? from + room : op->rows;
            owners[n_slices] = i;
            slices[n_slices++] = (struct paml_slice){.op = op, .from = from, .to = to};
            room -= to - from;
            if (room > 0 && (i + 1 < n || to < op->rows)) {
                continue;
            }
            serve(batcher, &trip->batching, slices, n_slices);
            for (uint32_t s = 0; s < n_slices; s++) {
                uint32_t owner = owners[s];
                paml_outputs_move(&slices[s].outputs, &parts[owner][n_parts[owner]++]);
            }
            n_slices = 0;
            room = trip->batching.max_rows;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        check_parts(trip, requests[i], parts[i], n_parts[i]);
    }
}

static void
whatever_is_asked_comes_back_from_the_identity(void)
{
    struct request *requests[REQUESTS_MOST], *fitting[REQUESTS_MOST];
    struct paml_batcher batcher;
    int served = 0, together = 0;

    paml_batcher_init(&batcher);
    for (int i = 0; i < TRIPS; i++) {
        uint32_t n = 0, n_requests;
        struct trip trip;

        seed = (uint64_t)i; /* a trip that fails can be repeated alone */
        plan(&trip);
        n_requests = 1 + (uint32_t)any(REQUESTS_MOST);
        for (uint32_t r = 0; r < n_requests; r++) {
            requests[r] = trip_request(&trip, 1 + any(7));
            classify(&trip.batching, requests[r]);
            if (requests[r]->op.batch_key != 0 &&
                requests[r]->op.batch_key == requests[0]->op.batch_key) {
                CHECK(paml_batch_same(&trip.batching, &requests[0]->op,
                                      &requests[r]->op));
                fitting[n++] = requests[r];
            }
        }
        if (n > 0) {
            trip_serve(&trip, &batcher, fitting, n);
            served++;
            together += n > 1;
        }
        for (uint32_t r = 0; r < n_requests; r++) {
            request_drop(requests[r]);
        }
    }
    paml_batcher_destroy(&batcher);
    printf("%d trips, %d of several requests\n", served, together);
    CHECK(served > TRIPS / 2 && together > TRIPS / 4);
}

int
main(void)
{
    RUN(whatever_is_asked_comes_back_from_the_identity);
    return 0;
}
