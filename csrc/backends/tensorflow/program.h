/* A SavedModel that is loaded: what it says, and its sessions.
 *
 * A session holds the variables, so whoever is to see the same ones shares it. A
 * program has one for each device that it was opened on, and all its instances run
 * there, at once if need be: with the configuration used here TensorFlow runs the
 * operations in the thread that calls. A program belongs to one model, or, made by
 * paml_tf_shared_new, to as many as are given it: one that serves and one that trains.
 *
 * Owner: counted references. The lock guards the reading and the list of sessions, and
 * is held while TensorFlow loads: whoever comes meanwhile wants just that session.
 * What it has read, and a session once it is in the list, don't change until the last
 * reference goes.
 */
#ifndef PAML_TF_PROGRAM_H
#define PAML_TF_PROGRAM_H

#include <pthread.h>
#include <stdatomic.h>

#include "library.h"
#include "saved_model.h"

struct paml_tf_session {
    DLDevice device;
    TF_Graph *graph;
    TF_Session *session;
    struct paml_tf_session *next;
};

struct paml_tf_program {
    atomic_uint refs;
    pthread_mutex_t lock;
    struct paml_tf_saved_model *model; /* NULL: not read yet */
    struct paml_tf_session *sessions;
    char folder[]; /* terminated */
};

/* NULL: memory ran out. */
struct paml_tf_program *paml_tf_program_new(const char *folder);
void paml_tf_program_ref(struct paml_tf_program *program);
void paml_tf_program_unref(struct paml_tf_program *program);

/* What the SavedModel says. NULL: see `err`. Thread: worker, or any that may wait. */
const struct paml_tf_saved_model *paml_tf_program_read(struct paml_tf_program *program,
                                                       struct paml_error *err);

/* The session on that device, loaded where need be, with so many intra-op threads (the
   first that asks decides). NULL: see `err`. Thread: as paml_tf_program_read. */
const struct paml_tf_session *paml_tf_program_session(struct paml_tf_program *program,
                                                      DLDevice device, int threads,
                                                      struct paml_error *err);

/* Where in the session's graph a place is. PAML_OK, or PAML_ERR_LOAD. */
int paml_tf_session_find(const struct paml_tf_session *session,
                         const struct paml_tf_place *place, TF_Output *output,
                         struct paml_error *err);

#endif
