/* What a run costs, learned as runs end: `a * rows + b` nanoseconds for each bucket of
 * shapes, and how many rows fit into memory.
 *
 * A line is fitted to the last fifty runs or so by least squares, each run weighed by
 * 1/rows, so that short runs, whose requests are in a hurry, aren't drowned by the
 * noise of long ones. A single slow run is clipped; a lasting change is followed within
 * about ten runs.
 *
 * Owner: one worker, which alone calls everything here.
 */
#ifndef PAML_COST_H
#define PAML_COST_H

#include <stdint.h>

#define PAML_COST_BUCKETS 32

struct paml_line {
    double a, b; /* ns a row, ns a run; both 0 as long as nothing is known */
};

static inline double
paml_line_at(const struct paml_line *line, double rows)
{
    return line->a * rows + line->b;
}

struct paml_cost_bucket {
    uint64_t key,
        used; /* used: when last, in uses of the model; 0: the entry is free */
    int64_t runs;
    struct paml_line line;
    /* Weighted by 1/rows and by age: the weight of all runs, the means, and the sums of
       squares and of products of the deviations from them. */
    double weight, mean_rows, mean_ns, square, product;
    /* Runs in a row well above (positive) or well below (negative) the line, and the
       one of them that was nearest to it. */
    int streak;
    double streak_rows, streak_ns, streak_ratio;
    /* Memory: rows that a run may have, those that last didn't fit, runs since that
       were as large as allowed. */
    int64_t cap, unfit, good;
};

struct paml_cost_model {
    struct paml_cost_bucket buckets[PAML_COST_BUCKETS];
    uint64_t uses;
};

void paml_cost_init(struct paml_cost_model *model);

/* A run of `rows`, 1 or more, took `ns`. The bucket that was longest out of use makes
   room for a new one. */
void paml_cost_observe(struct paml_cost_model *model, uint64_t key, int64_t rows,
                       int64_t ns);

/* {0, 0}: not known. */
struct paml_line paml_cost_line(const struct paml_cost_model *model, uint64_t key);

/* The same, {0, 0} also where it comes from fewer runs: what may be held against a
   request that is not given a chance. */
struct paml_line paml_cost_line_of(const struct paml_cost_model *model, uint64_t key,
                                   int64_t runs);

/* In ns; 0: not known. */
int64_t paml_cost_predict(const struct paml_cost_model *model, uint64_t key,
                          int64_t rows);

/* A run of `rows` ran out of memory: half of it is the cap. After 64 runs at the cap it
   grows by a quarter, and it goes once it has reached what didn't fit. */
void paml_cost_out_of_memory(struct paml_cost_model *model, uint64_t key, int64_t rows);

/* The rows that a run may have; INT64_MAX: as many as you like. */
int64_t paml_cost_cap(const struct paml_cost_model *model, uint64_t key);

#endif
