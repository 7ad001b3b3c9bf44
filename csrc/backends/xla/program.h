/* A loaded bundle: compiled for each batch size, described for the engine. */
#ifndef PAML_XLA_PROGRAM_H
#define PAML_XLA_PROGRAM_H

#include <stdatomic.h>

#include "backend.h"
#include "bundle.h"
#include "client.h"

/* Owner: counted references, of models and of what they are made of. Read-only once
   loaded, so that any instance may use it. */
struct paml_xla_program {
    atomic_uint refs;
    struct paml_xla_bundle bundle;
    struct pjrt_loaded *
        *executables; /* one for each bucket; one where there are none */
    uint32_t n_executables;
    struct paml_entry entry;
    struct paml_spec *specs; /* inputs, then outputs */
};

/* Reads, checks and compiles; the caller's reference. Thread: worker; takes as long as
   compiling does. */
int paml_xla_program_load(const struct paml_load_spec *spec,
                          struct paml_xla_program **program, struct paml_error *err);

/* Whether it is what the load asks for: its entry. */
int paml_xla_program_check(const struct paml_xla_program *program,
                           const struct paml_load_spec *spec, struct paml_error *err);

/* Thread: any. */
void paml_xla_program_ref(struct paml_xla_program *program);
void paml_xla_program_unref(struct paml_xla_program *program);

#endif
