/* ONNX's element types and DLPack's. */
#ifndef PAML_ORT_TYPES_H
#define PAML_ORT_TYPES_H

#include "value.h"

#define ORT_STRING 8 /* ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING */

/* The dtype of an ONNX element type, of strings PAML_CODE_TEXT's; bits == 0: one
   that isn't served. */
DLDataType ort_dtype(int type);

/* "tensor(float)", as ONNX Runtime calls them. */
const char *ort_type_name(int type);

#endif
