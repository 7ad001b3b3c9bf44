#include "numbers.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "dtypes.h"

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

int
paml_tf_number(const struct paml_value *value, int type, void *to, size_t *size)
{
    DLDataType dtype = paml_tf_dtype_of(type);
    bool is_float = value->kind == PAML_FLOAT;
    double real = is_float ? value->real : (double)value->integer;
    uint64_t bits;
    float single = (float)real;

    *size = dtype.bits / 8;
    memset(to, 0, PAML_TF_NUMBER_MOST);
    switch (dtype.code) {
    case kDLBool:
        *(char *)to = value->integer != 0;
        return value->kind == PAML_BOOL ? 0 : -1;
    case kDLInt:
    case kDLUInt:
        return is_float ? -1 : write_integer(value->integer, dtype, to);
    case kDLFloat:
    case kDLComplex:
        if (dtype.bits == 16) {
            bits = narrow(real, 5, 10);
            memcpy(to, &bits, 2);
        } else if (dtype.bits == (dtype.code == kDLFloat ? 32 : 64)) {
            memcpy(to, &single, sizeof(single));
        } else {
            memcpy(to, &real, sizeof(real));
        }
        return 0;
    case kDLBfloat:
        bits = narrow(real, 8, 7);
        memcpy(to, &bits, 2);
        return 0;
    default:
        return -1;
    }
}
