/* Tensors of strings on their way in. */
#ifndef PAML_TF_STRINGS_IN_H
#define PAML_TF_STRINGS_IN_H

#include "library.h"
#include "value.h"

/* A copy of a tensor of strings (value.h), which needs nothing of it afterwards. NULL:
   memory ran out. */
TF_Tensor *paml_tf_strings_in(const DLTensor *tensor);

#endif
