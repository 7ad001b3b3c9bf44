/* What TensorFlow says went wrong, in the project's words. */
#ifndef PAML_TF_ERRORS_H
#define PAML_TF_ERRORS_H

#include "library.h"

/* Fills `err` from a status that isn't OK. `code` is what it is unless the status says
   better (memory). Returns the code. */
int paml_tf_fail(const TF_Status *status, int code, const char *what,
                 struct paml_error *err);

#endif
