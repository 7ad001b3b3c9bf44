/* A bundle's file: a zip archive whose members are stored, not compressed, so that what
 * is in them can be used where it lies.
 *
 * Owner: one program. Read-only once open; valid until closed.
 */
#ifndef PAML_XLA_ARCHIVE_H
#define PAML_XLA_ARCHIVE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct paml_xla_archive {
    unsigned char *data; /* the whole file, 64-byte aligned */
    size_t size;
    size_t directory, directory_size;
    uint32_t n_members;
};

/* PAML_OK, or PAML_ERR_LOAD or PAML_ERR_MEMORY, with nothing to close. */
int paml_xla_archive_open(struct paml_xla_archive *archive, const char *path,
                          struct paml_error *err);
void paml_xla_archive_close(struct paml_xla_archive *archive);

/* The content of a member, its checksum verified. PAML_ERR_LOAD: there is no such, or
   it is damaged. */
int paml_xla_archive_find(const struct paml_xla_archive *archive, const char *name,
                          const unsigned char **data, size_t *size,
                          struct paml_error *err);

#endif
