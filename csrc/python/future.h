/* The awaitable: what asyncio.Future is, in a C type of our own.
 *
 * Thread: that of the loop, GIL held, as with any asyncio future. Owner: whoever holds
 * a reference; a future whose work is in flight is held by its request as well (asyncio
 * holds tasks weakly, so a task and the future it waits for may be each other's only
 * reference).
 *
 * A future may carry a request (request.h): native work whose outcome settles it. The
 * future knows four things of it: that it exists, how to give it up, how to turn its
 * outputs into Python objects once, when first asked, and that a settled future keeps
 * it only for those outputs.
 */
#ifndef PAML_FUTURE_H
#define PAML_FUTURE_H

#include "state.h"

struct paml_request;

enum future_status { FUTURE_PENDING, FUTURE_CANCELLED, FUTURE_FINISHED };

struct future_callback {
    PyObject *function, *context;
    uint64_t serial; /* orders and names the callbacks of one future */
};

/* In the order they were added. The first stands apart: most futures have just one. */
struct future_callbacks {
    struct future_callback first; /* function NULL: none */
    struct future_callback *rest; /* PyMem; serials ascend */
    size_t count, room;           /* of `rest` */
};

typedef struct FutureObj {
    PyObject_HEAD PyObject *loop;
    struct future_callbacks callbacks; /* touched by future_callbacks.c alone */
    uint64_t next_serial;              /* of the next callback; never goes back */
    PyObject *result, *exception;
    PyObject *exception_tb; /* of the exception as it was set; NULL once raised */
    PyObject *source_tb;
    PyObject *cancel_msg;
    PyObject *dict, *weakrefs;
    /* Owned by the request machinery; NULL for a future made by hand. While PENDING:
       the work in flight. When FINISHED: its outputs, until converted. */
    struct paml_request *request;
    struct FutureObj *ready_next; /* the hub's list of settled futures */
    unsigned char status;         /* enum future_status */
    unsigned char log_tb;
    unsigned char blocking;
    unsigned char converting; /* paml_request_result() is on the stack */
} FutureObj;

/* --- what future.c offers the rest of the module --- */

/* A pending future of `loop` (borrowed). `debug`: record where it was made. */
FutureObj *paml_future_new(struct module_state *state, PyObject *loop, int debug);

/* Settles a PENDING future without touching its callbacks. `settle_request` leaves
   result NULL: paml_request_result() is asked for it when somebody looks. */
void paml_future_settle_request(FutureObj *future);
/* Settles with an exception instance (borrowed); never fails. */
void paml_future_settle_exception(FutureObj *future, PyObject *exception);

/* Schedules and forgets all callbacks of a settled future through loop.call_soon, in
   order: what asyncio does. Returns -1 with an exception set where call_soon raised. */
int paml_future_schedule_callbacks(struct module_state *state, FutureObj *future);

/* Calls and forgets all callbacks of a settled future here and now, each in its own
   context, as the loop would have done in its next turn. An exception of a callback
   goes to loop.call_exception_handler, as Handle._run has it; SystemExit and
   KeyboardInterrupt come back as -1 with the callbacks that were not called yet
   scheduled through call_soon. Scheduled as well, and not called: whatever follows a
   callback whose context is entered already, and everything while a task of the loop
   is being run. */
int paml_future_run_callbacks(struct module_state *state, FutureObj *future);

/* --- what request.c offers future.c --- */

/* The future leaves PENDING by another hand (cancel, set_result, set_exception): the
   work is given up: never begun if it has not begun. Sets future->request to NULL. */
void paml_request_abandon(FutureObj *future);
/* Converts the outputs of a FINISHED future: a new reference, or NULL with an exception
   set. Called at most once; the request is gone afterwards either way. */
PyObject *paml_request_result(FutureObj *future);
/* The future is being deallocated or cleared with a settled request still attached. */
void paml_request_forget(FutureObj *future);

#endif
