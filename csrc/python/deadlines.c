/* Deadlines: a binary heap of requests and one timer on the loop.
 *
 * A timer is never cancelled: one that fires too early finds nothing due and sets
 * the next. So a burst of requests with one timeout= costs one timer.
 *
 * Thread: the loop's, GIL held.
 */
#include "clock.h"
#include "hub.h"

static int64_t
deadline_at(const HubObj *hub, size_t index)
{
    return hub->heap[index]->op.deadline_ns;
}

static void
heap_put(HubObj *hub, size_t index, struct paml_request *request)
{
    hub->heap[index] = request;
    request->heap_index = index;
}

static void
heap_up(HubObj *hub, size_t index)
{
    struct paml_request *request = hub->heap[index];

    while (index > 0 && deadline_at(hub, (index - 1) / 2) > request->op.deadline_ns) {
        heap_put(hub, index, hub->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    heap_put(hub, index, request);
}

static void
heap_down(HubObj *hub, size_t index)
{
    struct paml_request *request = hub->heap[index];
    size_t child;

    while ((child = 2 * index + 1) < hub->heap_size) {
        if (child + 1 < hub->heap_size &&
            deadline_at(hub, child + 1) < deadline_at(hub, child)) {
            child++;
        }
        if (deadline_at(hub, child) >= request->op.deadline_ns) {
            break;
        }
        heap_put(hub, index, hub->heap[child]);
        index = child;
    }
    heap_put(hub, index, request);
}

/* Timers are never cancelled, so each that is set is earlier than all that are
   outstanding: these form a stack, of which the top is the next to fire. */
static int
push_timer(HubObj *hub, int64_t deadline_ns)
{
    size_t capacity;
    int64_t *timers;

    if (hub->n_timers == hub->timers_capacity) {
        capacity = hub->timers_capacity > 0 ? 2 * hub->timers_capacity : 8;
        timers = PyMem_Realloc(hub->timers, capacity * sizeof(*timers));
        if (timers == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        hub->timers = timers;
        hub->timers_capacity = capacity;
    }
    hub->timers[hub->n_timers++] = deadline_ns;
    return 0;
}

static int
set_timer(HubObj *hub, int64_t deadline_ns)
{
    struct module_state *state = hub->state;
    int64_t left_ns = deadline_ns - paml_now_ns();
    PyObject *delay, *expire, *timer = NULL;

    if (hub->n_timers > 0 && hub->timers[hub->n_timers - 1] <= deadline_ns) {
        return 0;
    }
    delay = PyFloat_FromDouble(left_ns > 0 ? (double)left_ns / PAML_SECOND : 0.0);
    expire = PyObject_GetAttr((PyObject *)hub, state->str_expire);
    if (delay != NULL && expire != NULL && push_timer(hub, deadline_ns) == 0) {
        timer = PyObject_CallMethodObjArgs(hub->loop, state->str_call_later, delay,
                                           expire, NULL);
        if (timer == NULL) {
            hub->n_timers--;
        }
    }
    Py_XDECREF(delay);
    Py_XDECREF(expire);
    Py_XDECREF(timer);
    return timer != NULL ? 0 : -1;
}

int
paml_deadline_add(HubObj *hub, struct paml_request *request)
{
    struct paml_request **heap;
    size_t capacity;

    /* First: it runs Python code, which may come back here. */
    if (set_timer(hub, request->op.deadline_ns) < 0) {
        return -1;
    }
    if (hub->heap_size == hub->heap_capacity) {
        capacity = hub->heap_capacity > 0 ? 2 * hub->heap_capacity : 64;
        heap = PyMem_Realloc(hub->heap, capacity * sizeof(struct paml_request *));
        if (heap == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        hub->heap = heap;
        hub->heap_capacity = capacity;
    }
    hub->heap[hub->heap_size] = request;
    heap_up(hub, hub->heap_size++);
    return 0;
}

void
paml_deadline_remove(HubObj *hub, struct paml_request *request)
{
    size_t index = request->heap_index;
    struct paml_request *last;

    if (index == NOT_IN_HEAP) {
        return;
    }
    request->heap_index = NOT_IN_HEAP;
    last = hub->heap[--hub->heap_size];
    if (last != request) {
        heap_put(hub, index, last);
        heap_up(hub, index);
        heap_down(hub, last->heap_index);
    }
}

/* Settles the future with DeadlineExceeded, and gives the work up: first that, since
   making the exception may run anything, even cancel this future. */
static void
expire_one(HubObj *hub, struct paml_request *request)
{
    FutureObj *future = (FutureObj *)Py_NewRef(request->future);
    struct module_state *state = hub->state;
    int64_t timeout_ns = request->timeout_ns;
    PyObject *exception;

    paml_request_give_up(request, PAML_ERR_DEADLINE);
    exception = paml_deadline_error(state, timeout_ns);
    if (future->status == FUTURE_PENDING) {
        paml_future_settle_exception(future, exception);
    }
    Py_DECREF(exception);
    paml_hub_ready(hub, future);
}

int
paml_deadlines_expire(HubObj *hub)
{
    int64_t now = paml_now_ns();

    hub->n_timers -= hub->n_timers > 0;
    while (hub->heap_size > 0 && deadline_at(hub, 0) <= now) {
        expire_one(hub, hub->heap[0]);
    }
    return hub->heap_size > 0 ? set_timer(hub, deadline_at(hub, 0)) : 0;
}
