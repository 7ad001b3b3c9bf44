#include "numbers.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* The nearest number of `exponent` and `mantissa` bits, ties to even. Finite numbers
   that are too large become infinite, as a cast does it. */
static uint64_t
narrow(double real, int exponent, int mantissa)
{
    uint64_t sign = signbit(real) ? (uint64_t)1 << (exponent + mantissa) : 0;
    uint64_t infinity = (((uint64_t)1 << exponent) - 1) << mantissa;
    int bias = (1 << (exponent - 1)) - 1, power;
    double fraction, scaled;

    if (isnan(real)) {
        return sign | infinity | (uint64_t)1 << (mantissa - 1);
    }
    if (isinf(real)) {
        return sign | infinity;
    }
    fraction = frexp(fabs(real), &power); /* 0.5 <= fraction < 1 */
    if (fraction == 0) {
        return sign;
    }
    power--;
    if (power < 1 - bias) {
        power = 1 - bias; /* subnormal */
    }
    /* Rounded in units of the last place; a carry moves on into the exponent. */
    scaled = nearbyint(ldexp(fabs(real), mantissa - power));
    if (power > bias) {
        return sign | infinity;
    }
    {
        uint64_t units = (uint64_t)scaled, one = (uint64_t)1 << mantissa, bits;
        bits = units < one ? units
                           : ((uint64_t)(power + bias) << mantissa) + (units - one);
        return sign | (bits < infinity ? bits : infinity);
    }
}

static int
write_integer(int64_t number, DLDataType dtype, void *to)
{
    int bits = dtype.bits;

    if (dtype.code == kDLUInt) {
        if (number < 0 || (bits < 64 && number >> bits != 0)) {
            return -1;
        }
    } else if (bits < 64 && (number < -((int64_t)1 << (bits - 1)) ||
                             number >= (int64_t)1 << (bits - 1))) {
        return -1;
    }
    memcpy(to, &number, (size_t)bits / 8); /* little-endian, as all we run on */
    return 0;
}

uint32_t
paml_number_kinds(DLDataType dtype)
{
    const uint32_t integers = PAML_KIND_BIT(PAML_INT) | PAML_KIND_BIT(PAML_BOOL);

    switch (dtype.code) {
    case kDLBool:
        return PAML_KIND_BIT(PAML_BOOL);
    case kDLInt:
    case kDLUInt:
        return integers;
    case kDLFloat:
    case kDLBfloat:
    case kDLComplex:
        return integers | PAML_KIND_BIT(PAML_FLOAT);
    default: /* the floats of 8 bits, strings */
        return 0;
    }
}

int
paml_number_write(const struct paml_value *value, DLDataType dtype, void *to)
{
    bool is_float = value->kind == PAML_FLOAT;
    double real = is_float ? value->real : (double)value->integer;
    double pair[2] = {real, 0}; /* of a complex number */
    float single[2] = {(float)real, 0};
    uint64_t bits;

    if (!(paml_number_kinds(dtype) & PAML_KIND_BIT(value->kind))) {
        return -1;
    }
    switch (dtype.code << 8 | dtype.bits) {
    case kDLBool << 8 | 8:
        *(uint8_t *)to = value->integer != 0;
        return 0;
    case kDLFloat << 8 | 16:
        bits = narrow(real, 5, 10);
        memcpy(to, &bits, 2); /* little-endian, as all we run on */
        return 0;
    case kDLBfloat << 8 | 16:
        bits = narrow(real, 8, 7);
        memcpy(to, &bits, 2);
        return 0;
    case kDLFloat << 8 | 32:
        memcpy(to, single, sizeof(single[0]));
        return 0;
    case kDLFloat << 8 | 64:
        memcpy(to, pair, sizeof(pair[0]));
        return 0;
    case kDLComplex << 8 | 64:
        memcpy(to, single, sizeof(single));
        return 0;
    case kDLComplex << 8 | 128:
        memcpy(to, pair, sizeof(pair));
        return 0;
    default:
        return write_integer(value->integer, dtype, to);
    }
}
