/* A request: an op together with what Python needs around it.
 *
 * Made by infer(), call(), load(), close(); one allocation. It links three parties:
 *   the op      travels through queue, worker and mailbox (op.h says who owns it when);
 *   the future  is what the caller awaits;
 *   the hub     knows every request in flight on its loop, and holds their futures.
 *
 * Thread: the loop's, GIL held, except that the op is elsewhere meanwhile. Lifetime:
 * from paml_request_new() to paml_request_free(). While the op is in flight the hub
 * holds the request (and through it the future, the inputs and the owner). Settled with
 * outputs, the future holds it until they are converted. A request whose future left
 * early (cancelled, expired) stays with the hub, without a future, until its op is
 * back.
 */
#ifndef PAML_REQUEST_H
#define PAML_REQUEST_H

#include "future.h"
#include "op.h"
#include "state.h"

struct hub;
struct paml_request;
struct paml_served;

/* What differs between an inference, a close, an opening, … */
struct request_kind {
    /* Takes the op back from where it waits. True: it will never run, and is ours. */
    int (*remove)(struct paml_request *request);
    /* Counts a request that was given up: `code` is PAML_OK for a cancelled one, or
       PAML_ERR_DEADLINE for one that expired before a worker had it; of one that has
       begun the worker tells how it ended. May be NULL. */
    void (*given_up)(struct paml_request *request, int code);
    int needs_owner; /* convert() looks at it */
    /* The op is back, on the loop's thread. May be NULL. */
    void (*arrived)(struct paml_request *request);
    /* The result of a settled request: a new reference, or NULL with an error set. */
    PyObject *(*convert)(struct module_state *state, struct paml_request *request);
};

#define REQUEST_INLINE_VALUES 4
#define NOT_IN_HEAP SIZE_MAX

enum flavour { FLAVOUR_NUMPY, FLAVOUR_TORCH };

struct paml_request {
    struct paml_op op;
    const struct request_kind *kind;
    struct module_state *state;
    struct hub *hub;            /* borrowed; NULL once the loop is gone */
    FutureObj *future;          /* owned while in flight; NULL once it left */
    PyObject *owner;            /* owned: what the op runs on (a model, a script) */
    struct paml_served *served; /* used: what it was pushed to; NULL: nothing */
    struct paml_request *previous, *next; /* the hub's list of what is in flight */
    int64_t timeout_ns;   /* 0: none; from the launch on op.deadline_ns says when */
    int expired;          /* timeout=0: too late from the start */
    size_t heap_index;    /* in the hub's heap of deadlines, or NOT_IN_HEAP */
    enum flavour flavour; /* of the tensors that come back */
    uint64_t
        inline_key;    /* what kind of run it is, where it might be run inline; or 0 */
    uint32_t capacity; /* of op.inputs */
    struct paml_value first[REQUEST_INLINE_VALUES];
};

/* A request for `owner` (borrowed), not yet in flight. NULL with an error set. */
struct paml_request *paml_request_new(struct module_state *state, struct hub *hub,
                                      const struct request_kind *kind, PyObject *owner);

/* A request on the caller's stack, for inputs and outputs only: no hub, no future. */
void paml_request_borrow(struct paml_request *request, struct module_state *state);

/* Room for one more input value, zeroed; NULL with an error set. */
struct paml_value *paml_request_input(struct paml_request *request);

/* Releases inputs, outputs, owner, future. The op must not be in flight. */
void paml_request_free(struct paml_request *request);
void paml_request_release_inputs(struct paml_request *request);

/* Makes the future and puts the request in flight: from here on the caller must give
   the op to somebody who will post it, or settle it with paml_request_refuse(). Returns
   a new reference, or NULL with an error set (the request is freed then). */
FutureObj *paml_request_launch(struct paml_request *request);

/* The op was not accepted: settles the future with that error now. */
void paml_request_refuse(struct paml_request *request, int code, const char *message);

/* The future goes its own way with `code` (PAML_OK: cancelled): work that waits is
   taken back, work that runs is left to end unheard. */
void paml_request_give_up(struct paml_request *request, int code);

/* Takes a request back that has not begun: 1, and its future is nobody's then (cancel
   it). 0: it has begun, or ended, and goes on as it was. */
int paml_request_withdraw(FutureObj *future);

/* The exception for an op's code and message: a new reference, never NULL. */
PyObject *paml_request_error(struct paml_request *request);
PyObject *paml_deadline_error(struct module_state *state, int64_t timeout_ns);
PyObject *paml_exception_new(struct module_state *state, int code, const char *message);

#endif
