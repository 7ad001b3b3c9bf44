#include "dtypes.h"

static const struct row {
    int type;
    DLDataType dtype;
    const char *name;
} rows[] = {
    {1, {kDLFloat, 32, 1}, "DT_FLOAT"},
    {2, {kDLFloat, 64, 1}, "DT_DOUBLE"},
    {3, {kDLInt, 32, 1}, "DT_INT32"},
    {4, {kDLUInt, 8, 1}, "DT_UINT8"},
    {5, {kDLInt, 16, 1}, "DT_INT16"},
    {6, {kDLInt, 8, 1}, "DT_INT8"},
    {7, {PAML_CODE_BYTES, 8 * sizeof(struct paml_string), 1}, "DT_STRING"},
    {8, {kDLComplex, 64, 1}, "DT_COMPLEX64"},
    {9, {kDLInt, 64, 1}, "DT_INT64"},
    {10, {kDLBool, 8, 1}, "DT_BOOL"},
    {14, {kDLBfloat, 16, 1}, "DT_BFLOAT16"},
    {17, {kDLUInt, 16, 1}, "DT_UINT16"},
    {18, {kDLComplex, 128, 1}, "DT_COMPLEX128"},
    {19, {kDLFloat, 16, 1}, "DT_HALF"},
    {22, {kDLUInt, 32, 1}, "DT_UINT32"},
    {23, {kDLUInt, 64, 1}, "DT_UINT64"},
    {24, {kDLFloat8_e5m2, 8, 1}, "DT_FLOAT8_E5M2"},
    {25, {kDLFloat8_e4m3fn, 8, 1}, "DT_FLOAT8_E4M3FN"},
    {26, {kDLFloat8_e4m3fnuz, 8, 1}, "DT_FLOAT8_E4M3FNUZ"},
    {27, {kDLFloat8_e4m3b11fnuz, 8, 1}, "DT_FLOAT8_E4M3B11FNUZ"},
    {28, {kDLFloat8_e5m2fnuz, 8, 1}, "DT_FLOAT8_E5M2FNUZ"},
    /* Known by name, so that a refusal can say what it refuses. */
    {11, {0}, "DT_QINT8"},
    {12, {0}, "DT_QUINT8"},
    {13, {0}, "DT_QINT32"},
    {15, {0}, "DT_QINT16"},
    {16, {0}, "DT_QUINT16"},
    {20, {0}, "DT_RESOURCE"},
    {21, {0}, "DT_VARIANT"},
    {29, {0}, "DT_INT4"},
    {30, {0}, "DT_UINT4"},
};

#define N_ROWS (sizeof(rows) / sizeof(rows[0]))

int
paml_tf_type_of(DLDataType dtype)
{
    if (paml_dtype_is_strings(dtype)) {
        return PAML_TF_STRING;
    }
    for (size_t i = 0; i < N_ROWS; i++) {
        if (rows[i].dtype.code == dtype.code && rows[i].dtype.bits == dtype.bits &&
            rows[i].dtype.lanes == dtype.lanes && dtype.bits != 0) {
            return rows[i].type;
        }
    }
    return 0;
}

DLDataType
paml_tf_dtype_of(int type)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        if (rows[i].type == type) {
            return rows[i].dtype;
        }
    }
    return (DLDataType){0};
}

const char *
paml_tf_type_name(int type)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        if (rows[i].type == type) {
            return rows[i].name;
        }
    }
    return "DT_?";
}
