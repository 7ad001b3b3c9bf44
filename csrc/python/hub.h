/* One hub per event loop: where native work comes back.
 *
 * The loop owns its hub through loop.add_reader(hub, hub.drain), and nobody else does:
 * when the loop closes, the hub goes with it. Futures and requests point to it without
 * a reference and are told when it goes.
 *
 * Thread: the loop's, GIL held.
 */
#ifndef PAML_HUB_H
#define PAML_HUB_H

#include "mailbox.h"
#include "model.h"
#include "request.h"

#define HUB_HELD_MOST 4

typedef struct hub {
    PyObject_HEAD struct module_state *state;
    PyObject *module; /* owned: at exit types may let go of it before their objects */
    PyObject *loop;
    PyObject *loop_ready; /* asyncio's deque of what runs next; NULL: not to be seen */
    PyObject *running_mark; /* of the loop's run that last came here, or NULL */
    struct hub *next;       /* state->hubs */
    struct paml_mailbox *mailbox;
    struct paml_request *in_flight; /* doubly linked */
    /* Settled futures (owned) whose callbacks have yet to run. */
    FutureObj *ready_first, *ready_last;
    struct paml_request **heap; /* by deadline, earliest at 0 */
    size_t heap_size, heap_capacity;
    /* Queues this hub has pushed to while it runs callbacks, held until it is done. */
    struct paml_model *held[HUB_HELD_MOST];
    int n_held;
    int running; /* callbacks, now */
    /* Lingering: see hub.c. */
    int64_t dry_since_ns; /* the mailbox has been empty since then; 0: it isn't */
    int64_t usual_gap_ns; /* moving average of how long it stays empty */
    /* Watching: see hub.c. */
    unsigned arrived;      /* since the mailbox last rested */
    int64_t looked_ns;     /* when it was last emptied */
    int64_t grace_ns;      /* the shortest of what arrived, had it been told then */
    bool watches;          /* it rests by an alarm of its own */
    unsigned watch_pauses; /* rests to go without */
    unsigned watch_fails;  /* in a row */
    int64_t *timers;       /* of the loop, outstanding; latest first */
    size_t n_timers, timers_capacity;
    int debug;
    int one_by_one; /* callbacks go through the loop's call_soon */
} HubObj;

/* The hub of the running loop (borrowed), made if there is none yet. NULL with an error
   set: RuntimeError where no loop runs. */
HubObj *paml_hub_of_running_loop(struct module_state *state);

void paml_hub_add(HubObj *hub, struct paml_request *request);
void paml_hub_remove(HubObj *hub, struct paml_request *request);

/* The op is back: what becomes of its future is decided here and nowhere else. Returns
   the hub's reference to that; NULL where it had left. */
FutureObj *paml_hub_settle(HubObj *hub, struct paml_request *request);

/* Before a push: while callbacks run, what they submit goes out as one burst. */
void paml_hub_hold(HubObj *hub, struct paml_model *model, int64_t now_ns);

/* deadlines.c: the heap and its timer. */
int paml_deadline_add(HubObj *hub, struct paml_request *request);
void paml_deadline_remove(HubObj *hub, struct paml_request *request);
/* Settles what is due, sets the next timer. -1 with an error set. */
int paml_deadlines_expire(HubObj *hub);

/* Queues a settled future's callbacks, stealing the reference. */
void paml_hub_ready(HubObj *hub, FutureObj *future);

/* Frees what arrived for loops that are gone. Any Python-side call may. */
void paml_orphans_collect(struct module_state *state);

#endif
