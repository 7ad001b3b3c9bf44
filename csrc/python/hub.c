#include "hub.h"

#include <errno.h>

#include "clock.h"
#include "crowd.h"
#include "served.h"
#include "thread.h"
#include "stop.h"

/* Futures whose callbacks run in one go before the loop gets a turn, and how long that
   may take, looked at after every few: bounds the lag of other tasks. */
#define DRAIN_MOST 192
#define DRAIN_MOST_NS 200000
#define DRAIN_FEW 8

/* What is on its way to a loop that is gone. state->orphans. */
struct orphan {
    struct orphan *next;
    struct paml_mailbox *mailbox;
    size_t expected; /* requests still to come */
};

void
paml_orphans_collect(struct module_state *state)
{
    struct orphan *todo = state->orphans, *orphan;
    struct paml_request *request;
    struct paml_op *op, *next;

    /* Freeing runs destructors, which may run anything: the list is ours meanwhile. */
    state->orphans = NULL;
    while ((orphan = todo) != NULL) {
        todo = orphan->next;
        for (op = paml_mailbox_take(orphan->mailbox); op != NULL; op = next) {
            next = op->next;
            request = (struct paml_request *)op;
            orphan->expected--;
            if (request->kind->arrived != NULL) {
                request->kind->arrived(request);
            }
            paml_request_free(request);
        }
        if (orphan->expected == 0) {
            paml_mailbox_unref(orphan->mailbox);
            PyMem_RawFree(orphan);
        } else {
            orphan->next = state->orphans;
            state->orphans = orphan;
        }
    }
}

void
paml_hub_add(HubObj *hub, struct paml_request *request)
{
    request->previous = NULL;
    request->next = hub->in_flight;
    if (hub->in_flight != NULL) {
        hub->in_flight->previous = request;
    }
    hub->in_flight = request;
}

void
paml_hub_remove(HubObj *hub, struct paml_request *request)
{
    if (request->next != NULL) {
        request->next->previous = request->previous;
    }
    if (request->previous != NULL) {
        request->previous->next = request->next;
    } else {
        hub->in_flight = request->next;
    }
    request->previous = request->next = NULL;
}

void
paml_hub_ready(HubObj *hub, FutureObj *future)
{
    future->ready_next = NULL;
    if (hub->ready_last != NULL) {
        hub->ready_last->ready_next = future;
    } else {
        hub->ready_first = future;
    }
    hub->ready_last = future;
}

static FutureObj *
hub_next_ready(HubObj *hub)
{
    FutureObj *future = hub->ready_first;

    if (future != NULL) {
        hub->ready_first = future->ready_next;
        future->ready_next = NULL;
        if (hub->ready_first == NULL) {
            hub->ready_last = NULL;
        }
    }
    return future;
}

FutureObj *
paml_hub_settle(HubObj *hub, struct paml_request *request)
{
    struct paml_op *op = &request->op;
    FutureObj *future = request->future;
    PyObject *exception = NULL;

    paml_deadline_remove(hub, request);
    paml_hub_remove(hub, request);
    request->future = NULL; /* the reference is ours now */
    request->hub = NULL;
    if (future != NULL) {
        future->request = NULL;
    }
    paml_served_leave(request->served);
    request->served = NULL;
    /* From here on nothing leads from one to the other: what follows runs destructors,
       which may cancel the future or ask for its result. */
    if (request->kind->arrived != NULL) {
        request->kind->arrived(request);
    }
    if (op->code == PAML_OK) {
        paml_request_release_inputs(request);
        if (!request->kind->needs_owner) {
            Py_CLEAR(request->owner);
        }
    } else if (future != NULL) {
        exception = op->code == PAML_ERR_PYTHON
                        ? Py_NewRef((PyObject *)op->outputs.values[0].object)
                        : paml_request_error(request);
    }
    if (future == NULL || future->status != FUTURE_PENDING) {
        paml_request_free(request);
    } else if (exception == NULL) {
        /* The future keeps the request for its outputs. */
        future->request = request;
        paml_future_settle_request(future);
    } else {
        paml_future_settle_exception(future, exception);
        paml_request_free(request);
    }
    Py_XDECREF(exception);
    return future;
}

/* --- lingering ---

   A loop that sleeps until the next result is woken at a cost that dwarfs a short run,
   its own and the worker's. Where results have been coming within LINGER_NS lately, and
   a processor is free for it, the hub therefore doesn't rest at once: it leaves its
   descriptors readable, and the loop comes by again, after its other tasks. */

#define LINGER_NS 30000

static void
hub_note_arrival(HubObj *hub, int64_t now_ns)
{
    int64_t gap;

    if (hub->dry_since_ns != 0) {
        gap = now_ns - hub->dry_since_ns;
        gap = gap < 8 * LINGER_NS ? gap : 8 * LINGER_NS;
        hub->usual_gap_ns += (gap - hub->usual_gap_ns) / 4;
        hub->dry_since_ns = 0;
    }
}

static int
hub_lingers(HubObj *hub, int64_t now_ns)
{
    if (hub->in_flight == NULL || hub->usual_gap_ns >= LINGER_NS || paml_crowded()) {
        return 0;
    }
    return now_ns - hub->dry_since_ns < LINGER_NS;
}

/* --- watching ---

   Where a few results come while the loop sleeps, as many as the workers let lie until
   a ring is due, the hub sees to it by itself that the loop wakes then: by an alarm
   that it sets, so that no worker leaves its run to wake anybody. */

#define WATCH_LEAST 4
#define WATCH_LEAST_NS 500000
#define WATCH_FAILS_MOST 6

/* How long the loop may sleep by an alarm of its own; 0: until somebody rings. */
static int64_t
hub_may_watch(HubObj *hub)
{
    bool few = hub->arrived < WATCH_LEAST;

    if (hub->watches && few) {
        /* Woken for little: each time it goes without for longer. */
        hub->watch_fails += hub->watch_fails < WATCH_FAILS_MOST;
        hub->watch_pauses = 1U << hub->watch_fails;
    } else if (hub->watches) {
        hub->watch_fails = 0;
    } else if (hub->watch_pauses > 0) {
        hub->watch_pauses--;
    }
    return !few && hub->watch_pauses == 0 && hub->in_flight != NULL &&
                   hub->grace_ns >= WATCH_LEAST_NS && !paml_crowded()
               ? hub->grace_ns
               : 0;
}

/* The mailbox is empty: its owner sleeps, unless something comes at this moment. */
static void
hub_rest(HubObj *hub, int64_t now_ns)
{
    int64_t watch_ns = hub_may_watch(hub);

    paml_mailbox_silence(hub->mailbox, now_ns);
    hub->watches = false;
    if (paml_mailbox_rest(hub->mailbox, now_ns, watch_ns)) {
        hub->watches = watch_ns > 0;
        hub->looked_ns = now_ns;
        hub->arrived = 0;
        hub->grace_ns = INT64_MAX;
    } else {
        paml_mailbox_ring(hub->mailbox);
    }
}

static void
hub_settle_arrived(HubObj *hub)
{
    struct paml_op *op = paml_mailbox_take(hub->mailbox), *next;
    int64_t before_ns = hub->looked_ns, grace_ns;
    FutureObj *future;

    if (op == NULL) {
        return;
    }
    hub->looked_ns = paml_now_ns();
    hub_note_arrival(hub, hub->looked_ns);
    while (op != NULL) {
        next = op->next;
        hub->arrived++;
        grace_ns = paml_mailbox_grace(op, before_ns);
        hub->grace_ns = grace_ns < hub->grace_ns ? grace_ns : hub->grace_ns;
        future = paml_hub_settle(hub, (struct paml_request *)op);
        if (future != NULL) {
            paml_hub_ready(hub, future);
        }
        op = next;
    }
}

void
paml_hub_hold(HubObj *hub, struct paml_model *model, int64_t now_ns)
{
    int i = 0;

    if (!hub->running) {
        return;
    }
    while (i < hub->n_held && hub->held[i] != model) {
        i++;
    }
    if (i == HUB_HELD_MOST) {
        return;
    }
    if (i == hub->n_held) {
        atomic_fetch_add_explicit(&model->refs, 1, memory_order_relaxed);
        hub->held[hub->n_held++] = model;
    }
    paml_queue_hold(&model->queue, now_ns);
}

static void
hub_let_go(HubObj *hub)
{
    while (hub->n_held > 0) {
        struct paml_model *model = hub->held[--hub->n_held];
        paml_queue_let_go(&model->queue);
        paml_model_unref(model);
    }
}

/* Runs the callbacks of settled futures. Returns how many futures may still be served
   this time, 0 past `until_ns`, or -1 with SystemExit or KeyboardInterrupt set.

   asyncio would pass each through call_soon, at a cost several times that of the task's
   step. We are called by the loop as any callback is, so we do what it would have done
   next. In debug mode the loop times callbacks one by one: there it gets them, and so
   does one that may be run within itself. */
static int
hub_run_ready(HubObj *hub, int most, int64_t until_ns)
{
    FutureObj *future;
    int status;

    hub->running++;
    while (most > 0 && (future = hub_next_ready(hub)) != NULL) {
        status = hub->one_by_one ? paml_future_schedule_callbacks(hub->state, future)
                                 : paml_future_run_callbacks(hub->state, future);
        Py_DECREF(future);
        most = status < 0 ? -1 : most - 1;
        if (most > 0 && most % DRAIN_FEW == 0 && paml_now_ns() >= until_ns) {
            most = 0;
        }
    }
    hub->running--;
    hub_let_go(hub);
    return most;
}

static int
hub_refresh_debug(HubObj *hub)
{
    PyObject *debug = PyObject_CallMethodNoArgs(hub->loop, hub->state->str_get_debug);

    if (debug == NULL) {
        return -1;
    }
    hub->debug = PyObject_IsTrue(debug);
    Py_DECREF(debug);
    /* nest_asyncio's mark: a loop that may run within itself. It can't come back into
       drain while drain runs (a context is entered once), so nothing may run there. */
    hub->one_by_one =
        hub->debug > 0 || PyObject_HasAttr(hub->loop, hub->state->str_nest_patched);
    return hub->debug < 0 ? -1 : 0;
}

/* Whether nothing else waits for the loop's next turn. What came while callbacks ran is
   settled in this turn only then: whatever was scheduled before is older than the
   awaits it answers, and a program may count on that. */
static int
hub_has_the_turn(HubObj *hub)
{
    Py_ssize_t others = hub->loop_ready != NULL ? PyObject_Size(hub->loop_ready) : 1;

    if (others < 0) {
        PyErr_Clear();
    }
    return others == 0;
}

/* The same from drain, which the loop calls in a context of its own: left meanwhile,
   since a callback that runs the loop again makes it enter that context once more. */
static int
hub_run_ready_outside(HubObj *hub, int most, int64_t until_ns)
{
    PyObject *context = Py_XNewRef(PyThreadState_Get()->context);
    PyObject *type, *value, *traceback;
    int left = context != NULL && PyContext_Exit(context) == 0;

    if (!left) {
        PyErr_Clear(); /* not entered: it wasn't the loop that called */
    }
    most = hub_run_ready(hub, most, until_ns);
    if (left) {
        PyErr_Fetch(&type, &value, &traceback);
        if (PyContext_Enter(context) < 0) {
            PyErr_Clear(); /* a callback left it entered; the loop will tell */
        }
        PyErr_Restore(type, value, traceback);
    }
    Py_XDECREF(context);
    return most;
}

PyDoc_STRVAR(Hub_drain_doc, "drain($self, /)\n--\n\nSettle what the workers finished.");

/* Thread: the loop's, from its reader callback. GIL: held.

   The eventfd stays readable while callbacks run, or is rung by what ends them early:
   an exception that ends the loop leaves the rest to its next run. It is silenced
   before the last look at the mailbox, so no ring is lost. */
static PyObject *
Hub_drain(HubObj *hub, PyObject *Py_UNUSED(ignored))
{
    struct module_state *state = hub->state;
    int most = DRAIN_MOST;
    int64_t now_ns = paml_now_ns(), until_ns = now_ns + DRAIN_MOST_NS;

    if (state->orphans != NULL) {
        paml_orphans_collect(state);
    }
    if (hub_refresh_debug(hub) < 0) {
        return NULL;
    }
    /* Or a busy loop would call us for it in every turn, besides for the eventfd. */
    paml_mailbox_silence_alarm(hub->mailbox, now_ns);
    do {
        hub_settle_arrived(hub);
        if ((most = hub_run_ready_outside(hub, most, until_ns)) < 0) {
            paml_mailbox_ring(hub->mailbox); /* the rest is the loop's next run's */
            return NULL;
        }
    } while (most > 0 && paml_mailbox_has_more(hub->mailbox) && hub_has_the_turn(hub));
    if (hub->ready_first != NULL || paml_mailbox_has_more(hub->mailbox)) {
        /* Not readable any more where the alarm and the eventfd called us twice in one
           turn, and the first call silenced both. */
        paml_mailbox_ring(hub->mailbox);
        Py_RETURN_NONE;
    }
    now_ns = paml_now_ns();
    if (hub->dry_since_ns == 0) {
        hub->dry_since_ns = now_ns;
    }
    if (hub_lingers(hub, now_ns)) {
        paml_mailbox_ring(hub->mailbox); /* two calls in one turn: see above */
        Py_RETURN_NONE;
    }
    hub_rest(hub, now_ns);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Hub_expire_doc,
             "expire($self, /)\n--\n\nSettle what is past its deadline.");

static PyObject *
Hub_expire(HubObj *hub, PyObject *Py_UNUSED(ignored))
{
    int status;

    /* What is here already came in time, also if the loop was busy until now. */
    hub_settle_arrived(hub);
    status = paml_deadlines_expire(hub);
    if (status == 0 &&
        hub_run_ready(hub, DRAIN_MOST, paml_now_ns() + DRAIN_MOST_NS) < 0) {
        status = -1;
    }
    /* drain does the rest, and lets the mailbox rest. */
    paml_mailbox_ring(hub->mailbox);
    if (status < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Hub_fileno_doc, "fileno($self, /)\n--\n\nThe eventfd workers write to.");

static PyObject *
Hub_fileno(HubObj *hub, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(hub->mailbox->fd);
}

/* Registers with the loop, in an empty context: the loop keeps the context of the
   first caller for all later calls. */
static int
hub_register(HubObj *hub)
{
    struct module_state *state = hub->state;
    PyObject *drain = PyObject_GetAttr((PyObject *)hub, state->str_drain);
    PyObject *alarm = PyLong_FromLong(hub->mailbox->alarm_fd);
    PyObject *context = PyContext_New(), *first = NULL, *second = NULL;

    if (drain != NULL && alarm != NULL && context != NULL &&
        PyContext_Enter(context) == 0) {
        first = PyObject_CallMethodObjArgs(hub->loop, state->str_add_reader,
                                           (PyObject *)hub, drain, NULL);
        if (first != NULL) {
            second = PyObject_CallMethodObjArgs(hub->loop, state->str_add_reader, alarm,
                                                drain, NULL);
        }
        if (PyContext_Exit(context) < 0) {
            Py_CLEAR(second);
        }
    }
    Py_XDECREF(drain);
    Py_XDECREF(alarm);
    Py_XDECREF(context);
    Py_XDECREF(first);
    Py_XDECREF(second);
    return second != NULL ? 0 : -1;
}

static HubObj *
hub_new(struct module_state *state, PyObject *loop)
{
    HubObj *hub = (HubObj *)state->HubType->tp_alloc(state->HubType, 0);

    if (hub == NULL) {
        return NULL;
    }
    hub->state = state;
    hub->module = Py_NewRef(state->module);
    hub->loop = Py_NewRef(loop);
    hub->loop_ready = PyObject_GetAttr(loop, state->str_ready);
    if (hub->loop_ready == NULL) {
        PyErr_Clear();
    }
    hub->usual_gap_ns = 2 * LINGER_NS; /* to be earned by traffic */
    hub->mailbox = paml_mailbox_new();
    if (hub->mailbox == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(hub);
        return NULL;
    }
    if (hub_refresh_debug(hub) < 0 || hub_register(hub) < 0) {
        Py_DECREF(hub);
        return NULL;
    }
    hub->next = state->hubs;
    state->hubs = hub;
    return hub;
}

/* What asyncio keeps for the thread while a loop runs in it: an object of its own for
   each run, by whose identity a hub can be known again. Borrowed; NULL where there is
   none. asyncio.get_running_loop() makes a system call (getpid) before 3.12; from then
   on it is as quick as this. */
static PyObject *
running_mark(struct module_state *state)
{
#if PY_VERSION_HEX < 0x030C0000
    PyObject *dict = PyThreadState_GetDict(); /* borrowed */

    return dict != NULL ? PyDict_GetItemWithError(dict, state->str_running_loop) : NULL;
#else
    (void)state;
    return NULL;
#endif
}

static HubObj *
hub_of_loop(struct module_state *state, PyObject *loop)
{
    HubObj *hub = state->hubs, **link;

    while (hub != NULL && hub->loop != loop) {
        hub = hub->next;
    }
    if (hub == NULL) {
        paml_orphans_collect(state);
        hub = hub_new(state, loop);
        /* The loop has it now, as its reader. */
        Py_XDECREF(hub);
    } else if (hub != state->hubs) {
        /* Most recently used first. */
        for (link = &state->hubs; *link != hub; link = &(*link)->next) {
        }
        *link = hub->next;
        hub->next = state->hubs;
        state->hubs = hub;
    }
    return hub;
}

HubObj *
paml_hub_of_running_loop(struct module_state *state)
{
    PyObject *mark = running_mark(state), *loop;
    HubObj *hub = state->hubs;

    if (mark != NULL && hub != NULL && hub->running_mark == mark) {
        return hub;
    }
    loop = PyObject_CallNoArgs(state->get_running_loop);
    if (loop == NULL) {
        return NULL;
    }
    hub = hub_of_loop(state, loop);
    Py_DECREF(loop);
    if (hub != NULL) {
        /* Owned: its address can't come to mean another run. */
        Py_XINCREF(mark);
        Py_XSETREF(hub->running_mark, mark);
    }
    return hub;
}

/* The loop is gone. Work not begun is taken back; the rest will be an orphan. Their
   futures vanish without a log, as those of a closed loop do.
   Thread: whoever drops the loop. GIL: held. */
static void
hub_abandon_all(HubObj *hub)
{
    struct module_state *state = hub->state;
    struct paml_request *request, *gone = NULL;
    struct orphan *orphan;
    FutureObj *future;
    size_t expected = 0;
    bool forked = paml_threads_forked(); /* a worker may have died holding a lock */

    while ((request = hub->in_flight) != NULL) {
        paml_deadline_remove(hub, request);
        paml_hub_remove(hub, request);
        request->hub = NULL;
        if (request->future != NULL) {
            request->future->request = NULL; /* pending for ever */
        }
        if (!forked && request->kind->remove(request)) {
            if (request->kind->given_up != NULL && request->future != NULL) {
                request->kind->given_up(request, PAML_OK);
            }
            request->next = gone; /* freed below: that may run anything */
            gone = request;
        } else {
            if (!forked) {
                paml_op_give_up(&request->op, false);
            }
            future = request->future;
            request->future = NULL;
            expected++;
            Py_XDECREF(future);
        }
    }
    if (hub->mailbox != NULL && expected > 0 &&
        (orphan = PyMem_RawMalloc(sizeof(*orphan))) != NULL) {
        orphan->mailbox = hub->mailbox;
        orphan->expected = expected;
        orphan->next = state->orphans;
        state->orphans = orphan;
    } else if (hub->mailbox != NULL && expected == 0) {
        paml_mailbox_unref(hub->mailbox);
    }
    hub->mailbox = NULL;
    while ((request = gone) != NULL) {
        gone = request->next;
        paml_request_free(request);
    }
    while ((future = hub_next_ready(hub)) != NULL) {
        Py_DECREF(future);
    }
}

static int
Hub_traverse(HubObj *hub, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(hub));
    Py_VISIT(hub->loop);
    Py_VISIT(hub->loop_ready);
    if (hub->running_mark != NULL && Py_REFCNT(hub->running_mark) == 1) {
        /* Ours alone, and not tracked by the collector: what it refers to is the loop.
         */
        Py_VISIT(hub->loop);
    }
    for (struct paml_request *r = hub->in_flight; r != NULL; r = r->next) {
        Py_VISIT(r->future);
        Py_VISIT(r->owner);
    }
    for (FutureObj *future = hub->ready_first; future != NULL;
         future = future->ready_next) {
        Py_VISIT(future);
    }
    return 0;
}

static int
Hub_clear(HubObj *hub)
{
    HubObj **link;

    for (link = &hub->state->hubs; *link != NULL; link = &(*link)->next) {
        if (*link == hub) {
            *link = hub->next;
            break;
        }
    }
    hub_abandon_all(hub);
    Py_CLEAR(hub->loop_ready);
    Py_CLEAR(hub->running_mark);
    Py_CLEAR(hub->loop);
    return 0;
}

static void
Hub_dealloc(HubObj *hub)
{
    PyTypeObject *type = Py_TYPE(hub);
    PyObject *module = hub->module;

    PyObject_GC_UnTrack(hub);
    Hub_clear(hub);
    PyMem_Free(hub->heap);
    PyMem_Free(hub->timers);
    type->tp_free(hub);
    Py_DECREF(type);
    Py_XDECREF(module);
}

static PyMethodDef Hub_methods[] = {
    {"drain", (PyCFunction)Hub_drain, METH_NOARGS, Hub_drain_doc},
    {"expire", (PyCFunction)Hub_expire, METH_NOARGS, Hub_expire_doc},
    {"fileno", (PyCFunction)Hub_fileno, METH_NOARGS, Hub_fileno_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Hub_slots[] = {
    {Py_tp_doc, "Where native work comes back to one event loop."},
    {Py_tp_traverse, Hub_traverse},
    {Py_tp_clear, Hub_clear},
    {Py_tp_dealloc, Hub_dealloc},
    {Py_tp_methods, Hub_methods},
    {0, NULL},
};

static PyType_Spec Hub_spec = {
    .name = "pyasyncml._core.Hub",
    .basicsize = sizeof(HubObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Hub_slots,
};

int
paml_hub_exec(PyObject *module, struct module_state *state)
{
    state->HubType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Hub_spec, NULL);
    state->str_drain = PyUnicode_InternFromString("drain");
    state->str_expire = PyUnicode_InternFromString("expire");
    state->str_add_reader = PyUnicode_InternFromString("add_reader");
    state->str_call_later = PyUnicode_InternFromString("call_later");
    state->str_nest_patched = PyUnicode_InternFromString("_nest_patched");
    state->str_ready = PyUnicode_InternFromString("_ready");
    state->str_running_loop =
        PyUnicode_InternFromString("__asyncio_running_event_loop__");
    return PyErr_Occurred() ? -1 : 0;
}
