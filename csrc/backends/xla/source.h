/* What a model is made of besides its file: the program of another model of the same
 * bundle, which need not be compiled again, and arrays in place of those that the
 * bundle holds. The options of a load.
 *
 * Owner: whoever made it (module.c's capsule), for as long as the model; one model is
 * made of it. Threads: the worker that loads the model sets `program`, anybody reads
 * it; all else is read-only.
 */
#ifndef PAML_XLA_SOURCE_H
#define PAML_XLA_SOURCE_H

#include <stdatomic.h>
#include <stddef.h>

#include "program.h"

struct paml_xla_bytes {
    const void *data;
    size_t size;
};

/* Arrays of one folder of the bundle. */
struct paml_xla_arrays {
    const struct paml_xla_bytes *items; /* NULL: the bundle's own */
    uint32_t count;
};

struct paml_xla_source {
    /* A reference; NULL: not loaded yet. Release pairs with the acquire of whoever
       makes a source for another model, for what the program points to. */
    _Atomic(struct paml_xla_program *) program;
    struct paml_xla_arrays weights, state;
};

/* The program that the source has, or one that is compiled now and that it has then: a
   reference for the caller. Thread: worker. `source`: may be NULL. */
int paml_xla_source_program(struct paml_xla_source *source,
                            const struct paml_load_spec *spec,
                            struct paml_xla_program **program, struct paml_error *err);

/* An array that belongs to the folder of the bundle: the source's or the bundle's, of
   the size that it must have. PAML_ERR_LOAD: it hasn't. */
int paml_xla_source_array(const struct paml_xla_arrays *arrays,
                          const struct paml_xla_bundle *bundle, const char *folder,
                          uint32_t index, const struct paml_xla_array *array,
                          const void **data, struct paml_error *err);

#endif
