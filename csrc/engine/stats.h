/* Counters and latency histograms that cost a few relaxed stores.
 *
 * Each worker writes its own `struct paml_worker_stats`, so no line is shared between
 * writers; anyone may read at any time and sees numbers that are each right, though not
 * all of one instant.
 *
 * A histogram has four buckets for each power of two, so a quantile read from it is at
 * most an eighth off.
 */
#ifndef PAML_STATS_H
#define PAML_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#define PAML_HISTOGRAM_BUCKETS 192
#define PAML_RELEASES_MOST 8

struct paml_histogram {
    atomic_uint_least64_t counts[PAML_HISTOGRAM_BUCKETS];
    atomic_uint_least64_t sum_ns; /* of what was added, exact */
};

struct paml_worker_stats {
    _Alignas(64) atomic_uint_least64_t completed, failed, expired;
    atomic_uint_least64_t busy_ns;
    atomic_int_least64_t running_since_ns; /* 0: not in a run */
    struct paml_histogram wait, run;       /* ns in the queue; ns in the backend */
    /* Of runs: how many, rows in all, requests in all, why each began (schedule.h), and
       the cells of padded inputs with and without the padding. */
    atomic_uint_least64_t runs, rows, requests, releases[PAML_RELEASES_MOST];
    atomic_uint_least64_t cells, real_cells;
};

/* Thread: the counter's one writer. */
static inline void
paml_count(atomic_uint_least64_t *counter, uint64_t more)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);

    atomic_store_explicit(counter, now + more, memory_order_relaxed);
}

void paml_histogram_add(struct paml_histogram *histogram, int64_t ns);
/* Adds `from` to `to`, which no other thread touches. */
void paml_histogram_merge(struct paml_histogram *to, const struct paml_histogram *from);
/* The value below which a `fraction` of what was added lies, in ns; 0 when empty. */
int64_t paml_histogram_quantile(const struct paml_histogram *histogram,
                                double fraction);

#endif
