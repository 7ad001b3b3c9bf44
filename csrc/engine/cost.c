#include "cost.h"

#include <string.h>

#define MEMORY 50.0 /* runs: each weighs a fiftieth less with every later one */

/* Once so many runs are known, one that took longer than CLIP times what was predicted
   counts as that much. */
#define ESTABLISHED 5
#define CLIP 4.0

/* So many runs in a row beyond a factor of CHANGE, on one side, are no accident. */
#define CHANGED 5
#define CHANGE 1.25
#define CHANGED_WEIGHT 0.1 /* what runs before the change count, afterwards */

/* Where all runs had the same rows, nothing tells a from b. Half of the cost is taken
   to be proportional: for fewer rows, either extreme is then off by at most half of
   what was measured. As heavy as one run a tenth of the mean away from it, so one run
   of really different rows outweighs it. */
#define GUESSED_SHARE 0.5
#define GUESS_DISTANCE 0.1

#define GOOD_RUNS 64 /* at the cap, before it grows */

void
paml_cost_init(struct paml_cost_model *model)
{
    memset(model->buckets, 0, sizeof(model->buckets));
    model->uses = 0;
}

/* Which bucket is the key's; -1: none. */
static int
cost_find(const struct paml_cost_model *model, uint64_t key)
{
    for (int i = 0; i < PAML_COST_BUCKETS; i++) {
        if (model->buckets[i].used != 0 && model->buckets[i].key == key) {
            return i;
        }
    }
    return -1;
}

/* The key's bucket, made where there is none. */
static struct paml_cost_bucket *
cost_use(struct paml_cost_model *model, uint64_t key)
{
    struct paml_cost_bucket *buckets = model->buckets;
    int found = cost_find(model, key);

    if (found < 0) {
        found = 0;
        for (int i = 1; i < PAML_COST_BUCKETS; i++) {
            if (buckets[i].used < buckets[found].used) {
                found = i;
            }
        }
        buckets[found] = (struct paml_cost_bucket){.key = key, .cap = INT64_MAX};
    }
    buckets[found].used = ++model->uses;
    return &buckets[found];
}

/* --- the line --- */

static void
bucket_fit(struct paml_cost_bucket *bucket)
{
    double steepest = bucket->mean_ns / bucket->mean_rows;
    double distance = GUESS_DISTANCE * bucket->mean_rows;
    double guess = distance * distance / bucket->mean_rows; /* its weight: 1/rows */
    double a, b;

    a = (bucket->product + guess * GUESSED_SHARE * steepest) / (bucket->square + guess);
    /* Through the means in any case, so a beyond these makes b or a negative. */
    a = a < 0 ? 0 : a > steepest ? steepest : a;
    b = bucket->mean_ns - a * bucket->mean_rows;
    bucket->line.a = a;
    bucket->line.b = b < 0 ? 0 : b; /* by rounding */
}

/* Adds a run to the sums. What age takes from the sums of deviations is at most what
   the run brings: where rows don't vary, the slope of earlier days is all there is to
   know about other sizes, and must not fade. */
static void
bucket_add(struct paml_cost_bucket *bucket, double rows, double ns)
{
    double weight = 1 / rows, old = bucket->weight * (1 - 1 / MEMORY);
    double rows_off = rows - bucket->mean_rows, ns_off = ns - bucket->mean_ns;
    double share = weight / (old + weight), gain = weight * rows_off * rows_off;
    double fade = 1 / MEMORY;

    if (gain < fade * bucket->square) {
        fade = gain / bucket->square;
    }
    bucket->weight = old + weight;
    bucket->mean_rows += share * rows_off;
    bucket->mean_ns += share * ns_off;
    bucket->square += (1 - share) * gain - fade * bucket->square;
    bucket->product +=
        (1 - share) * weight * rows_off * ns_off - fade * bucket->product;
}

/* Notices a lasting change, and takes it for what it mostly is, a machine that became
   slower or faster as a whole: the line is scaled, by the streak's run that was nearest
   to it, and then held loosely. */
static void
bucket_watch(struct paml_cost_bucket *bucket, double rows, double ns, double expected)
{
    double ratio = ns / expected;
    int side = ratio > CHANGE ? 1 : ratio < 1 / CHANGE ? -1 : 0;

    if (side == 0 || side * bucket->streak < 0) {
        bucket->streak = 0;
    }
    if (side == 0) {
        return;
    }
    if (bucket->streak == 0 || side * (ratio - bucket->streak_ratio) < 0) {
        bucket->streak_rows = rows;
        bucket->streak_ns = ns;
        bucket->streak_ratio = ratio;
    }
    bucket->streak += side;
    if (bucket->streak * side < CHANGED) {
        return;
    }
    ratio = bucket->streak_ns / paml_line_at(&bucket->line, bucket->streak_rows);
    if (side * (ratio - 1) > 0) { /* or the runs since have already moved the line */
        bucket->mean_ns *= ratio;
        bucket->product *= ratio;
    }
    bucket->weight *= CHANGED_WEIGHT;
    bucket->square *= CHANGED_WEIGHT;
    bucket->product *= CHANGED_WEIGHT;
    bucket->streak = 0;
    bucket_fit(bucket);
}

/* --- the cap --- */

/* A batch rarely adds up to the cap: three quarters of it count. */
static void
bucket_fitted(struct paml_cost_bucket *bucket, int64_t rows)
{
    if (bucket->cap == INT64_MAX || rows < bucket->cap - bucket->cap / 4) {
        return;
    }
    if (++bucket->good < GOOD_RUNS) {
        return;
    }
    bucket->good = 0;
    bucket->cap += bucket->cap < 4 ? 1 : bucket->cap / 4;
    if (bucket->cap >= bucket->unfit) {
        bucket->cap = INT64_MAX;
    }
}

/* Thread: the owner. Locks: none. */
void
paml_cost_out_of_memory(struct paml_cost_model *model, uint64_t key, int64_t rows)
{
    struct paml_cost_bucket *bucket = cost_use(model, key);
    int64_t half = rows > 1 ? rows / 2 : 1;

    if (half < bucket->cap) {
        bucket->cap = half;
        bucket->unfit = rows;
    }
    bucket->good = 0;
}

int64_t
paml_cost_cap(const struct paml_cost_model *model, uint64_t key)
{
    int found = cost_find(model, key);

    return found >= 0 ? model->buckets[found].cap : INT64_MAX;
}

/* --- the model --- */

/* Thread: the owner. Locks: none. */
void
paml_cost_observe(struct paml_cost_model *model, uint64_t key, int64_t rows, int64_t ns)
{
    struct paml_cost_bucket *bucket = cost_use(model, key);
    double x = rows > 1 ? (double)rows : 1, y = ns > 1 ? (double)ns : 1;
    double expected = paml_line_at(&bucket->line, x), clipped = y;

    if (bucket->runs >= ESTABLISHED && y > CLIP * expected) {
        clipped = CLIP * expected;
    }
    bucket->runs++;
    bucket_add(bucket, x, clipped);
    bucket_fit(bucket);
    if (expected > 0) {
        bucket_watch(bucket, x, y, expected);
    }
    bucket_fitted(bucket, rows);
}

struct paml_line
paml_cost_line_of(const struct paml_cost_model *model, uint64_t key, int64_t runs)
{
    int found = cost_find(model, key);

    return found >= 0 && model->buckets[found].runs >= runs ? model->buckets[found].line
                                                            : (struct paml_line){0, 0};
}

struct paml_line
paml_cost_line(const struct paml_cost_model *model, uint64_t key)
{
    return paml_cost_line_of(model, key, 0);
}

int64_t
paml_cost_predict(const struct paml_cost_model *model, uint64_t key, int64_t rows)
{
    struct paml_line line = paml_cost_line(model, key);

    return (int64_t)paml_line_at(&line, (double)rows);
}
