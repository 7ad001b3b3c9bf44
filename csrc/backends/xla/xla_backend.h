/* The backend's table. */
#ifndef PAML_XLA_BACKEND_H
#define PAML_XLA_BACKEND_H

#include "backend.h"

extern struct paml_backend paml_xla_backend;

#endif
