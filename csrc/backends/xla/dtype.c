#include "dtype.h"

#include <string.h>

static const struct paml_xla_dtype dtypes[] = {
    {"bool", PJRT_PRED, {kDLBool, 8, 1}},
    {"int8", PJRT_S8, {kDLInt, 8, 1}},
    {"int16", PJRT_S16, {kDLInt, 16, 1}},
    {"int32", PJRT_S32, {kDLInt, 32, 1}},
    {"int64", PJRT_S64, {kDLInt, 64, 1}},
    {"uint8", PJRT_U8, {kDLUInt, 8, 1}},
    {"uint16", PJRT_U16, {kDLUInt, 16, 1}},
    {"uint32", PJRT_U32, {kDLUInt, 32, 1}},
    {"uint64", PJRT_U64, {kDLUInt, 64, 1}},
    {"float16", PJRT_F16, {kDLFloat, 16, 1}},
    {"float32", PJRT_F32, {kDLFloat, 32, 1}},
    {"float64", PJRT_F64, {kDLFloat, 64, 1}},
    {"bfloat16", PJRT_BF16, {kDLBfloat, 16, 1}},
    {"complex64", PJRT_C64, {kDLComplex, 64, 1}},
    {"complex128", PJRT_C128, {kDLComplex, 128, 1}},
};

const struct paml_xla_dtype *
paml_xla_dtype_find(const char *name)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            return &dtypes[i];
        }
    }
    return NULL;
}

const char *
paml_xla_dtype_name(DLDataType dtype)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (memcmp(&dtypes[i].dlpack, &dtype, sizeof(dtype)) == 0) {
            return dtypes[i].name;
        }
    }
    return "one that XLA doesn't have";
}
