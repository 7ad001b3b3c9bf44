/* A worker's view of a batch on its way to answers: what serve.c, answer.c and
 * flights.c share. Thread: the worker's, all of it. GIL: never.
 */
#ifndef PAML_SERVING_H
#define PAML_SERVING_H

#include "model.h"

/* A request on its way through its slices. */
struct job {
    struct paml_op *op;
    struct paml_outputs *parts;
    uint32_t n_parts, capacity;
    int64_t rows_done;
    bool answered;
};

/* One worker's view of one batch. */
struct serving {
    struct paml_worker *worker;
    const struct paml_batching *batching; /* NULL: requests run alone */
    void *instance;
    struct paml_error *error;
    int64_t now_ns; /* when the batch was taken, a gather or the last run ended */
    int64_t run_ns; /* and what it took */
};

/* --- answer.c --- */

void paml_answer(struct serving *serving, struct job *job);
void paml_answer_failed(struct serving *serving, struct job *job, int code,
                        const char *message);
void paml_answer_served(struct serving *serving, struct job *job);
/* Past its deadline, or abandoned: answers it without a run. */
bool paml_answer_late(struct serving *serving, struct job *job);
/* Keeps what a slice gave; answers its request once all of it is there. */
void paml_deliver(struct serving *serving, struct job *job, struct paml_slice *slice);

static inline bool
paml_op_is_given_up(const struct paml_op *op)
{
    return atomic_load_explicit(&op->given_up, memory_order_relaxed);
}

/* --- serve.c: what every run has, however it is made --- */

struct serving paml_serving_of(struct paml_worker *worker, void *instance,
                               struct paml_error *error);
/* Answers what of worker->batch isn't to run, and counts the rest. False: there is
 * none.
 */
bool paml_serving_begin(struct serving *serving);
/* Runs that rest, one run after the other. */
void paml_serving_run(struct serving *serving);

/* Leaves out what was answered, given up or late meanwhile. */
uint32_t paml_keep_wanted(struct serving *serving, struct paml_slice *slices,
                          struct job **jobs, uint32_t n);
/* How many rows a run of those may have, as far as is known by now. */
int64_t paml_rows_of_a_run(const struct serving *serving,
                           const struct paml_slice *slices, uint32_t n);

/* A run of those slices, of `requests` many, has ended: counts and times it, learns
   what it cost. `code`: how, with its message in serving->error. */
void paml_note_run(struct serving *serving, const struct paml_slice *slices,
                   int64_t rows, uint32_t requests, int64_t begun_ns, int64_t ended_ns,
                   int code);

/* What a run that failed means for its requests. */
enum paml_remedy {
    PAML_REMEDY_NONE,  /* they fail */
    PAML_REMEDY_FEWER, /* fewer rows at a time */
    PAML_REMEDY_APART, /* halves, until what is at fault fails alone */
};

/* `ran`: it was the run that failed, and another one may fare better. */
enum paml_remedy paml_remedy_for(int code, int64_t rows, uint32_t n, bool ran);
/* Applies it, with runs one after the other. */
void paml_serve_failed(struct serving *serving, struct paml_slice *slices,
                       struct job **jobs, uint32_t n, int64_t rows, int code,
                       enum paml_remedy remedy);
/* One run for all of them, or as many as it takes. */
void paml_run_slices(struct serving *serving, struct paml_slice *slices,
                     struct job **jobs, uint32_t n);
/* The same, where one request may be all of it, of more rows than a run may have. */
void paml_serve_slices(struct serving *serving, struct paml_slice *slices,
                       struct job **jobs, uint32_t n);
/* One run for one request that shares none. */
void paml_run_alone(struct serving *serving, struct job *job);

#endif
