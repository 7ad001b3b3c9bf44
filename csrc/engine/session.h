/* A session: a stream of requests, one after the other, with state that stays native.
 *
 * Some of the model's inputs are state; what the run gives last, as many tensors, or
 * what it gives under their names, is what they are for the session's next request.
 * Requests of one session run in the order of their submission, those of different
 * sessions share runs.
 *
 * Of a session at most one op is in a schedule or in a run: the session is `busy` with
 * it. The others are held, in the session's list; whoever takes the busy op out for
 * good (paml_session_next) puts the next one into the queue that it was pushed to.
 *
 * Owner: reference counted: the maker's, and one for each of its ops. Lock: `lock`
 * guards heir_restarts, busy and the list; it may be taken under a queue's, never the
 * other way round. State belongs to whoever runs the busy op; what it starts from never
 * changes.
 */
#ifndef PAML_SESSION_H
#define PAML_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "backend.h"
#include "op.h"

struct paml_session {
    atomic_int refs;
    uint32_t n_states;
    uint32_t arguments[PAML_STATES_MOST]; /* ascending: which inputs are state */
    char *names[PAML_STATES_MOST];        /* of those inputs; owned; NULL: none */
    struct paml_value initial[PAML_STATES_MOST];
    struct paml_value state[PAML_STATES_MOST]; /* PAML_NONE: as in the beginning */
    bool restart; /* the maker's: the next request starts from the beginning */
    pthread_mutex_t lock;
    bool heir_restarts; /* so does the next op, since the one that was to is gone */
    bool busy;
    struct paml_op *first, *last; /* held: next, previous */
};

/* The tensors and names are copied. NULL: no memory, or more than there may be. */
struct paml_session *paml_session_new(uint32_t n_states, const uint32_t *arguments,
                                      const char *const *names,
                                      const struct paml_value *initial);
void paml_session_unref(struct paml_session *session);

/* True: the op may be scheduled, and the session is busy with it. False: it is held. */
bool paml_session_enter(struct paml_session *session, struct paml_op *op);
/* Takes a held op out. False: paml_session_next() has. */
bool paml_session_leave(struct paml_session *session, struct paml_op *op);
/* The busy op is through, whose `fresh` that is (it is cleared by a run): the next one,
   which the session is busy with from now on, or NULL. It stays in its queue's books as
   held. */
struct paml_op *paml_session_next(struct paml_session *session, bool fresh);

/* Before a run: the op's inputs get the state. After it: they get back what they had.
 */
void paml_session_lend(struct paml_op *op);
void paml_session_take_back(struct paml_op *op);
/* The last outputs become the state; of a dict those named as the inputs that they are
   to be. State is kept in host memory, whichever device gave it: the next request may
   be one of a batch, or be another device's, and the device may be lost. PAML_OK, or
   PAML_ERR_BACKEND: they can't be. */
int paml_session_absorb(struct paml_session *session, struct paml_outputs *outputs,
                        const struct paml_backend *backend, void *instance,
                        struct paml_error *err);

#endif
