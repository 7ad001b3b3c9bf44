#include "session.h"

#include <stdlib.h>
#include <string.h>

struct paml_session *
paml_session_new(uint32_t n_states, const uint32_t *arguments, const char *const *names,
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
        if (names[i] != NULL && (session->names[i] = strdup(names[i])) == NULL) {
            paml_session_unref(session);
            return NULL;
        }
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
            free(session->names[i]);
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

/* Whether another output begins where this one does: one tensor given twice. What the
   caller does to the one must not reach the state. */
static bool
shares_memory(const struct paml_value *values, uint32_t count, uint32_t at)
{
    const DLTensor *tensor = &values[at].tensor;

    for (uint32_t i = 0; i < count; i++) {
        if (i != at && values[i].kind == PAML_TENSOR &&
            (const char *)values[i].tensor.data + values[i].tensor.byte_offset ==
                (const char *)tensor->data + tensor->byte_offset) {
            return true;
        }
    }
    return false;
}

/* A tensor of its own instead of the output, in host memory. */
static int
copy_tensor(struct paml_value *value, const struct paml_backend *backend,
            void *instance, struct paml_error *err)
{
    const DLTensor *from = &value->tensor;
    const bool on_host = from->device.device_type == kDLCPU;
    struct paml_value copy;
    int code;

    if (!on_host && !paml_backend_downloads(backend)) {
        return paml_fail(err, PAML_ERR_BACKEND,
                         "a session's state is in host memory; the model gave it on a "
                         "device");
    }
    if ((on_host ? paml_tensor_clone(from, &copy)
                 : paml_tensor_new(&copy, from->dtype, from->ndim, from->shape)) < 0) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a session's state");
    }
    if (!on_host &&
        (code = backend->download(instance, from, copy.tensor.data, err)) != PAML_OK) {
        paml_value_release(&copy);
        return code;
    }
    paml_value_release(value);
    *value = copy;
    return PAML_OK;
}

/* Where state `k` is among the values of a dict, or 0. */
static uint32_t
find_named(const struct paml_session *session, uint32_t k,
           const struct paml_outputs *outputs)
{
    const struct paml_value *key = outputs->values + 1;
    size_t size = session->names[k] != NULL ? strlen(session->names[k]) : 0;

    for (uint32_t i = 0; i < outputs->values->count; i++, key += 2) {
        if (key->kind == PAML_STRING && session->names[k] != NULL &&
            key->string.size == size &&
            memcmp(key->string.data, session->names[k], size) == 0) {
            return 2 + 2 * i;
        }
    }
    return 0;
}

/* Where each state is among the outputs, a flat structure. -1: not all are there. */
static int
find_states(const struct paml_session *session, const struct paml_outputs *outputs,
            uint32_t *found)
{
    uint32_t n = session->n_states, kind = outputs->values->kind;
    uint32_t items = outputs->count > 0 ? outputs->values->count : 0;

    if (outputs->count < n + 1 || items < n) {
        return -1;
    }
    if (kind == PAML_TUPLE || kind == PAML_LIST) {
        for (uint32_t k = 0; k < n; k++) {
            found[k] = outputs->count - n + k;
        }
        return 0;
    }
    if (kind != PAML_DICT || outputs->count != 1 + 2 * items) {
        return -1; /* a dict in a dict has no end that is seen from here */
    }
    for (uint32_t k = 0; k < n; k++) {
        if ((found[k] = find_named(session, k, outputs)) == 0) {
            return -1;
        }
    }
    return 0;
}

/* Takes the states, which are elsewhere by now, out of the outputs. */
static void
leave_out(struct paml_outputs *outputs, const uint32_t *found, uint32_t n)
{
    struct paml_value *values = outputs->values;
    uint32_t head = values->kind == PAML_DICT ? 2 : 1, kept = 1;

    if (head == 2) {
        for (uint32_t k = 0; k < n; k++) {
            values[found[k]].kind = PAML_NONE;
            values[found[k]].release = NULL;
            paml_value_release(&values[found[k] - 1]);
            values[found[k] - 1].kind = PAML_NONE; /* no key is that */
        }
        for (uint32_t i = 1; i < outputs->count; i += 2) {
            if (values[i].kind != PAML_NONE) {
                values[kept] = values[i];
                values[kept + 1] = values[i + 1];
                kept += 2;
            }
        }
    } else {
        kept = outputs->count - n;
    }
    outputs->count = kept;
    values->count -= n;
    if (values->count == 1) {
        /* One output besides the state is no tuple, and no dict. */
        if (head == 2) {
            paml_value_release(&values[1]);
        }
        outputs->count -= head;
        memmove(values, values + head, outputs->count * sizeof(*values));
    }
}

/* Thread: worker, which has the busy op. Locks: none. */
int
paml_session_absorb(struct paml_session *session, struct paml_outputs *outputs,
                    const struct paml_backend *backend, void *instance,
                    struct paml_error *err)
{
    struct paml_value *values = outputs->values;
    uint32_t n = session->n_states, found[PAML_STATES_MOST];
    int code;

    if (find_states(session, outputs, found) < 0) {
        return paml_fail(err, PAML_ERR_BACKEND,
                         "the model's outputs don't hold the %u new states of the "
                         "session: expected a tuple that ends with them, or a dict "
                         "that has them under the names of the inputs",
                         n);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (values[found[i]].kind != PAML_TENSOR ||
            !same_kind_of_tensor(&values[found[i]].tensor,
                                 &session->initial[i].tensor)) {
            return paml_fail(err, PAML_ERR_BACKEND,
                             "the output that is to be input %u of the session's next "
                             "request has another shape or dtype than that",
                             session->arguments[i]);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        struct paml_value *value = &values[found[i]];
        if ((value->tensor.device.device_type != kDLCPU ||
             shares_memory(values, outputs->count, found[i])) &&
            (code = copy_tensor(value, backend, instance, err)) != PAML_OK) {
            return code;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        paml_value_release(&session->state[i]);
        session->state[i] = values[found[i]];
    }
    leave_out(outputs, found, n);
    return PAML_OK;
}
