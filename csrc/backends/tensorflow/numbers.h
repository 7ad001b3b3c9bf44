/* A Python number as an element of a tensor. */
#ifndef PAML_TF_NUMBERS_H
#define PAML_TF_NUMBERS_H

#include "value.h"

#define PAML_TF_NUMBER_MOST 16

/* Writes the value (a bool, an int or a float) as one element of TensorFlow's type,
   PAML_TF_NUMBER_MOST bytes at most. -1: the type doesn't hold it. */
int paml_tf_number(const struct paml_value *value, int type, void *to, size_t *size);

#endif
