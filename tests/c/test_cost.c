/* What runs cost, learned from made-up machines.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "cost.h"
#include "run_tests.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

/* --- costs --- */

static struct paml_cost_model model;
static unsigned seed;

/* What a run of a made-up machine takes, off by up to `noise`, a fraction. */
static int64_t
run_ns(double a, double b, int64_t rows, double noise)
{
    double factor = 1 + noise * ((double)(rand_r(&seed) % 2001) / 1000 - 1);

    return (int64_t)((a * (double)rows + b) * factor);
}

static bool
is_near(int64_t value, double expected, double tolerance)
{
    double off = (double)value / expected - 1;

    return -tolerance <= off && off <= tolerance;
}

static void
nothing_is_known_of_what_never_ran(void)
{
    paml_cost_init(&model);
    CHECK(paml_cost_predict(&model, 1, 8) == 0);
    paml_cost_observe(&model, 2, 8, 1000);
    CHECK(paml_cost_predict(&model, 1, 8) == 0);
    CHECK(paml_cost_predict(&model, 2, 8) == 1000);
}

static void
two_exact_runs_tell_a_from_b(void)
{
    paml_cost_init(&model);
    paml_cost_observe(&model, 7, 2, 40000 + 2 * 1000);
    paml_cost_observe(&model, 7, 32, 40000 + 32 * 1000);
    CHECK(is_near(paml_cost_predict(&model, 7, 1), 41000, 0.05));
    CHECK(is_near(paml_cost_predict(&model, 7, 16), 56000, 0.05));
    CHECK(is_near(paml_cost_predict(&model, 7, 64), 104000, 0.05));
}

static void
noisy_runs_are_predicted_well_at_every_size(void)
{
    static const double machines[][2] = {
        {1000, 40000}, {20000, 1000}, {0, 90000}, {5000, 0}};

    for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        double a = machines[i][0], b = machines[i][1];
        paml_cost_init(&model);
        for (int n = 0; n < 400; n++) {
            int64_t rows = 1 + rand_r(&seed) % 64;
            paml_cost_observe(&model, 0, rows, run_ns(a, b, rows, 0.2));
            if (n >= 50) {
                CHECK(is_near(paml_cost_predict(&model, 0, 64), a * 64 + b, 0.15));
                CHECK(is_near(paml_cost_predict(&model, 0, 8), a * 8 + b, 0.3));
                CHECK(paml_cost_line(&model, 0).a >= 0);
                CHECK(paml_cost_line(&model, 0).b >= 0);
            }
        }
    }
}

static void
runs_of_equal_rows_leave_half_of_the_cost_to_the_rows(void)
{
    paml_cost_init(&model);
    for (int n = 0; n < 500; n++) {
        paml_cost_observe(&model, 0, 16, run_ns(0, 320000, 16, 0.05));
    }
    CHECK(is_near(paml_cost_predict(&model, 0, 16), 320000, 0.03));
    CHECK(is_near(paml_cost_predict(&model, 0, 1), 170000, 0.05));
    CHECK(is_near(paml_cost_predict(&model, 0, 32), 480000, 0.05));
    /* Another size tells more than the guess. */
    paml_cost_observe(&model, 0, 1, 20000);
    CHECK(is_near(paml_cost_predict(&model, 0, 1), 20000, 0.25));
    CHECK(is_near(paml_cost_predict(&model, 0, 16), 320000, 0.05));
}

static void
what_was_learned_of_other_sizes_outlives_a_time_of_equal_rows(void)
{
    paml_cost_init(&model);
    for (int n = 0; n < 100; n++) {
        int64_t rows = 1 + rand_r(&seed) % 32;
        paml_cost_observe(&model, 0, rows, run_ns(10000, 20000, rows, 0.05));
    }
    for (int n = 0; n < 5000; n++) {
        paml_cost_observe(&model, 0, 32, run_ns(10000, 20000, 32, 0.05));
    }
    CHECK(is_near(paml_cost_predict(&model, 0, 1), 30000, 0.4));
    CHECK(is_near(paml_cost_predict(&model, 0, 8), 100000, 0.15));
}

static void
a_single_slow_run_changes_little(void)
{
    paml_cost_init(&model);
    for (int n = 0; n < 200; n++) {
        int64_t rows = 1 + rand_r(&seed) % 32;
        paml_cost_observe(&model, 0, rows, run_ns(10000, 20000, rows, 0.05));
    }
    paml_cost_observe(&model, 0, 8, 100 * 100000);
    CHECK(is_near(paml_cost_predict(&model, 0, 8), 100000, 0.15));
    CHECK(is_near(paml_cost_predict(&model, 0, 32), 340000, 0.1));
    for (int n = 0; n < 300; n++) {
        int64_t rows = 1 + rand_r(&seed) % 32;
        bool slow = rand_r(&seed) % 20 == 0;
        paml_cost_observe(&model, 0, rows,
                          run_ns(10000, 20000, rows, 0.05) * (slow ? 50 : 1));
        CHECK(is_near(paml_cost_predict(&model, 0, 16), 180000, 0.5));
    }
}

static void
a_slow_first_run_is_soon_forgotten(void)
{
    paml_cost_init(&model);
    paml_cost_observe(&model, 0, 4, 50000000);
    for (int n = 0; n < 10; n++) {
        paml_cost_observe(&model, 0, 4, run_ns(1000, 6000, 4, 0.05));
    }
    CHECK(is_near(paml_cost_predict(&model, 0, 4), 10000, 0.2));
}

static void
a_lasting_change_is_followed_within_ten_runs(void)
{
    static const double factors[] = {1.5, 2, 3, 5, 10, 0.6, 0.3, 0.1};

    for (size_t i = 0; i < sizeof(factors) / sizeof(factors[0]); i++) {
        for (int equal = 0; equal < 2; equal++) {
            double a = 10000 * factors[i], b = 20000 * factors[i];
            paml_cost_init(&model);
            for (int n = 0; n < 210; n++) {
                int64_t rows = equal ? 16 : 1 + rand_r(&seed) % 32;
                paml_cost_observe(&model, 0, rows,
                                  n < 200 ? run_ns(10000, 20000, rows, 0.05)
                                          : run_ns(a, b, rows, 0.05));
            }
            CHECK(is_near(paml_cost_predict(&model, 0, 16), a * 16 + b, 0.2));
        }
    }
}

static void
the_bucket_longest_out_of_use_makes_room(void)
{
    paml_cost_init(&model);
    for (uint64_t key = 0; key < PAML_COST_BUCKETS; key++) {
        paml_cost_observe(&model, key, 1, 5000 + (int64_t)key);
    }
    paml_cost_observe(&model, 0, 1, 5000);
    paml_cost_observe(&model, 1000, 1, 9000);
    CHECK(paml_cost_predict(&model, 0, 1) == 5000);
    CHECK(paml_cost_predict(&model, 1, 1) == 0);
    CHECK(paml_cost_predict(&model, 2, 1) == 5002);
    CHECK(paml_cost_predict(&model, 1000, 1) == 9000);
}

static void
memory_that_ran_out_halves_the_rows_and_good_runs_raise_them_again(void)
{
    int64_t cap = INT64_MAX;
    int grown = 0;

    paml_cost_init(&model);
    CHECK(paml_cost_cap(&model, 3) == INT64_MAX);
    paml_cost_out_of_memory(&model, 3, 100);
    CHECK(paml_cost_cap(&model, 3) == 50 && paml_cost_cap(&model, 4) == INT64_MAX);
    for (int n = 0; n < 1000; n++) {
        paml_cost_observe(&model, 3, 20, 1000); /* far from the cap: tells nothing */
    }
    CHECK(paml_cost_cap(&model, 3) == 50);
    for (int n = 0; n < 63; n++) {
        paml_cost_observe(&model, 3, 50, 1000);
    }
    CHECK(paml_cost_cap(&model, 3) == 50);
    paml_cost_observe(&model, 3, 48, 1000);
    CHECK(paml_cost_cap(&model, 3) == 62);
    paml_cost_out_of_memory(&model, 3, 62);
    CHECK(paml_cost_cap(&model, 3) == 31);
    while ((cap = paml_cost_cap(&model, 3)) != INT64_MAX) {
        CHECK(cap < 62 && ++grown < 64 * 20);
        paml_cost_observe(&model, 3, cap, 1000);
    }
    paml_cost_out_of_memory(&model, 3, 1);
    CHECK(paml_cost_cap(&model, 3) == 1);
}

static void
reseed(void)
{
    seed = 11;
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(nothing_is_known_of_what_never_ran),
        TEST(two_exact_runs_tell_a_from_b),
        TEST(noisy_runs_are_predicted_well_at_every_size),
        TEST(runs_of_equal_rows_leave_half_of_the_cost_to_the_rows),
        TEST(what_was_learned_of_other_sizes_outlives_a_time_of_equal_rows),
        TEST(a_single_slow_run_changes_little),
        TEST(a_slow_first_run_is_soon_forgotten),
        TEST(a_lasting_change_is_followed_within_ten_runs),
        TEST(the_bucket_longest_out_of_use_makes_room),
        TEST(memory_that_ran_out_halves_the_rows_and_good_runs_raise_them_again),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), reseed);
}
