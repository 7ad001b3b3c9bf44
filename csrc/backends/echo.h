/* The echo backend: gives its inputs back, and does on the way what a test tells it.
 *
 * A script is shared between the model's instances and the test that holds it: a gate
 * that runs wait at, a delay, failures to come, counts, and the rows of each batch.
 *
 * Lifetime: counted references; one for the test's handle, one for a loaded program.
 * Thread: any, GIL or not. Lock: `lock` guards every field below it.
 */
#ifndef PAML_ECHO_H
#define PAML_ECHO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "backend.h"
#include "op.h"

#define PAML_ECHO_SEEN 4096

struct paml_echo {
    atomic_int refs;
    /* Of each run, and of each of its rows; not changed after the model is made. */
    int64_t delay_ns, row_ns;
    bool busy; /* burn the delay instead of sleeping it */
    /* Of instances of the asynchronous backend: how many runs they have in flight, and
       whether they have to be asked for their ends. */
    uint32_t in_flight;
    bool polled;

    pthread_mutex_t lock;
    pthread_cond_t gate;
    bool held;       /* runs wait at the gate … */
    int64_t permits; /* … but for so many */
    uint64_t begun, finished;
    int64_t fail_runs; /* of the next runs, so many fail */
    int fail_code;
    char fail_message[256];
    bool poisoned; /* runs fail whose first input holds … */
    double poison;
    int64_t rows_most;             /* runs of more rows run out of memory; 0: none do */
    struct paml_op *watchers;      /* answered when `begun` reaches their `rows` */
    uint32_t seen[PAML_ECHO_SEEN]; /* rows of run i at i % PAML_ECHO_SEEN */
};

extern const struct paml_backend paml_echo_backend;
/* echo_flights.c: instances with a thread of their own in the place of a device. */
extern const struct paml_backend paml_echo_flights_backend;

struct paml_echo *paml_echo_new(int64_t delay_ns, int64_t row_ns, bool busy);
void paml_echo_unref(struct paml_echo *echo);

void paml_echo_hold(struct paml_echo *echo);
/* Lets `runs` runs through; negative: opens the gate for good. */
void paml_echo_release(struct paml_echo *echo, int64_t runs);
void paml_echo_fail(struct paml_echo *echo, int64_t runs, int code,
                    const char *message);
void paml_echo_poison(struct paml_echo *echo, bool poisoned, double value);
void paml_echo_limit(struct paml_echo *echo, int64_t rows);
/* Answers the op (its own rows) when `runs` runs have begun. Takes it. */
void paml_echo_watch(struct paml_echo *echo, uint32_t runs, struct paml_op *op);
/* Takes a watcher back. False: it was answered. */
bool paml_echo_unwatch(struct paml_echo *echo, struct paml_op *op);

/* --- what both backends are made of --- */

int paml_echo_load(const struct paml_load_spec *spec, void **program,
                   struct paml_error *err);
void paml_echo_unload(void *program);
const struct paml_entry *paml_echo_describe(void *program);
/* The echo backend has no devices. PAML_OK or PAML_ERR_LOAD. */
int paml_echo_check_device(DLDevice device, struct paml_error *err);
/* Counts a run, and tells who waits for that. */
void paml_echo_begin(struct paml_echo *echo, const struct paml_run *run);
/* A run, or, of one that was `begun`, the rest: the gate, what goes wrong, the delay.
 */
int paml_echo_run(struct paml_echo *echo, struct paml_run *run, bool begun,
                  struct paml_error *err);

#endif
