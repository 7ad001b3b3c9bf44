/* A session's configuration, as the bytes of a ConfigProto. */
#ifndef PAML_TF_CONFIG_H
#define PAML_TF_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "value.h"

#define PAML_TF_CONFIG_MOST 64

/* Writes at most PAML_TF_CONFIG_MOST bytes and returns how many. `threads`: intra-op,
   the caller's included. */
size_t paml_tf_config(DLDevice device, int threads, uint8_t *bytes);

#endif
