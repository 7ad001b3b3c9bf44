/* Waits for many events of the plugin at once, without a thread of its own and without
 * spinning: each event counts down, whoever is last wakes the one that waits.
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
    struct pjrt_event **events; /* the owner's; destroyed once all are ready */
    uint32_t n_events, capacity;
};

void paml_xla_latch_init(struct paml_xla_latch *latch, struct pjrt_event **events,
                         uint32_t capacity);
void paml_xla_latch_destroy(struct paml_xla_latch *latch);

/* Takes the event (NULL: nothing to wait for). At most `capacity` before a wait. */
void paml_xla_latch_add(struct paml_xla_latch *latch, struct pjrt_event *event);

/* Returns when all that were added are ready, and is empty again. PAML_OK, or the code
   of the first that failed. */
int paml_xla_latch_wait(struct paml_xla_latch *latch, struct paml_error *err);

#endif
