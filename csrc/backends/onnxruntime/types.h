/* ONNX's element types and DLPack's. */
#ifndef PAML_ORT_TYPES_H
#define PAML_ORT_TYPES_H

#include "value.h"

#define ORT_STRING 8 /* ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING */

/* The dtype of an ONNX element type, of strings PAML_CODE_TEXT's; bits == 0: elements
   that aren't whole bytes, or unknown ones. */
DLDataType ort_dtype(int type);

/* "tensor(float)", as ONNX Runtime calls them. */
const char *ort_type_name(int type);

/* The one element of a number (PAML_BOOL, INT or FLOAT) in that type, written to `to`,
   which has 8 bytes. 0, or -1: it has no such value. */
int ort_number(const struct paml_value *value, DLDataType dtype, void *to);

#endif
