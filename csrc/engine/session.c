#include "session.h"

#include <stdlib.h>
#include <string.h>

struct paml_session *
paml_session_new(uint32_t n_states, const uint32_t *arguments,
                 const struct paml_value *initial)
{
    struct paml_session *session;

    if (n_states > PAML_STATES_MOST ||
        (session = calloc(1, sizeof(*session))) == NULL) {
        return NULL;
    }
    atomic_init(&session->refs, 1);
    pthread_mutex_init(&session->lock, NULL);
    for (uint32_t i = 0; i < n_states; i++) {
        const DLTensor *tensor = &initial[i].tensor;
        session->arguments[i] = arguments[i];
        if (paml_tensor_clone(tensor, &session->initial[i]) < 0) {
            paml_session_unref(session);
            return NULL;
        }
        session->n_states++;
    }
    return session;
}

/* Thread: any. Locks: none. */
void
paml_session_unref(struct paml_session *session)
{
    if (atomic_fetch_sub_explicit(&session->refs, 1, memory_order_acq_rel) == 1) {
        for (uint32_t i = 0; i < session->n_states; i++) {
            paml_value_release(&session->initial[i]);
            paml_value_release(&session->state[i]);
        }
        pthread_mutex_destroy(&session->lock);
        free(session);
    }
}

/* Back to the beginning. Thread: whoever has the busy op. Locks: none. */
static void
session_restart(struct paml_session *session)
{
    for (uint32_t i = 0; i < session->n_states; i++) {
        paml_value_release(&session->state[i]);
        session->state[i].kind = PAML_NONE;
    }
}

/* Thread: any. Locks: takes `lock`, under a queue's. */
bool
paml_session_enter(struct paml_session *session, struct paml_op *op)
{
    bool entered;

    pthread_mutex_lock(&session->lock);
    entered = !session->busy;
    session->busy = true;
    op->fresh = op->fresh || session->heir_restarts;
    session->heir_restarts = false;
    if (!entered) {
        op->next = NULL;
        op->previous = session->last;
        *(op->previous != NULL ? &op->previous->next : &session->first) = op;
        session->last = op;
    }
    pthread_mutex_unlock(&session->lock);
    return entered;
}

static void
session_unlink(struct paml_session *session, struct paml_op *op)
{
    *(op->previous != NULL ? &op->previous->next : &session->first) = op->next;
    *(op->next != NULL ? &op->next->previous : &session->last) = op->previous;
    op->next = op->previous = NULL;
}

/* Thread: any. Locks: takes `lock`, under a queue's. */
bool
paml_session_leave(struct paml_session *session, struct paml_op *op)
{
    bool held;

    pthread_mutex_lock(&session->lock);
    held = session->first == op || op->previous != NULL;
    if (held && op->fresh) {
        /* The next one starts from the beginning instead. */
        if (op->next != NULL) {
            op->next->fresh = true;
        } else {
            session->heir_restarts = true;
        }
    }
    if (held) {
        session_unlink(session, op);
    }
    pthread_mutex_unlock(&session->lock);
    return held;
}

/* Thread: whoever has the busy op. Locks: takes `lock`. */
struct paml_op *
paml_session_next(struct paml_session *session, bool fresh)
{
    struct paml_op *next;

    if (fresh) {
        session_restart(session); /* it didn't get to */
    }
    pthread_mutex_lock(&session->lock);
    next = session->first;
    if (next != NULL) {
        session_unlink(session, next);
    }
    session->busy = next != NULL;
    pthread_mutex_unlock(&session->lock);
    return next;
}

/* A value whose memory is somebody else's. */
static struct paml_value
borrowed(const struct paml_value *value)
{
    struct paml_value copy = *value;

    copy.owner = NULL;
    copy.release = NULL;
    return copy;
}

/* Thread: worker, which has the busy op. Locks: none. */
void
paml_session_lend(struct paml_op *op)
{
    struct paml_session *session = op->session;

    if (op->fresh) {
        session_restart(session);
    }
    for (uint32_t i = 0; i < session->n_states; i++) {
        op->inputs[op->slots[i]] =
            borrowed(session->state[i].kind == PAML_NONE ? &session->initial[i]
                                                         : &session->state[i]);
    }
    op->fresh = false; /* also where it runs again, in parts */
}

/* Thread: worker, which has the busy op. Locks: none. */
void
paml_session_take_back(struct paml_op *op)
{
    struct paml_session *session = op->session;

    for (uint32_t i = 0; i < session->n_states; i++) {
        op->inputs[op->slots[i]] = borrowed(&session->initial[i]);
    }
}

static bool
same_kind_of_tensor(const DLTensor *a, const DLTensor *b)
{
    return a->ndim == b->ndim && memcmp(&a->dtype, &b->dtype, sizeof(a->dtype)) == 0 &&
           (a->ndim == 0 ||
            memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof(int64_t)) == 0);
}

/* Whether an output before this one begins where it does: one tensor given twice. What
   the caller does to the one must not reach the state. */
static bool
shares_memory(const struct paml_value *values, uint32_t at)
{
    const DLTensor *tensor = &values[at].tensor;

    for (uint32_t i = 0; i < at; i++) {
        if (values[i].kind == PAML_TENSOR &&
            (const char *)values[i].tensor.data + values[i].tensor.byte_offset ==
                (const char *)tensor->data + tensor->byte_offset) {
            return true;
        }
    }
    return false;
}

static int
copy_tensor(struct paml_value *value)
{
    struct paml_value copy;

    if (paml_tensor_clone(&value->tensor, &copy) < 0) {
        return -1;
    }
    paml_value_release(value);
    *value = copy;
    return 0;
}

/* Thread: worker, which has the busy op. Locks: none. */
int
paml_session_absorb(struct paml_session *session, struct paml_outputs *outputs,
                    struct paml_error *err)
{
    struct paml_value *values = outputs->values;
    uint32_t n = session->n_states, first = outputs->count - n;

    if (outputs->count < n + 1 ||
        (values->kind != PAML_TUPLE && values->kind != PAML_LIST) ||
        values->count < n) {
        return paml_fail(err, PAML_ERR_BACKEND,
                         "the model's outputs don't hold the %u new states of the "
                         "session: expected a tuple that ends with them",
                         n);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (values[first + i].kind != PAML_TENSOR ||
            !same_kind_of_tensor(&values[first + i].tensor,
                                 &session->initial[i].tensor)) {
            return paml_fail(err, PAML_ERR_BACKEND,
                             "the output that is to be input %u of the session's next "
                             "request has another shape or dtype than that",
                             session->arguments[i]);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        if (shares_memory(values, first + i) && copy_tensor(&values[first + i]) < 0) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for a session's state");
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        paml_value_release(&session->state[i]);
        session->state[i] = values[first + i];
    }
    outputs->count -= n;
    values->count -= n;
    if (values->count == 1) {
        /* One output besides the state is no tuple. */
        outputs->count--;
        memmove(values, values + 1, outputs->count * sizeof(*values));
    }
    return PAML_OK;
}
