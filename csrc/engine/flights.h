/* A worker's runs in flight: begun, and not all of them ended.
 *
 * An instance that says so (backend.h: depth) is given its next run while the last ones
 * are still on: their copies and computing overlap, and no thread waits for a device.
 * Each flight owns what its run needs until the end: the buffers it was gathered into,
 * its slices, its outputs. Flights end, oldest first, by landing: their outputs are
 * scattered and their requests answered.
 *
 * What fails as a batch is run again in parts, and these runs, like everything else
 * that isn't one run of one batch (steps, a request of more rows than a run may have),
 * are made by the backend's `run`, which the contract allows only while nothing is in
 * flight: so the others land first.
 *
 * How long a flight took is counted from when its device could begin it: when it was
 * given to it, or when the one before had ended.
 *
 * Owner: the worker, which alone calls everything here. Only a flight's end may be told
 * by any thread: it comes in under the bell's lock.
 */
#ifndef PAML_FLIGHTS_H
#define PAML_FLIGHTS_H

#include "bell.h"
#include "model.h"

struct paml_flights;

/* At most so many are up at a time, whatever an instance says. Where requests share
 * runs that is one to compute and one to be next, if that is a full one (schedule.h):
 * what comes meanwhile had better share a run than take the device's time in many small
 * ones.
 */
#define PAML_DEPTH_MOST 64
#define PAML_DEPTH_OF_BATCHES 2

/* NULL: no memory, or the instance runs one at a time (depth below 2). */
struct paml_flights *paml_flights_new(struct paml_worker *worker, void *instance,
                                      struct paml_error *error);
void paml_flights_free(struct paml_flights *flights); /* none is up */

uint32_t paml_flights_up(const struct paml_flights *flights);
bool paml_flights_have_room(const struct paml_flights *flights);
/* How long their device is expected to be at work still; 0: none is up. */
int64_t paml_flights_busy_ns(struct paml_flights *flights);

/* Whether the oldest has ended, as far as was told or found out. */
bool paml_flights_have_landed(struct paml_flights *flights);
/* Asks the backend. 0: it has; otherwise when to ask again, in ns from now; INT64_MAX:
   the bell will be rung. One is up. */
int64_t paml_flights_ask(struct paml_flights *flights);

/* Begins what worker->batch holds, or answers it; there is room. Returns the time. */
int64_t paml_flights_begin(struct paml_flights *flights);

/* Lands the oldest, waiting for its end if need be. Returns the time; `*run_ns`: what
   it took. */
int64_t paml_flights_land(struct paml_flights *flights, int64_t *run_ns);
/* Lands all. */
void paml_flights_land_all(struct paml_flights *flights);

/* Rung when the oldest has ended, where the backend tells. */
struct paml_bell *paml_flights_bell(struct paml_flights *flights);

#endif
