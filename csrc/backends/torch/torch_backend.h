/* The torch backend's table, for the module that exports it. */
#ifndef PAML_TORCH_BACKEND_H
#define PAML_TORCH_BACKEND_H

#include "backend.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const struct paml_backend paml_torch_backend;

#ifdef __cplusplus
}
#endif
#endif
