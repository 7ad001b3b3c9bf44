/* Waits for many events of the plugin at once, without a thread of its own and without
 * spinning: each event counts down, whoever is last wakes the one that waits, or tells.
 *
 * Owner: one worker. Callbacks come on the plugin's threads.
 */
#ifndef PAML_XLA_LATCH_H
#define PAML_XLA_LATCH_H

#include <pthread.h>

#include "client.h"

struct paml_xla_latch {
    pthread_mutex_t lock; /* of everything below but events */
    pthread_cond_t ready;
    uint32_t pending;
    int code; /* of the first event that failed, or PAML_OK */
    struct paml_error error;
    void (*tell)(void *argument); /* once all are ready; NULL: nobody */
    void *argument;
    struct pjrt_event **events; /* the owner's; destroyed once all are ready */
    uint32_t n_events, capacity;
};

void paml_xla_latch_init(struct paml_xla_latch *latch);
void paml_xla_latch_destroy(struct paml_xla_latch *latch); /* none is pending */

/* Room for so many events between two waits. -1: no memory. */
int paml_xla_latch_reserve(struct paml_xla_latch *latch, uint32_t capacity);

/* Takes the event (NULL: nothing to wait for). There is room for it. */
void paml_xla_latch_add(struct paml_xla_latch *latch, struct pjrt_event *event);

/* Calls `tell`, once, when all that were added are ready, which may be now: on whatever
   thread finds it out, under the latch's lock, and before a wait returns. No more are
   added before that. */
void paml_xla_latch_tell(struct paml_xla_latch *latch, void (*tell)(void *argument),
                         void *argument);

/* Returns when all that were added are ready, and is empty again. PAML_OK, or the code
   of the first that failed. */
int paml_xla_latch_wait(struct paml_xla_latch *latch, struct paml_error *err);

#endif
