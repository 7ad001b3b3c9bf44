#include "latch.h"

#include <stdlib.h>

void
paml_xla_latch_init(struct paml_xla_latch *latch)
{
    pthread_mutex_init(&latch->lock, NULL);
    pthread_cond_init(&latch->ready, NULL);
    latch->pending = 0;
    latch->code = PAML_OK;
    latch->tell = NULL;
    latch->events = NULL;
    latch->n_events = 0;
    latch->capacity = 0;
}

void
paml_xla_latch_destroy(struct paml_xla_latch *latch)
{
    /* The last callback signals under the lock: once we had it, it is out. */
    pthread_mutex_lock(&latch->lock);
    pthread_mutex_unlock(&latch->lock);
    pthread_mutex_destroy(&latch->lock);
    pthread_cond_destroy(&latch->ready);
    free(latch->events);
}

/* Thread: the latch's owner. Locks: none. */
int
paml_xla_latch_reserve(struct paml_xla_latch *latch, uint32_t capacity)
{
    struct pjrt_event **events;

    if (capacity > latch->capacity) {
        events = realloc(latch->events, capacity * sizeof(struct pjrt_event *));
        if (events == NULL) {
            return -1;
        }
        latch->events = events;
        latch->capacity = capacity;
    }
    return 0;
}

/* Locks: the caller holds the latch's: a wait that has begun returns after this. */
static void
tell_if_ready(struct paml_xla_latch *latch)
{
    void (*tell)(void *argument) = latch->tell;

    if (latch->pending == 0 && tell != NULL) {
        latch->tell = NULL;
        tell(latch->argument);
    }
}

/* Thread: the plugin's, or whoever adds the event. GIL: not held. Locks: takes the
   latch's, and what `tell` takes. */
static void
count_down(struct pjrt_error *failed, void *argument)
{
    struct paml_xla_latch *latch = argument;

    pthread_mutex_lock(&latch->lock);
    if (failed != NULL && latch->code == PAML_OK) {
        latch->code = paml_xla_report(paml_xla_client()->api, failed, PAML_ERR_BACKEND,
                                      "XLA", &latch->error);
    } else if (failed != NULL) {
        struct paml_error ignored;
        paml_xla_report(paml_xla_client()->api, failed, PAML_ERR_BACKEND, "", &ignored);
    }
    if (--latch->pending == 0) {
        pthread_cond_signal(&latch->ready);
    }
    tell_if_ready(latch);
    pthread_mutex_unlock(&latch->lock);
}

/* Thread: the latch's owner. Locks: takes the latch's. */
void
paml_xla_latch_add(struct paml_xla_latch *latch, struct pjrt_event *event)
{
    PJRT_ARGS(event_on_ready, on_ready);
    struct pjrt_error *refused;

    if (event == NULL) {
        return;
    }
    latch->events[latch->n_events++] = event;
    pthread_mutex_lock(&latch->lock);
    latch->pending++;
    pthread_mutex_unlock(&latch->lock);
    on_ready.event = event;
    on_ready.callback = count_down;
    on_ready.argument = latch;
    refused = paml_xla_call(PJRT_EVENT_ON_READY, &on_ready);
    if (refused != NULL) {
        count_down(refused, latch); /* it will never be called */
    }
}

/* Thread: the latch's owner. Locks: takes the latch's, and what `tell` takes. */
void
paml_xla_latch_tell(struct paml_xla_latch *latch, void (*tell)(void *argument),
                    void *argument)
{
    pthread_mutex_lock(&latch->lock);
    latch->tell = tell;
    latch->argument = argument;
    tell_if_ready(latch);
    pthread_mutex_unlock(&latch->lock);
}

/* Thread: the latch's owner. Locks: takes the latch's. */
int
paml_xla_latch_wait(struct paml_xla_latch *latch, struct paml_error *err)
{
    int code;

    pthread_mutex_lock(&latch->lock);
    while (latch->pending > 0) {
        pthread_cond_wait(&latch->ready, &latch->lock);
    }
    code = latch->code;
    if (code != PAML_OK) {
        *err = latch->error;
    }
    latch->code = PAML_OK;
    pthread_mutex_unlock(&latch->lock);
    for (uint32_t i = 0; i < latch->n_events; i++) {
        PJRT_ARGS(event_destroy, destroy);
        destroy.event = latch->events[i];
        paml_xla_call(PJRT_EVENT_DESTROY, &destroy);
    }
    latch->n_events = 0;
    return code;
}
