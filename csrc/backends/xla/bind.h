/* A run's inputs, checked against the bundle, as the leaves of its structures. */
#ifndef PAML_XLA_BIND_H
#define PAML_XLA_BIND_H

#include "backend.h"
#include "bundle.h"

/* Fills `leaves`, one for each of the bundle's inputs, and finds how many rows there
   are (1 where nothing has a batch). PAML_OK or PAML_ERR_INPUT. Thread: worker. */
int paml_xla_bind(const struct paml_xla_bundle *bundle, const struct paml_run *run,
                  const struct paml_value **leaves, int64_t *rows,
                  struct paml_error *err);

/* A number as an element of that type, written to `to`. PAML_OK or PAML_ERR_INPUT. */
int paml_xla_write_number(const struct paml_xla_dtype *dtype,
                          const struct paml_value *value, void *to,
                          struct paml_error *err);

#endif
