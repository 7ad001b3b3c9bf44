#include "request.h"

#include "backend.h"
#include "clock.h"
#include "hub.h"
#include "mailbox.h"
#include "served.h"
#include "session.h"
#include "stop.h"
#include "thread.h"

void
paml_request_borrow(struct paml_request *request, struct module_state *state)
{
    paml_op_init(&request->op, NULL);
    request->op.inputs = request->first;
    request->kind = NULL;
    request->state = state;
    request->hub = NULL;
    request->future = NULL;
    request->owner = NULL;
    request->served = NULL;
    request->previous = request->next = NULL;
    request->timeout_ns = 0;
    request->expired = 0;
    request->heap_index = NOT_IN_HEAP;
    request->flavour = FLAVOUR_NUMPY;
    request->inline_key = 0;
    request->capacity = REQUEST_INLINE_VALUES;
}

struct paml_request *
paml_request_new(struct module_state *state, HubObj *hub,
                 const struct request_kind *kind, PyObject *owner)
{
    struct paml_request *request = state->spare_requests;

    if (request != NULL) {
        state->spare_requests = (struct paml_request *)request->op.next;
        state->n_spare_requests--;
    } else if ((request = PyMem_RawMalloc(sizeof(*request))) == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    paml_request_borrow(request, state);
    request->op.mailbox = hub->mailbox;
    request->kind = kind;
    request->hub = hub;
    request->owner = Py_NewRef(owner);
    return request;
}

struct paml_value *
paml_request_input(struct paml_request *request)
{
    struct paml_op *op = &request->op;
    struct paml_value *values, *value;

    if (op->n_inputs == request->capacity) {
        size_t size = 2 * (size_t)request->capacity * sizeof(*values);
        if (op->inputs == request->first) {
            values = PyMem_RawMalloc(size);
            if (values != NULL) {
                memcpy(values, request->first, op->n_inputs * sizeof(*values));
            }
        } else {
            values = PyMem_RawRealloc(op->inputs, size);
        }
        if (values == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        op->inputs = values;
        request->capacity *= 2;
    }
    value = &op->inputs[op->n_inputs++];
    memset(value, 0, sizeof(*value));
    return value;
}

void
paml_request_release_inputs(struct paml_request *request)
{
    struct paml_op *op = &request->op;
    uint32_t count = op->n_inputs;

    op->n_inputs = 0;
    for (uint32_t i = 0; i < count; i++) {
        paml_value_release(&op->inputs[i]);
    }
    if (op->inputs != request->first) {
        PyMem_RawFree(op->inputs);
        op->inputs = request->first;
        request->capacity = REQUEST_INLINE_VALUES;
    }
}

/* A request is larger than what the allocator keeps at hand for each thread. */
#ifdef __SANITIZE_ADDRESS__
#define SPARE_MOST 0 /* that each is allocated tells who uses one too late */
#else
#define SPARE_MOST 1024
#endif

static void
request_recycle(struct paml_request *request)
{
    struct module_state *state = request->state;

    if (state->n_spare_requests < SPARE_MOST) {
        request->op.next = (struct paml_op *)state->spare_requests;
        state->spare_requests = request;
        state->n_spare_requests++;
    } else {
        PyMem_RawFree(request);
    }
}

void
paml_request_free_spare(struct module_state *state)
{
    struct paml_request *request;

    while ((request = state->spare_requests) != NULL) {
        state->spare_requests = (struct paml_request *)request->op.next;
        state->n_spare_requests--;
        PyMem_RawFree(request);
    }
}

void
paml_request_free(struct paml_request *request)
{
    FutureObj *future = request->future;
    PyObject *owner = request->owner;

    request->future = NULL;
    request->owner = NULL;
    paml_request_release_inputs(request);
    paml_op_clear(&request->op);
    paml_served_leave(request->served);
    request_recycle(request);
    Py_XDECREF(future);
    Py_XDECREF(owner);
}

FutureObj *
paml_request_launch(struct paml_request *request)
{
    HubObj *hub = request->hub;
    FutureObj *future = paml_future_new(request->state, hub->loop, hub->debug);

    if (future == NULL) {
        paml_request_free(request);
        return NULL;
    }
    request->op.submitted_ns = paml_now_ns();
    if (request->timeout_ns != 0) {
        request->op.deadline_ns = request->op.submitted_ns + request->timeout_ns;
        if (paml_deadline_add(hub, request) < 0) {
            Py_DECREF(future);
            paml_request_free(request);
            return NULL;
        }
    }
    future->request = request;
    request->future = (FutureObj *)Py_NewRef(future);
    paml_hub_add(hub, request);
    return future;
}

/* The request leaves the hub's books. */
static void
request_land(struct paml_request *request)
{
    if (request->hub != NULL) {
        paml_deadline_remove(request->hub, request);
        paml_hub_remove(request->hub, request);
    }
}

void
paml_request_refuse(struct paml_request *request, int code, const char *message)
{
    FutureObj *future = request->future;
    PyObject *exception = paml_exception_new(request->state, code, message);

    if (request->op.session != NULL && request->op.fresh) {
        request->op.session->restart = true; /* the next one starts anew instead */
    }
    request_land(request);
    future->request = NULL;
    paml_future_settle_exception(future, exception);
    Py_DECREF(exception);
    paml_request_free(request);
}

/* Thread: the loop's. GIL: held. Locks: the queue's, then a worker's, briefly. */
void
paml_request_give_up(struct paml_request *request, int code)
{
    FutureObj *future = request->future;
    int removed;

    future->request = NULL;
    /* In a forked child the lock may be held by a worker that isn't there. */
    removed = !paml_threads_forked() && request->kind->remove(request);
    if (request->kind->given_up != NULL && (removed || code == PAML_OK)) {
        request->kind->given_up(request, code);
    }
    if (removed) {
        request_land(request);
        paml_request_free(request);
        return;
    }
    /* It runs, or has run: the hub keeps the request until the op is back. */
    if (!paml_threads_forked()) {
        paml_op_give_up(&request->op, code == PAML_ERR_DEADLINE);
    }
    if (request->hub != NULL) {
        paml_deadline_remove(request->hub, request);
    }
    request->future = NULL;
    Py_DECREF(future);
}

/* Thread: the loop's. GIL: held. Locks: the queue's, briefly. */
int
paml_request_withdraw(FutureObj *future)
{
    struct paml_request *request = future->request;

    if (request == NULL || future->status != FUTURE_PENDING || paml_threads_forked() ||
        !request->kind->remove(request)) {
        return 0;
    }
    future->request = NULL;
    if (request->kind->given_up != NULL) {
        request->kind->given_up(request, PAML_OK);
    }
    request_land(request);
    paml_request_free(request);
    return 1;
}

void
paml_request_abandon(FutureObj *future)
{
    if (future->request != NULL) {
        paml_request_give_up(future->request, PAML_OK);
    }
}

PyObject *
paml_request_result(FutureObj *future)
{
    struct paml_request *request = future->request;
    PyObject *result;

    future->request = NULL;
    result = request->kind->convert(request->state, request);
    paml_request_free(request);
    return result;
}

void
paml_request_forget(FutureObj *future)
{
    struct paml_request *request = future->request;

    future->request = NULL;
    if (request != NULL) {
        paml_request_free(request);
    }
}

/* Messages of frameworks need not be UTF-8. */
static PyObject *
message_text(const char *message)
{
    return PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "replace");
}

PyObject *
paml_exception_new(struct module_state *state, int code, const char *message)
{
    PyObject *const types[] = {
        [PAML_OK] = state->BackendError,
        [PAML_ERR_INPUT] = state->InputError,
        [PAML_ERR_BACKEND] = state->BackendError,
        [PAML_ERR_MEMORY] = state->OutOfMemory,
        [PAML_ERR_LOAD] = state->LoadError,
        [PAML_ERR_DEADLINE] = state->DeadlineExceeded,
        [PAML_ERR_QUEUE] = state->QueueFull,
        [PAML_ERR_CLOSED] = state->ModelClosed,
        [PAML_ERR_PYTHON] = state->BackendError,
        [PAML_ERR_DEVICE] = state->BackendError,
    };
    int known = code > 0 && (size_t)code < sizeof(types) / sizeof(types[0]);
    PyObject *type = known ? types[code] : state->BackendError;
    PyObject *text = message_text(message != NULL ? message : "no message was given");
    PyObject *exception = NULL;

    if (text != NULL) {
        exception = PyObject_CallOneArg(type, text);
        Py_DECREF(text);
    }
    if (exception == NULL) {
        PyErr_Clear();
        exception = Py_NewRef(state->memory_error);
    }
    return exception;
}

PyObject *
paml_deadline_error(struct module_state *state, int64_t timeout_ns)
{
    char text[96];

    snprintf(text, sizeof(text), "timeout=%.6g passed before the result was there",
             (double)timeout_ns / PAML_SECOND);
    return paml_exception_new(state, PAML_ERR_DEADLINE, text);
}

PyObject *
paml_request_error(struct paml_request *request)
{
    if (request->op.code == PAML_ERR_DEADLINE && request->op.message == NULL) {
        return paml_deadline_error(request->state, request->timeout_ns);
    }
    return paml_exception_new(request->state, request->op.code, request->op.message);
}

int
paml_request_exec(PyObject *module, struct module_state *state)
{
    PyObject *errors = PyImport_ImportModule("pyasyncml.errors");

    (void)module;
    if (errors == NULL) {
        return -1;
    }
#define ERROR(name) state->name = PyObject_GetAttrString(errors, #name);
    ERROR(Error)
    ERROR(InputError)
    ERROR(BackendError)
    ERROR(OutOfMemory)
    ERROR(LoadError)
    ERROR(DeadlineExceeded)
    ERROR(QueueFull)
    ERROR(ModelClosed)
#undef ERROR
    Py_DECREF(errors);
    state->memory_error = PyObject_CallFunction(
        PyExc_MemoryError, "s", "no memory left to say what went wrong");
    return PyErr_Occurred() ? -1 : 0;
}
