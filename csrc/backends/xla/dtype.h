/* The element types that XLA and DLPack have in common. */
#ifndef PAML_XLA_DTYPE_H
#define PAML_XLA_DTYPE_H

#include "pjrt.h"
#include "value.h"

struct paml_xla_dtype {
    const char *name; /* as numpy says it */
    enum pjrt_type type;
    DLDataType dlpack;
};

/* NULL: there is none such. */
const struct paml_xla_dtype *paml_xla_dtype_find(const char *name);

/* For people. */
const char *paml_xla_dtype_name(DLDataType dtype);

static inline size_t
paml_xla_dtype_size(const struct paml_xla_dtype *dtype)
{
    return dtype->dlpack.bits / 8u;
}

#endif
