/* A Python number as an element of a tensor: for backends whose scalar inputs are
 * tensors without axes. */
#ifndef PAML_NUMBERS_H
#define PAML_NUMBERS_H

#include "value.h"

/* What an element takes at most, in bytes. */
#define PAML_NUMBER_MOST 16

/* The PAML_KIND_BITs of the numbers that paml_number_write() takes for an input whose
   elements are of that type. 0: none. */
uint32_t paml_number_kinds(DLDataType dtype);

/* Writes the value (a bool, an int or a float) as one element, paml_dtype_bytes() of
   it; a float as the nearest there is. -1: the type doesn't hold it. */
int paml_number_write(const struct paml_value *value, DLDataType dtype, void *to);

#endif
