/* A program's variables to and from an ordinary TensorFlow checkpoint, by the
 * operations that a SavedModel brings along for it. */
#ifndef PAML_TF_CHECKPOINT_H
#define PAML_TF_CHECKPOINT_H

#include "program.h"

/* `prefix`: what the names of the checkpoint's files begin with. Runs as any other run
   does beside it: who wants one moment's variables doesn't train meanwhile. On a
   program without a session one on the CPU is made, unless another device's are asked
   for. Sessions don't share variables: those of `device` are saved, or where that is
   NULL the first session's; restored are all sessions', up to the one that fails.
   PAML_OK, PAML_ERR_LOAD (there are no such operations, or no session) or
   PAML_ERR_BACKEND. Thread: any that may wait. */
int paml_tf_save(struct paml_tf_program *program, const DLDevice *device,
                 const char *prefix, struct paml_error *err);
int paml_tf_restore(struct paml_tf_program *program, const char *prefix,
                    struct paml_error *err);

#endif
