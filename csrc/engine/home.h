/* Where a worker's outputs come back to be freed.
 *
 * Memory that one thread allocates and another frees makes the two fight for the
 * allocator's lock, at several microseconds a request: the worker allocates outputs,
 * the loop's thread drops them. So while the worker is busy what is dropped is put on a
 * list, and the worker frees it between two runs. While it isn't, or when the list has
 * grown, whoever drops frees: nothing is kept for longer than a run, nor much of it.
 *
 * Owner: the worker, from paml_home_new() to paml_home_leave(); it ends with the last
 * output that is out in the world. Thread: the worker, but for the release functions
 * of the values that it has sent out, which run anywhere.
 */
#ifndef PAML_HOME_H
#define PAML_HOME_H

#include "value.h"

struct paml_home;

struct paml_home *paml_home_new(void); /* NULL when memory ran out */
void paml_home_leave(struct paml_home *home);

/* The outputs' memory will come home. */
void paml_home_send(struct paml_home *home, struct paml_outputs *outputs);
/* Frees what has come, after a run that took so long. */
void paml_home_clean(struct paml_home *home, int64_t run_ns);
/* The worker has nothing to do (frees what has come), and has again. */
void paml_home_rest(struct paml_home *home);
void paml_home_wake(struct paml_home *home);

#endif
