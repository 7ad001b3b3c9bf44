/* Stopping a run that nobody waits for any more.
 *
 * A backend that can end a run early (backend.h: stop) is told to once every request in
 * it has been given up or is past its deadline; a batch that somebody still wants goes
 * on. Requests of sessions and steps count as wanted: what has begun moves a state,
 * heard or not.
 *
 * A stop that comes while a run is about to begin is either seen by stop_begin or sees
 * its record: whoever gives up first marks the op and then looks for its worker,
 * whoever runs first tells the op its worker and then looks for the mark.
 */
#ifndef PAML_STOP_H
#define PAML_STOP_H

#include <pthread.h>
#include <stdbool.h>

#include "batch.h"

struct paml_worker;

/* What a worker's run can be stopped by. Owner: the worker; `lock` guards it all, and
   the backend's stop() is called under it. */
struct paml_stopping {
    pthread_mutex_t lock;
    void *instance; /* of the run under way; NULL: none */
    const struct paml_slice *slices;
    uint32_t n;
    bool sent;
};

/* Internal, beside enum paml_code: the run was stopped, or not even begun. */
#define PAML_STOPPED (-1)

void paml_stopping_init(struct paml_stopping *stopping);
void paml_stopping_destroy(struct paml_stopping *stopping);

/* A run of those slices begins. False: nobody wants it, it is not to begin.
   Thread: worker. Locks: takes the worker's. */
bool paml_stop_begin(struct paml_worker *worker, void *instance,
                     const struct paml_slice *slices, uint32_t n);
/* It has ended. True: it was told to. Thread: worker. Locks: takes the worker's. */
bool paml_stop_end(struct paml_worker *worker);

/* The op, which couldn't be taken back, is past its deadline, or `given_up`, which this
   sets. Stops its run if that was the last one wanted. The caller keeps the op's model
   alive, and its op from being freed.
   Thread: any. GIL: any. Locks: takes the worker's. */
void paml_op_give_up(struct paml_op *op, bool past_deadline);

#endif
