#include "stats.h"

/* Values below 4 have a bucket each; above, two bits after the leading one choose. */
static int
bucket_of(uint64_t ns)
{
    int leading, bucket;

    if (ns < 4) {
        return (int)ns;
    }
    leading = 63 - __builtin_clzll(ns);
    bucket = (leading - 1) * 4 + (int)((ns >> (leading - 2)) & 3);
    return bucket < PAML_HISTOGRAM_BUCKETS ? bucket : PAML_HISTOGRAM_BUCKETS - 1;
}

/* The middle of a bucket. */
static int64_t
bucket_value(int bucket)
{
    int leading;

    if (bucket < 4) {
        return bucket;
    }
    leading = bucket / 4 + 1;
    return (int64_t)(((UINT64_C(4) + (uint64_t)(bucket % 4)) << (leading - 2)) +
                     (UINT64_C(1) << (leading - 2)) / 2);
}

void
paml_histogram_add(struct paml_histogram *histogram, int64_t ns)
{
    uint64_t amount = ns > 0 ? (uint64_t)ns : 0;

    paml_count(&histogram->counts[bucket_of(amount)], 1);
    paml_count(&histogram->sum_ns, amount);
}

void
paml_histogram_merge(struct paml_histogram *to, const struct paml_histogram *from)
{
    for (int i = 0; i < PAML_HISTOGRAM_BUCKETS; i++) {
        paml_count(&to->counts[i],
                   atomic_load_explicit(&from->counts[i], memory_order_relaxed));
    }
    paml_count(&to->sum_ns, atomic_load_explicit(&from->sum_ns, memory_order_relaxed));
}

int64_t
paml_histogram_quantile(const struct paml_histogram *histogram, double fraction)
{
    uint64_t total = 0, seen = 0;

    for (int i = 0; i < PAML_HISTOGRAM_BUCKETS; i++) {
        total += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
    }
    for (int i = 0; i < PAML_HISTOGRAM_BUCKETS && total > 0; i++) {
        seen += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
        if ((double)seen >= fraction * (double)total) {
            return bucket_value(i);
        }
    }
    return 0;
}
