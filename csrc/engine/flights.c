#include "flights.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "clock.h"
#include "serve.h"
#include "serving.h"
#include "session.h"

/* One run in flight. A place in the ring; used again and again, its memory only grows.
 */
struct flight {
    struct paml_flight its; /* what the backend sees */
    struct paml_flights *flights;

    /* Written under the bell's lock, or by the worker where the backend doesn't tell.
     */
    atomic_bool ended;
    int64_t ended_ns;

    int64_t begun_ns;    /* when it was given to the backend */
    int64_t expected_ns; /* what it is expected to take, as far as anybody knows */
    bool company;        /* another was up with it */

    /* Of what it is the run. `outputs` is where the run puts them. */
    uint32_t n, capacity;
    struct job *jobs, **pointers;
    struct paml_slice *slices;
    int64_t rows;
    struct paml_batcher batcher;
    struct paml_outputs outputs;

    /* Landed, and to be run again. */
    int code; /* PAML_OK: not this one */
    bool ran;
};

struct paml_flights {
    struct paml_worker *worker;
    void *instance;
    struct paml_error *error;
    struct paml_bell bell;
    uint32_t depth, up;
    /* The oldest one's place. seq_cst: see flight_ready. */
    atomic_uint first;
    int64_t busy_until_ns; /* the end of the last one that landed */
    struct flight ring[];
};

static struct flight *
flight_at(struct paml_flights *flights, uint32_t place)
{
    return &flights->ring[place % flights->depth];
}

static struct flight *
oldest(struct paml_flights *flights)
{
    return flight_at(flights,
                     atomic_load_explicit(&flights->first, memory_order_relaxed));
}

struct paml_flights *
paml_flights_new(struct paml_worker *worker, void *instance, struct paml_error *error)
{
    const struct paml_backend *backend = worker->model->backend;
    const uint32_t most =
        worker->model->batching.max_rows > 1 ? PAML_DEPTH_OF_BATCHES : PAML_DEPTH_MOST;
    struct paml_flights *flights;
    uint32_t depth;

    depth = paml_backend_is_asynchronous(backend) ? backend->depth(instance) : 0;
    depth = depth < most ? depth : most;
    if (depth < 2) {
        return NULL;
    }
    flights = calloc(1, sizeof(*flights) + depth * sizeof(flights->ring[0]));
    if (flights == NULL) {
        return NULL;
    }
    flights->worker = worker;
    flights->instance = instance;
    flights->error = error;
    flights->depth = depth;
    paml_bell_init(&flights->bell);
    for (uint32_t i = 0; i < depth; i++) {
        flights->ring[i].flights = flights;
        paml_batcher_init(&flights->ring[i].batcher);
        paml_outputs_init(&flights->ring[i].outputs);
    }
    return flights;
}

void
paml_flights_free(struct paml_flights *flights)
{
    for (uint32_t i = 0; i < flights->depth; i++) {
        struct flight *flight = &flights->ring[i];
        free(flight->jobs);
        free(flight->pointers);
        free(flight->slices);
        paml_batcher_destroy(&flight->batcher);
        paml_outputs_clear(&flight->outputs);
    }
    paml_bell_destroy(&flights->bell);
    free(flights);
}

uint32_t
paml_flights_up(const struct paml_flights *flights)
{
    return flights->up;
}

bool
paml_flights_have_room(const struct paml_flights *flights)
{
    return flights->up == 0 ||
           (flights->up < flights->depth &&
            !paml_backend_is_crowded(flights->worker->model->backend,
                                     flights->instance));
}

int64_t
paml_flights_busy_ns(struct paml_flights *flights)
{
    const atomic_int_least64_t *since = &flights->worker->stats.running_since_ns;
    const uint32_t first = atomic_load_explicit(&flights->first, memory_order_relaxed);
    int64_t done_ns, busy_ns = 0;

    if (flights->up == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < flights->up; i++) {
        busy_ns += flight_at(flights, first + i)->expected_ns;
    }
    done_ns = paml_now_ns() - atomic_load_explicit(since, memory_order_relaxed);
    if (done_ns > oldest(flights)->expected_ns) {
        done_ns = oldest(flights)->expected_ns; /* it is late; the others aren't on */
    }
    busy_ns -= done_ns;
    return busy_ns > 0 ? busy_ns : 1;
}

struct paml_bell *
paml_flights_bell(struct paml_flights *flights)
{
    return &flights->bell;
}

/* --- the end of a run --- */

/* The backend's word that a run is done. The bell is rung for the oldest only: the
   others are looked at when it is their turn.
   Thread: any. GIL: any. Locks: takes the bell's. */
static void
flight_ready(struct paml_flight *its)
{
    struct flight *flight =
        (struct flight *)((char *)its - offsetof(struct flight, its));
    struct paml_flights *flights = flight->flights;
    struct paml_bell *bell = &flights->bell;

    /* All of it under the lock: the worker, which may take the flight for landed at
       once, has the lock before the flights go (paml_bell_destroy). */
    pthread_mutex_lock(&bell->lock);
    flight->ended_ns = paml_now_ns();
    /* seq_cst: pairs with the worker's store to `first` before its look at `ended`. One
       of the two sees the other's. As a release it carries ended_ns. */
    atomic_store_explicit(&flight->ended, true, memory_order_seq_cst);
    if (flight_at(flights, atomic_load_explicit(&flights->first,
                                                memory_order_seq_cst)) == flight) {
        paml_bell_ring_held(bell);
    }
    pthread_mutex_unlock(&bell->lock);
}

static bool
has_ended(struct flight *flight)
{
    /* seq_cst: see flight_ready. */
    return atomic_load_explicit(&flight->ended, memory_order_seq_cst);
}

static void
note_end(struct flight *flight)
{
    if (!has_ended(flight)) {
        flight->ended_ns = paml_now_ns();
        atomic_store_explicit(&flight->ended, true, memory_order_relaxed);
    }
}

bool
paml_flights_have_landed(struct paml_flights *flights)
{
    return flights->up > 0 && has_ended(oldest(flights));
}

int64_t
paml_flights_ask(struct paml_flights *flights)
{
    struct flight *flight = oldest(flights);
    int64_t pause_ns;

    if (has_ended(flight)) {
        return 0;
    }
    pause_ns = flights->worker->model->backend->poll(flights->instance, &flight->its);
    if (pause_ns == 0) {
        note_end(flight);
    }
    return pause_ns;
}

/* --- landing --- */

/* What the outputs mean to the requests. Returns the code of what failed; `*ran`: it
   was the run. */
static int
scatter(struct serving *serving, struct flight *flight)
{
    int code;

    if (serving->batching == NULL) {
        paml_outputs_move(&flight->outputs, &flight->jobs[0].op->outputs);
        paml_answer_served(serving, &flight->jobs[0]);
        return PAML_OK;
    }
    code = paml_batch_scatter(&flight->batcher, serving->batching, flight->slices,
                              flight->n, &flight->outputs, serving->error);
    if (code != PAML_OK) {
        flight->ran = code == PAML_ERR_MEMORY; /* else no other run helps */
        return code;
    }
    for (uint32_t i = 0; i < flight->n; i++) {
        paml_deliver(serving, flight->pointers[i], &flight->slices[i]);
    }
    return PAML_OK;
}

/* Takes the flight, the oldest, off the ring, and tells since when the next has been
 * on.
 */
static void
leave_ring(struct paml_flights *flights, int64_t ended_ns)
{
    atomic_int_least64_t *since = &flights->worker->stats.running_since_ns;
    uint32_t first = atomic_load_explicit(&flights->first, memory_order_relaxed);
    int64_t next_ns = 0;

    flights->up--;
    /* seq_cst: see flight_ready. */
    atomic_store_explicit(&flights->first, (first + 1) % flights->depth,
                          memory_order_seq_cst);
    if (flights->up > 0) {
        next_ns = oldest(flights)->begun_ns;
        next_ns = next_ns > ended_ns ? next_ns : ended_ns;
    }
    atomic_store_explicit(since, next_ns, memory_order_relaxed);
}

/* Whether a flight that ended with that is to be run again, in parts or as it is. */
static bool
wants_another_run(const struct flight *flight, int code)
{
    return paml_remedy_for(code, flight->rows, flight->n, flight->ran) !=
               PAML_REMEDY_NONE ||
           /* It may have been the others' memory that was missing. */
           (code == PAML_ERR_MEMORY && flight->ran && flight->company);
}

/* Lands the oldest. True: it is to be run again, which is left to run_again().
   Thread: worker. GIL: not held. Locks: the bell's. */
static bool
land(struct paml_flights *flights, struct serving *serving)
{
    struct paml_worker *worker = flights->worker;
    struct flight *flight = oldest(flights);
    int64_t begun_ns = flight->begun_ns, ended_ns;
    int code;

    code =
        worker->model->backend->finish(flights->instance, &flight->its, serving->error);
    note_end(flight);
    ended_ns = flight->ended_ns;
    /* The device could begin it when the one before had ended; one that ended before
       that was on beside it. */
    if (begun_ns < flights->busy_until_ns && flights->busy_until_ns < ended_ns) {
        begun_ns = flights->busy_until_ns;
    }
    if (ended_ns > flights->busy_until_ns) {
        paml_count(&worker->stats.busy_ns, (uint64_t)(ended_ns - begun_ns));
        flights->busy_until_ns = ended_ns;
    }
    leave_ring(flights, ended_ns);
    paml_note_run(serving, flight->slices, flight->rows, flight->n, begun_ns, ended_ns,
                  code);
    flight->ran = true;
    if (code == PAML_OK) {
        code = scatter(serving, flight);
    }
    if (code == PAML_OK) {
        return false;
    }
    paml_outputs_clear(&flight->outputs);
    if (wants_another_run(flight, code)) {
        flight->code = code;
        return true;
    }
    for (uint32_t i = 0; i < flight->n; i++) {
        paml_answer_failed(serving, flight->pointers[i], code, serving->error->message);
    }
    return false;
}

/* Runs what has failed again, now that nothing is up.
   Thread: worker. GIL: not held. Locks: none. */
static void
run_again(struct serving *serving, struct flight *flight)
{
    int code = flight->code;
    enum paml_remedy remedy =
        paml_remedy_for(code, flight->rows, flight->n, flight->ran);

    flight->code = PAML_OK;
    serving->now_ns = paml_now_ns();
    if (remedy != PAML_REMEDY_NONE) {
        paml_serve_failed(serving, flight->slices, flight->pointers, flight->n,
                          flight->rows, code, remedy);
    } else if (serving->batching != NULL) {
        paml_run_slices(serving, flight->slices, flight->pointers, flight->n);
    } else {
        paml_run_alone(serving, &flight->jobs[0]);
    }
}

/* Lands the rest, in order; then runs again, in order, what of them, from the place
   `from` on, is to be. */
static void
land_rest(struct paml_flights *flights, struct serving *serving, uint32_t from,
          uint32_t n)
{
    /* What waits may be somebody else's meanwhile. */
    paml_queue_hand_on(&flights->worker->model->queue);
    while (flights->up > 0) {
        paml_worker_before_run(flights->worker);
        land(flights, serving);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct flight *flight = flight_at(flights, from + i);
        if (flight->code != PAML_OK) {
            run_again(serving, flight);
        }
    }
}

int64_t
paml_flights_land(struct paml_flights *flights, int64_t *run_ns)
{
    struct serving serving =
        paml_serving_of(flights->worker, flights->instance, flights->error);
    uint32_t first = atomic_load_explicit(&flights->first, memory_order_relaxed);
    uint32_t up = flights->up;

    if (land(flights, &serving)) {
        land_rest(flights, &serving, first, up);
    }
    *run_ns = serving.run_ns;
    return serving.now_ns;
}

void
paml_flights_land_all(struct paml_flights *flights)
{
    struct serving serving =
        paml_serving_of(flights->worker, flights->instance, flights->error);

    if (flights->up > 0) {
        land_rest(flights, &serving,
                  atomic_load_explicit(&flights->first, memory_order_relaxed),
                  flights->up);
    }
}

/* --- taking off --- */

/* Room for the batch. -1: no memory. */
static int
reserve(struct flight *flight, uint32_t n)
{
    struct job *jobs;
    struct job **pointers;
    struct paml_slice *slices;

    if (n <= flight->capacity) {
        return 0;
    }
    jobs = malloc(n * sizeof(*jobs));
    pointers = malloc(n * sizeof(struct job *));
    slices = malloc(n * sizeof(*slices));
    if (jobs == NULL || pointers == NULL || slices == NULL) {
        free(jobs);
        free(pointers);
        free(slices);
        return -1;
    }
    free(flight->jobs);
    free(flight->pointers);
    free(flight->slices);
    flight->jobs = jobs;
    flight->pointers = pointers;
    flight->slices = slices;
    flight->capacity = n;
    return 0;
}

/* The batch's requests become the flight's, but for those that are late. */
static void
board(struct serving *serving, struct flight *flight, const struct paml_batch *batch)
{
    flight->rows = 0;
    for (uint32_t i = 0; i < batch->n; i++) {
        struct paml_op *op = batch->ops[i];
        flight->jobs[i] = (struct job){.op = op};
        flight->pointers[i] = &flight->jobs[i];
        flight->slices[i].op = op;
        flight->slices[i].from = 0;
        flight->slices[i].to = serving->batching != NULL ? op->rows : 1;
    }
    flight->n = paml_keep_wanted(serving, flight->slices, flight->pointers, batch->n);
    for (uint32_t i = 0; i < flight->n; i++) {
        flight->rows += flight->slices[i].to - flight->slices[i].from;
    }
}

/* The run's inputs: gathered, or the request's own. */
static int
load(struct serving *serving, struct flight *flight)
{
    struct paml_worker_stats *stats = &serving->worker->stats;
    struct paml_op *op = flight->slices[0].op;
    struct paml_run *run = &flight->its.run;
    int code;

    *run = (struct paml_run){.inputs = op->inputs,
                             .n_inputs = op->n_inputs,
                             .n_arguments = op->n_arguments,
                             .outputs = &flight->outputs,
                             .deadline_ns = flight->n == 1 ? op->deadline_ns : 0};
    for (uint32_t i = 0; i < flight->n; i++) {
        if (flight->slices[i].op->session != NULL) {
            paml_session_lend(flight->slices[i].op);
        }
    }
    if (serving->batching == NULL) {
        return PAML_OK;
    }
    code = paml_batch_gather(&flight->batcher, serving->batching, flight->slices,
                             flight->n, run, serving->error);
    if (code == PAML_OK) {
        serving->now_ns = paml_now_ns(); /* it may have copied much */
        paml_count(&stats->cells, (uint64_t)flight->batcher.cells);
        paml_count(&stats->real_cells, (uint64_t)flight->batcher.real_cells);
    }
    return code;
}

/* Thread: worker. GIL: not held. Locks: none. */
static int
take_off(struct paml_flights *flights, struct serving *serving, struct flight *flight)
{
    struct paml_worker *worker = flights->worker;
    int code;

    if (paml_worker_before_run(worker)) {
        serving->now_ns = paml_now_ns();
    }
    flight->its.ticket = NULL;
    flight->its.ready = flight_ready;
    flight->begun_ns = serving->now_ns;
    flight->expected_ns = paml_cost_predict(
        &worker->cost,
        paml_batch_cost_key_of(serving->batching, flight->slices, flight->n),
        flight->rows);
    flight->company = flights->up > 0;
    flight->code = PAML_OK;
    atomic_store_explicit(&flight->ended, false, memory_order_relaxed);
    if (flights->up == 0) {
        atomic_store_explicit(&worker->stats.running_since_ns, flight->begun_ns,
                              memory_order_relaxed);
    }
    code =
        worker->model->backend->submit(flights->instance, &flight->its, serving->error);
    if (code != PAML_OK) {
        if (flights->up == 0) {
            atomic_store_explicit(&worker->stats.running_since_ns, 0,
                                  memory_order_relaxed);
        }
        paml_note_run(serving, flight->slices, flight->rows, flight->n,
                      flight->begun_ns, paml_now_ns(), code);
        return code;
    }
    if (flights->up > 0) {
        oldest(flights)->company = true;
    }
    flights->up++;
    return PAML_OK;
}

/* It never got into the air. */
static void
ground(struct paml_flights *flights, struct serving *serving, struct flight *flight,
       int code)
{
    if (wants_another_run(flight, code)) {
        paml_flights_land_all(flights);
        flight->code = code;
        run_again(serving, flight);
        return;
    }
    for (uint32_t i = 0; i < flight->n; i++) {
        paml_answer_failed(serving, flight->pointers[i], code, serving->error->message);
    }
}

/* Whether more runs than one are needed: what the batch was chosen by didn't know how
   many rows fit, or it is one request of more than a run may have. */
static bool
is_too_large(const struct serving *serving, const struct flight *flight)
{
    return serving->batching != NULL &&
           flight->rows > paml_rows_of_a_run(serving, flight->slices, flight->n);
}

int64_t
paml_flights_begin(struct paml_flights *flights)
{
    struct paml_worker *worker = flights->worker;
    struct serving serving = paml_serving_of(worker, flights->instance, flights->error);
    struct flight *flight =
        flight_at(flights, atomic_load_explicit(&flights->first, memory_order_relaxed) +
                               flights->up);
    int code;

    if (!paml_serving_begin(&serving)) {
        return serving.now_ns;
    }
    if (worker->batch.ops[0]->steps != NULL || worker->refuses ||
        reserve(flight, worker->batch.n) < 0) {
        paml_flights_land_all(flights);
        serving.now_ns = paml_now_ns();
        paml_serving_run(&serving);
        return serving.now_ns;
    }
    board(&serving, flight, &worker->batch);
    if (flight->n == 0) {
        return serving.now_ns;
    }
    if (is_too_large(&serving, flight)) {
        paml_flights_land_all(flights);
        serving.now_ns = paml_now_ns();
        paml_serve_slices(&serving, flight->slices, flight->pointers, flight->n);
        return serving.now_ns;
    }
    flight->ran = false;
    code = load(&serving, flight);
    if (code == PAML_OK) {
        flight->ran = true;
        code = take_off(flights, &serving, flight);
    }
    if (code != PAML_OK) {
        ground(flights, &serving, flight, code);
    }
    return serving.now_ns;
}
