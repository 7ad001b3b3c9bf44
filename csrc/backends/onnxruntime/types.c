#include "types.h"

#include <math.h>
#include <string.h>

static const struct {
    DLDataType dtype;
    const char *name;
} types[] = {
    [1] = {{kDLFloat, 32, 1}, "tensor(float)"},
    [2] = {{kDLUInt, 8, 1}, "tensor(uint8)"},
    [3] = {{kDLInt, 8, 1}, "tensor(int8)"},
    [4] = {{kDLUInt, 16, 1}, "tensor(uint16)"},
    [5] = {{kDLInt, 16, 1}, "tensor(int16)"},
    [6] = {{kDLInt, 32, 1}, "tensor(int32)"},
    [7] = {{kDLInt, 64, 1}, "tensor(int64)"},
    [8] = {{PAML_CODE_TEXT, 8 * sizeof(struct paml_string), 1}, "tensor(string)"},
    [9] = {{kDLBool, 8, 1}, "tensor(bool)"},
    [10] = {{kDLFloat, 16, 1}, "tensor(float16)"},
    [11] = {{kDLFloat, 64, 1}, "tensor(double)"},
    [12] = {{kDLUInt, 32, 1}, "tensor(uint32)"},
    [13] = {{kDLUInt, 64, 1}, "tensor(uint64)"},
    [14] = {{kDLComplex, 64, 1}, "tensor(complex64)"},
    [15] = {{kDLComplex, 128, 1}, "tensor(complex128)"},
    [16] = {{kDLBfloat, 16, 1}, "tensor(bfloat16)"},
    [17] = {{kDLFloat8_e4m3fn, 8, 1}, "tensor(float8e4m3fn)"},
    [18] = {{kDLFloat8_e4m3fnuz, 8, 1}, "tensor(float8e4m3fnuz)"},
    [19] = {{kDLFloat8_e5m2, 8, 1}, "tensor(float8e5m2)"},
    [20] = {{kDLFloat8_e5m2fnuz, 8, 1}, "tensor(float8e5m2fnuz)"},
    [21] = {{0, 0, 0}, "tensor(uint4)"},
    [22] = {{0, 0, 0}, "tensor(int4)"},
    [23] = {{0, 0, 0}, "tensor(float4e2m1)"},
};

#define N_TYPES ((int)(sizeof(types) / sizeof(types[0])))

DLDataType
ort_dtype(int type)
{
    return type > 0 && type < N_TYPES ? types[type].dtype : (DLDataType){0, 0, 0};
}

const char *
ort_type_name(int type)
{
    return type > 0 && type < N_TYPES ? types[type].name : "tensor(unknown)";
}

static int
whole_number(const struct paml_value *value, DLDataType dtype, void *to)
{
    int64_t number = value->integer;
    int shift = 64 - dtype.bits;

    if (value->kind == PAML_FLOAT) {
        return -1;
    }
    if (dtype.code == kDLInt
            ? shift > 0 && number != (int64_t)((uint64_t)number << shift) >> shift
            : number < 0 || (shift > 0 && number >> dtype.bits != 0)) {
        return -1;
    }
    memcpy(to, &number, dtype.bits / 8); /* little-endian, as all that it runs on */
    return 0;
}

int
ort_number(const struct paml_value *value, DLDataType dtype, void *to)
{
    double real = value->kind == PAML_FLOAT ? value->real : (double)value->integer;
    float single = (float)real;

    switch (dtype.code << 8 | dtype.bits) {
    case kDLFloat << 8 | 64:
        memcpy(to, &real, sizeof(real));
        return 0;
    case kDLFloat << 8 | 32:
        memcpy(to, &single, sizeof(single));
        return 0;
    case kDLBool << 8 | 8:
        if (value->kind != PAML_BOOL) {
            return -1;
        }
        *(uint8_t *)to = value->integer != 0;
        return 0;
    default:
        return dtype.code == kDLInt || dtype.code == kDLUInt
                   ? whole_number(value, dtype, to)
                   : -1;
    }
}
