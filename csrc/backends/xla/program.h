/* A loaded bundle: compiled for each batch size, described for the engine. */
#ifndef PAML_XLA_PROGRAM_H
#define PAML_XLA_PROGRAM_H

#include "backend.h"
#include "bundle.h"
#include "client.h"

/* Owner: the model. Read-only once loaded, so that any instance may use it. */
struct paml_xla_program {
    struct paml_xla_bundle bundle;
    struct pjrt_loaded *
        *executables; /* one for each bucket; one where there are none */
    uint32_t n_executables;
    struct paml_entry entry;
    struct paml_spec *specs; /* inputs, then outputs */
};

/* Reads, checks and compiles. Thread: worker; takes as long as compiling does. */
int paml_xla_program_load(const struct paml_load_spec *spec,
                          struct paml_xla_program **program, struct paml_error *err);
void paml_xla_program_unload(struct paml_xla_program *program);

#endif
