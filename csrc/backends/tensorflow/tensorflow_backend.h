/* The table of the tensorflow backend. Its options are a struct paml_tf_program that
 * several models share, or nothing. */
#ifndef PAML_TENSORFLOW_BACKEND_H
#define PAML_TENSORFLOW_BACKEND_H

#include "backend.h"

extern struct paml_backend paml_tensorflow_backend;

#endif
