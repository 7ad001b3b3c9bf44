#include "serving.h"

#include <stdlib.h>

#include "serve.h"
#include "session.h"

void
paml_answer(struct serving *serving, struct job *job)
{
    struct paml_session *session = job->op->session;
    bool fresh;

    for (uint32_t i = 0; i < job->n_parts; i++) {
        paml_outputs_clear(&job->parts[i]);
    }
    free(job->parts);
    job->parts = NULL;
    job->n_parts = 0;
    job->answered = true;
    job->op->run_ns = serving->run_ns;
    if (session == NULL) {
        paml_worker_post(serving->worker, job->op, serving->now_ns);
        return;
    }
    /* The next one comes after the post, or its answer could overtake this one; and the
       op's own reference goes with the op. */
    fresh = job->op->fresh;
    atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);
    paml_session_take_back(job->op);
    paml_worker_post(serving->worker, job->op, serving->now_ns);
    paml_queue_pass_on(session, fresh);
    paml_session_unref(session);
}

void
paml_answer_failed(struct serving *serving, struct job *job, int code,
                   const char *message)
{
    if (code != PAML_ERR_PYTHON) {
        paml_outputs_clear(&job->op->outputs);
    }
    paml_op_fail(job->op, code, message);
    paml_count(&serving->worker->stats.failed, 1);
    paml_answer(serving, job);
}

void
paml_answer_served(struct serving *serving, struct job *job)
{
    struct paml_op *op = job->op;

    if (op->session != NULL &&
        paml_session_absorb(op->session, &op->outputs, serving->worker->model->backend,
                            serving->instance, serving->error) != PAML_OK) {
        paml_answer_failed(serving, job, serving->error->code, serving->error->message);
        return;
    }
    if (serving->worker->home != NULL) {
        paml_home_send(serving->worker->home, &job->op->outputs);
    }
    paml_count(&serving->worker->stats.completed, 1);
    paml_answer(serving, job);
}

bool
paml_answer_late(struct serving *serving, struct job *job)
{
    struct paml_op *op = job->op;

    if (paml_op_is_given_up(op)) {
        paml_answer(serving, job); /* nobody listens */
        return true;
    }
    if (op->deadline_ns != 0 && serving->now_ns >= op->deadline_ns) {
        paml_op_fail(op, PAML_ERR_DEADLINE, NULL);
        paml_count(&serving->worker->stats.expired, 1);
        paml_answer(serving, job);
        return true;
    }
    return false;
}

void
paml_deliver(struct serving *serving, struct job *job, struct paml_slice *slice)
{
    struct paml_outputs *parts;
    uint32_t capacity = job->capacity > 0 ? 2 * job->capacity : 4;

    job->rows_done += slice->to - slice->from;
    if (job->n_parts == 0 && job->rows_done >= job->op->rows) {
        paml_outputs_move(&slice->outputs, &job->op->outputs);
        paml_answer_served(serving, job);
        return;
    }
    if (job->n_parts == job->capacity) {
        /* Outputs may point into themselves: moved one by one, not reallocated. */
        parts = malloc(capacity * sizeof(*parts));
        if (parts == NULL) {
            paml_outputs_clear(&slice->outputs);
            paml_answer_failed(serving, job, PAML_ERR_MEMORY,
                               "no memory for the parts of a result");
            return;
        }
        for (uint32_t i = 0; i < job->n_parts; i++) {
            paml_outputs_move(&job->parts[i], &parts[i]);
        }
        free(job->parts);
        job->parts = parts;
        job->capacity = capacity;
    }
    paml_outputs_move(&slice->outputs, &job->parts[job->n_parts++]);
    if (job->rows_done < job->op->rows) {
        return;
    }
    if (paml_batch_join(serving->batching, job->parts, job->n_parts, &job->op->outputs,
                        serving->error) != PAML_OK) {
        paml_answer_failed(serving, job, serving->error->code, serving->error->message);
    } else {
        paml_answer_served(serving, job);
    }
}
