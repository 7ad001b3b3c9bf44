/* TensorFlow's element types and DLPack's. */
#ifndef PAML_TF_DTYPES_H
#define PAML_TF_DTYPES_H

#include "value.h"

/* Of TF_DataType. */
enum { PAML_TF_FLOAT = 1, PAML_TF_STRING = 7 };

/* TensorFlow's number for elements of a tensor; 0: it has none. */
int paml_tf_type_of(DLDataType dtype);
/* The DLPack type of TensorFlow's number; 0 bits: there is none, as for resources. */
DLDataType paml_tf_dtype_of(int type);
/* "DT_FLOAT", …, "DT_?" */
const char *paml_tf_type_name(int type);

#endif
