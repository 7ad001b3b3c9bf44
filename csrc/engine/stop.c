#include "stop.h"

#include <stddef.h>

#include "clock.h"
#include "model.h"

void
paml_stopping_init(struct paml_stopping *stopping)
{
    pthread_mutex_init(&stopping->lock, NULL);
    stopping->instance = NULL;
    stopping->sent = false;
}

void
paml_stopping_destroy(struct paml_stopping *stopping)
{
    pthread_mutex_destroy(&stopping->lock);
}

/* Lock: the worker's is held. */
static bool
is_wanted(const struct paml_stopping *stopping)
{
    int64_t now_ns = 0;

    for (uint32_t i = 0; i < stopping->n; i++) {
        struct paml_op *op = stopping->slices[i].op;

        if (op->session != NULL || op->steps != NULL) {
            return true;
        }
        if (op->deadline_ns != 0 && now_ns == 0) {
            now_ns = paml_now_ns();
        }
        /* seq_cst: see paml_op_give_up. */
        if (!atomic_load_explicit(&op->given_up, memory_order_seq_cst) &&
            (op->deadline_ns == 0 || now_ns < op->deadline_ns)) {
            return true;
        }
    }
    return false;
}

/* Thread: worker. GIL: not held. Locks: takes the worker's. */
bool
paml_stop_begin(struct paml_worker *worker, void *instance,
                const struct paml_slice *slices, uint32_t n)
{
    struct paml_stopping *stopping = &worker->stopping;
    bool wanted;

    for (uint32_t i = 0; i < n; i++) {
        /* seq_cst: pairs with the load in paml_op_give_up. */
        atomic_store_explicit(&slices[i].op->runner, worker, memory_order_seq_cst);
    }
    pthread_mutex_lock(&stopping->lock);
    stopping->slices = slices;
    stopping->n = n;
    wanted = is_wanted(stopping);
    stopping->instance = wanted ? instance : NULL;
    pthread_mutex_unlock(&stopping->lock);
    return wanted;
}

/* Thread: worker. GIL: not held. Locks: takes the worker's. */
bool
paml_stop_end(struct paml_worker *worker)
{
    struct paml_stopping *stopping = &worker->stopping;
    void *instance;
    bool sent;

    pthread_mutex_lock(&stopping->lock);
    instance = stopping->instance;
    sent = stopping->sent;
    stopping->instance = NULL;
    stopping->sent = false;
    pthread_mutex_unlock(&stopping->lock);
    if (sent) {
        worker->model->backend->stop(instance, 0);
    }
    return sent;
}

/* Thread: any. GIL: any. Locks: takes the worker's. */
void
paml_op_give_up(struct paml_op *op, bool past_deadline)
{
    struct paml_worker *worker;
    struct paml_stopping *stopping;
    bool is_there = false;

    if (!past_deadline) { /* a deadline the worker sees by itself */
        /* seq_cst, as the load below: of this store and the worker's to `runner`, one
           comes first, and is seen by the other's load. */
        atomic_store_explicit(&op->given_up, true, memory_order_seq_cst);
    }
    worker = atomic_load_explicit(&op->runner, memory_order_seq_cst);
    if (worker == NULL) {
        return;
    }
    stopping = &worker->stopping;
    pthread_mutex_lock(&stopping->lock);
    if (stopping->instance != NULL && !stopping->sent) {
        for (uint32_t i = 0; i < stopping->n; i++) {
            is_there = is_there || stopping->slices[i].op == op;
        }
        if (is_there && !is_wanted(stopping)) {
            stopping->sent = true;
            worker->model->backend->stop(stopping->instance, 1);
        }
    }
    pthread_mutex_unlock(&stopping->lock);
}
