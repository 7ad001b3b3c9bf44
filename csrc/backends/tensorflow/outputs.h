/* TensorFlow's tensors as the outputs of a run. */
#ifndef PAML_TF_OUTPUTS_H
#define PAML_TF_OUTPUTS_H

#include "backend.h"
#include "library.h"

/* Makes `value` of a tensor, which is taken over in any case: handed on as it is where
   it is the only one with its memory, copied where an input, a variable, a constant or
   another output has it too. Can be dropped on any thread. */
int paml_tf_output(TF_Tensor *tensor, const char *name, struct paml_value *value,
                   struct paml_error *err);

#endif
