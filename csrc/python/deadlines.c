/* Deadlines: a binary heap of requests and one timer on the loop.
 *
 * The timer is never cancelled: one that fires too early finds nothing due and sets
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

static int
set_timer(HubObj *hub, int64_t deadline_ns)
{
    struct module_state *state = hub->state;
    int64_t left_ns = deadline_ns - paml_now_ns();
    PyObject *delay, *expire, *timer = NULL;

    if (hub->timer_ns <= deadline_ns) {
        return 0;
    }
    delay = PyFloat_FromDouble(left_ns > 0 ? (double)left_ns / PAML_SECOND : 0.0);
    expire = PyObject_GetAttr((PyObject *)hub, state->str_expire);
    if (delay != NULL && expire != NULL) {
        timer = PyObject_CallMethodObjArgs(hub->loop, state->str_call_later, delay,
                                           expire, NULL);
    }
    Py_XDECREF(delay);
    Py_XDECREF(expire);
    if (timer == NULL) {
        return -1;
    }
    Py_DECREF(timer);
    hub->timer_ns = deadline_ns;
    return 0;
}

int
paml_deadline_add(HubObj *hub, struct paml_request *request)
{
    struct paml_request **heap;
    size_t capacity;

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
    if (set_timer(hub, request->op.deadline_ns) < 0) {
        return -1;
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

/* Settles the future with DeadlineExceeded, and gives the work up. */
static void
expire_one(HubObj *hub, struct paml_request *request)
{
    FutureObj *future = (FutureObj *)Py_NewRef(request->future);
    PyObject *exception;

    request->op.code = PAML_ERR_DEADLINE;
    exception = paml_request_error(request);
    paml_request_give_up(request, PAML_ERR_DEADLINE);
    paml_future_settle_exception(future, exception);
    Py_DECREF(exception);
    paml_hub_ready(hub, future);
}

int
paml_deadlines_expire(HubObj *hub)
{
    int64_t now = paml_now_ns();

    hub->timer_ns = INT64_MAX;
    while (hub->heap_size > 0 && deadline_at(hub, 0) <= now) {
        expire_one(hub, hub->heap[0]);
    }
    return hub->heap_size > 0 ? set_timer(hub, deadline_at(hub, 0)) : 0;
}
