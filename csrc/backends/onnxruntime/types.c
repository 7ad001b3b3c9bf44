#include "types.h"

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
    /* ONNX Runtime itself loads no graph with complex inputs or outputs. */
    [14] = {{0, 0, 0}, "tensor(complex64)"},
    [15] = {{0, 0, 0}, "tensor(complex128)"},
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
