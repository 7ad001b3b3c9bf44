#include "axes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int
paml_padded_input(const struct paml_batching *batching, uint32_t argument, int32_t axis)
{
    for (uint32_t k = 0; k < batching->n_padded; k++) {
        const struct paml_padded_axis *padded = &batching->padded[k];
        for (uint32_t i = 0; i < padded->n_inputs; i++) {
            if (padded->inputs[i].position == argument &&
                padded->inputs[i].axis == axis) {
                return (int)k;
            }
        }
    }
    return -1;
}

int64_t
paml_padded_length(const struct paml_padded_axis *padded, int64_t length)
{
    if (padded->n_buckets == 0) {
        return length;
    }
    for (uint32_t i = 0; i < padded->n_buckets; i++) {
        if (padded->buckets[i] >= length) {
            return padded->buckets[i];
        }
    }
    return -1;
}

static bool
has_axis(const struct paml_padded_axis *padded, uint32_t position)
{
    for (uint32_t i = 0; i < padded->n_inputs; i++) {
        if (padded->inputs[i].position == position) {
            return true;
        }
    }
    return false;
}

/* Whether an input has the axis, and the other one not. */
static bool
is_apart(const struct paml_padded_axis *padded, const struct paml_padded_axis *other)
{
    for (uint32_t i = 0; i < padded->n_inputs; i++) {
        if (!has_axis(other, padded->inputs[i].position)) {
            return true;
        }
    }
    return false;
}

int64_t
paml_padded_cells(const struct paml_batching *batching, const int64_t *lengths)
{
    const struct paml_padded_axis *padded = batching->padded;
    int64_t first = batching->n_padded > 0 && lengths[0] > 0 ? lengths[0] : 0;
    int64_t second = batching->n_padded > 1 && lengths[1] > 0 ? lengths[1] : 0;
    int64_t cells = 0;

    if (first == 0 || second == 0) {
        return first + second;
    }
    for (uint32_t i = 0; i < padded[0].n_inputs && cells == 0; i++) {
        if (has_axis(&padded[1], padded[0].inputs[i].position)) {
            cells = first * second;
        }
    }
    cells += is_apart(&padded[0], &padded[1]) ? first : 0;
    cells += is_apart(&padded[1], &padded[0]) ? second : 0;
    return cells;
}

/* --- cutting and laying down --- */

void
paml_dense_strides(int32_t ndim, const int64_t *shape, int64_t *strides)
{
    int64_t stride = 1;

    for (int32_t i = ndim - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= shape[i];
    }
}

DLTensor
paml_tensor_narrow(const DLTensor *tensor, int32_t axis, int64_t from, int64_t to,
                   int64_t *dims)
{
    size_t bytes = (size_t)tensor->ndim * sizeof(int64_t);
    DLTensor view = *tensor;
    int64_t offset;

    view.shape = dims;
    view.strides = dims + tensor->ndim;
    memcpy(view.shape, tensor->shape, bytes);
    if (tensor->strides != NULL) {
        memcpy(view.strides, tensor->strides, bytes);
    } else {
        paml_dense_strides(tensor->ndim, tensor->shape, view.strides);
    }
    view.shape[axis] = to - from;
    offset = from * view.strides[axis] * (int64_t)paml_dtype_bytes(tensor->dtype, 1);
    if (offset >= 0) {
        view.byte_offset += (uint64_t)offset;
    } else {
        view.data = (char *)view.data + offset; /* byte_offset has no sign */
    }
    return view;
}

void
paml_tensor_place(const DLTensor *from, const DLTensor *whole, int32_t axis,
                  int64_t row)
{
    int64_t strides[PAML_MAX_RANK];
    DLTensor to = *whole;

    paml_dense_strides(whole->ndim, whole->shape, strides);
    to.shape = from->shape;
    to.strides = strides;
    to.byte_offset +=
        (uint64_t)(row * strides[axis]) * (uint64_t)paml_dtype_bytes(whole->dtype, 1);
    paml_tensor_copy(from, &to);
}

bool
paml_dtype_is_bytes(DLDataType dtype)
{
    return (uint32_t)dtype.bits * dtype.lanes % 8 == 0;
}

/* --- padding --- */

#define ELEMENT_MOST 16 /* bytes; complex128 */

/* A number in an IEEE format of that make, rounded to nearest, ties to even. */
static uint32_t
narrow_float(double value, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, exponent;
    uint32_t infinity = (uint32_t)((1 << exponent_bits) - 1) << mantissa_bits;
    uint32_t sign = signbit(value) ? 1u << (exponent_bits + mantissa_bits) : 0;
    uint32_t encoded, units;
    double exact;

    if (isnan(value)) {
        return sign | infinity | 1u << (mantissa_bits - 1);
    }
    frexp(value, &exponent);
    exponent -= 1; /* of the leading bit */
    if (isinf(value) || exponent > bias) {
        return sign | infinity;
    }
    if (exponent < 1 - bias) {
        exponent = 1 - bias; /* which subnormals share */
    }
    /* In units of the last place. One too many carries into the exponent's bits, as
       the leading bit of a normal number does: it counts as one of their units. */
    exact = ldexp(fabs(value), mantissa_bits - exponent);
    units = (uint32_t)exact;
    exact -= units;
    units += exact > 0.5 || (exact == 0.5 && units % 2 == 1);
    encoded = ((uint32_t)(exponent + bias - 1) << mantissa_bits) + units;
    return sign | (encoded < infinity ? encoded : infinity);
}

static bool
float_element(double value, int bits, void *to)
{
    uint16_t half;
    float single;

    switch (bits) {
    case 16:
        half = (uint16_t)narrow_float(value, 5, 10);
        memcpy(to, &half, sizeof(half));
        return true;
    case 32:
        single = (float)value;
        memcpy(to, &single, sizeof(single));
        return true;
    case 64:
        memcpy(to, &value, sizeof(value));
        return true;
    default:
        return false;
    }
}

/* Whole numbers within the range only: anything else would be a surprise. */
static bool
integer_element(double value, int bits, bool is_signed, void *to)
{
    double end = ldexp(1, is_signed ? bits - 1 : bits);
    uint64_t whole;

    if (bits > 64 || !(value < end && value >= (is_signed ? -end : 0))) {
        return false;
    }
    whole = is_signed ? (uint64_t)(int64_t)value : (uint64_t)value;
    if ((is_signed ? (double)(int64_t)whole : (double)whole) != value) {
        return false;
    }
    switch (bits) {
    case 8:
        memcpy(to, &(uint8_t){(uint8_t)whole}, 1);
        return true;
    case 16:
        memcpy(to, &(uint16_t){(uint16_t)whole}, 2);
        return true;
    case 32:
        memcpy(to, &(uint32_t){(uint32_t)whole}, 4);
        return true;
    case 64:
        memcpy(to, &whole, 8);
        return true;
    default:
        return false;
    }
}

/* One element of the dtype with that value; false: it has none. */
static bool
pad_element(DLDataType dtype, double value, void *to)
{
    uint16_t half;

    memset(to, 0, ELEMENT_MOST);
    if (dtype.lanes != 1) {
        return false;
    }
    switch (dtype.code) {
    case kDLInt:
    case kDLUInt:
        return integer_element(value, dtype.bits, dtype.code == kDLInt, to);
    case kDLFloat:
        return float_element(value, dtype.bits, to);
    case kDLBfloat:
        half = (uint16_t)narrow_float(value, 8, 7);
        memcpy(to, &half, sizeof(half));
        return dtype.bits == 16;
    case kDLComplex:
        return float_element(value, dtype.bits / 2, to);
    case kDLBool:
        memset(to, value != 0, 1);
        return dtype.bits == 8;
    default:
        return false;
    }
}

bool
paml_pad_holds(DLDataType dtype, double fill)
{
    char element[ELEMENT_MOST];

    return fill == 0 || pad_element(dtype, fill, element);
}

void
paml_pad(void *to, DLDataType dtype, double fill, int64_t count)
{
    size_t size = paml_dtype_bytes(dtype, count), done = paml_dtype_bytes(dtype, 1);
    char element[ELEMENT_MOST];

    if (count == 0) {
        return;
    }
    if (fill == 0) { /* zero bits are zero in every dtype, known or not */
        memset(to, 0, size);
        return;
    }
    pad_element(dtype, fill, element);
    memcpy(to, element, done);
    while (done < size) {
        size_t more = done < size - done ? done : size - done;
        memcpy((char *)to + done, to, more);
        done += more;
    }
}

const char *
paml_shape_text(const DLTensor *tensor, char *text, size_t size)
{
    size_t length = (size_t)snprintf(text, size, "[");

    for (int32_t i = 0; i < tensor->ndim && length < size; i++) {
        length += (size_t)snprintf(text + length, size - length, "%s%lld",
                                   i > 0 ? ", " : "", (long long)tensor->shape[i]);
    }
    if (length < size) {
        snprintf(text + length, size - length, "]");
    }
    return text;
}

const char *
paml_input_text(const struct paml_batching *batching, uint32_t argument, char *text,
                size_t size)
{
    const char *name = argument < batching->n_names ? batching->names[argument] : NULL;

    if (name != NULL) {
        snprintf(text, size, "'%s'", name);
    } else {
        snprintf(text, size, "%u", argument);
    }
    return text;
}
