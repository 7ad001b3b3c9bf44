/* Arrays on their way to a device and back. */
#ifndef PAML_XLA_BUFFERS_H
#define PAML_XLA_BUFFERS_H

#include "bundle.h"
#include "latch.h"

#define PAML_XLA_ALIGNMENT 64 /* what XLA needs to use memory where it lies */

/* Memory that is used again and again; grows only. Owner: a run's set. */
struct paml_xla_staging {
    void *data;
    size_t capacity;
};

/* NULL: memory ran out. */
void *paml_xla_staging_reserve(struct paml_xla_staging *staging, size_t bytes);

/* The rows of a run that one execution computes. */
struct paml_xla_part {
    uint32_t program; /* which executable */
    int64_t from, rows, bucket;
    int64_t before; /* rows that the parts before it compute, padding included */
    int64_t in_all; /* and all parts together */
};

/* The part's rows of an input as C-contiguous memory with room for `bucket` rows, the
   rest of them zeros: its own memory where that will do, else a copy, in a place of its
   own in `staging`. Where it has no batch, all of it. NULL: memory ran out. */
const void *paml_xla_rows(const struct paml_xla_array *array, const DLTensor *tensor,
                          const struct paml_xla_part *part,
                          struct paml_xla_staging *staging);

/* A buffer on the device. `lasts`: the memory is left alone until the buffer is
   destroyed and the latch is through; else it is copied before this returns. */
int paml_xla_buffer_new(const struct paml_xla_array *array, const void *data,
                        int64_t rows, bool lasts, struct pjrt_device *device,
                        struct paml_xla_latch *latch, struct pjrt_buffer **buffer,
                        struct paml_error *err);
/* NULL does nothing. Runs that use it go on. */
void paml_xla_buffer_destroy(struct pjrt_buffer *buffer);

/* Begins to copy a buffer to `to`, C-contiguous, which must last until the latch is
   through. */
int paml_xla_buffer_fetch(struct pjrt_buffer *buffer,
                          const struct paml_xla_array *array, int64_t rows, void *to,
                          struct paml_xla_latch *latch, struct paml_error *err);

/* An output with room for `rows` rows, uninitialised; it owns itself. -1: no memory. */
int paml_xla_output_new(const struct paml_xla_array *array, int64_t rows,
                        struct paml_value *value);

#endif
