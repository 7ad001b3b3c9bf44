/* Which requests a batch is made of, against trying all there are.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "plan.h"
#include "run_tests.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

/* --- helpers --- */

static unsigned seed;

#define SMALL 6

struct puzzle {
    struct paml_plan_item items[PAML_PLAN_MOST];
    uint32_t n;
    struct paml_line line;
    int64_t max_rows;
};

static int
compare(const void *left, const void *right)
{
    const struct paml_plan_item *one = left, *other = right;
    int64_t deadline = one->deadline_ns != 0 ? one->deadline_ns : INT64_MAX;
    int64_t others = other->deadline_ns != 0 ? other->deadline_ns : INT64_MAX;

    if (one->priority != other->priority) {
        return one->priority > other->priority ? -1 : 1;
    }
    return deadline < others ? -1 : deadline > others;
}

static struct puzzle
make_puzzle(uint32_t n, int32_t priorities, int64_t span_ns)
{
    struct puzzle puzzle = {.n = n};

    puzzle.line.a = 10;
    puzzle.line.b = (double)(rand_r(&seed) % 5 * 20);
    puzzle.max_rows = 2 + rand_r(&seed) % 7;
    for (uint32_t i = 0; i < n; i++) {
        puzzle.items[i] = (struct paml_plan_item){
            .deadline_ns = rand_r(&seed) % 8 == 0
                               ? 0
                               : 1 + (int64_t)(rand_r(&seed) % (unsigned)span_ns),
            .rows = 1 + (rand_r(&seed) % 3 == 0 ? rand_r(&seed) % 4 : 0),
            .priority = (int32_t)(rand_r(&seed) % (unsigned)priorities)};
    }
    qsort(puzzle.items, n, sizeof(puzzle.items[0]), compare);
    return puzzle;
}

/* Requests met, as one number in which a higher priority outweighs all lower ones. */
static int64_t
worth(const struct paml_plan_item *item, int64_t ends_ns)
{
    int64_t value = 1;

    for (int32_t i = 0; i < item->priority; i++) {
        value *= PAML_PLAN_MOST + 1;
    }
    return item->deadline_ns == 0 || ends_ns <= item->deadline_ns ? value : 0;
}

static int64_t
ends(const struct puzzle *puzzle, int64_t now_ns, int64_t rows)
{
    int64_t runs = rows > puzzle->max_rows ? (rows - 1) / puzzle->max_rows + 1 : 1;

    return now_ns +
           (int64_t)(puzzle->line.a * (double)rows + puzzle->line.b * (double)runs);
}

/* Whether a batch passes over one without a deadline for one of lower priority. */
static bool
passes_over(const struct puzzle *puzzle, unsigned left, unsigned batch)
{
    for (uint32_t i = 0; i < puzzle->n; i++) {
        if ((left & ~batch & 1u << i) != 0 && puzzle->items[i].deadline_ns == 0) {
            for (uint32_t j = i + 1; j < puzzle->n; j++) {
                if ((batch & 1u << j) != 0 &&
                    puzzle->items[j].priority < puzzle->items[i].priority) {
                    return true;
                }
            }
        }
    }
    return false;
}

/* The most that can be met of those in `left`, a set: every first batch is tried, and
   after it everything else. Requests without a deadline count as met at any time. */
static int64_t
optimum(const struct puzzle *puzzle, unsigned left, int64_t now_ns)
{
    int64_t best = 0;

    for (uint32_t i = 0; i < puzzle->n; i++) {
        if ((left & 1u << i) != 0 && puzzle->items[i].deadline_ns == 0) {
            best += worth(&puzzle->items[i], 0);
        }
    }
    for (unsigned batch = left; batch != 0; batch = (batch - 1) & left) {
        int64_t rows = 0, met = 0, ends_ns;
        for (uint32_t i = 0; i < puzzle->n; i++) {
            rows += (batch & 1u << i) != 0 ? puzzle->items[i].rows : 0;
        }
        if ((rows > puzzle->max_rows && (batch & (batch - 1)) != 0) ||
            passes_over(puzzle, left, batch)) {
            continue;
        }
        ends_ns = ends(puzzle, now_ns, rows);
        for (uint32_t i = 0; i < puzzle->n; i++) {
            met += (batch & 1u << i) != 0 ? worth(&puzzle->items[i], ends_ns) : 0;
        }
        if (met > 0) {
            met += optimum(puzzle, left & ~batch, ends_ns);
            best = met > best ? met : best;
        }
    }
    return best;
}

/* What is met when each batch is planned anew, or is the first that come. */
static int64_t
outcome(const struct puzzle *puzzle, bool planned)
{
    struct puzzle left = *puzzle;
    int64_t now_ns = 0, met = 0;

    while (left.n > 0) {
        uint8_t verdict[PAML_PLAN_MOST];
        int64_t rows = 0, ends_ns;
        uint32_t kept = 0;
        bool full = false;

        if (planned) {
            paml_plan(left.items, left.n, &left.line, now_ns, left.max_rows, verdict);
        } else {
            for (uint32_t i = 0; i < left.n; i++) {
                const struct paml_plan_item *item = &left.items[i];
                bool fits = rows == 0 || rows + item->rows <= left.max_rows;
                if (item->deadline_ns != 0 &&
                    ends(&left, now_ns, item->rows) > item->deadline_ns) {
                    verdict[i] = PAML_PLAN_HOPELESS;
                    continue;
                }
                full = full || !fits;
                verdict[i] = full ? PAML_PLAN_LEAVE : PAML_PLAN_TAKE;
                rows += full ? 0 : item->rows;
            }
            rows = 0;
        }
        for (uint32_t i = 0; i < left.n; i++) {
            rows += verdict[i] == PAML_PLAN_TAKE ? left.items[i].rows : 0;
        }
        ends_ns = ends(&left, now_ns, rows);
        for (uint32_t i = 0; i < left.n; i++) {
            if (verdict[i] == PAML_PLAN_TAKE) {
                met += worth(&left.items[i], ends_ns);
            } else if (verdict[i] == PAML_PLAN_LEAVE) {
                left.items[kept++] = left.items[i];
            } else {
                CHECK(ends(&left, now_ns, left.items[i].rows) >
                      left.items[i].deadline_ns);
            }
        }
        CHECK(kept < left.n);
        left.n = kept;
        now_ns = ends_ns;
    }
    return met;
}

/* --- the tests --- */

#define MS INT64_C(1000000)

static const struct paml_line ten_a_row = {10 * MS, 20 * MS}; /* and 20 a run */

struct hand_made {
    uint32_t n;
    int64_t max_rows;
    struct paml_plan_item items[10];
    const char *verdict; /* T, L, H for each */
};

static void
hand_made_cases_come_out_as_they_should(void)
{
    /* Deadlines in ms from now, made into ns below. A run of n rows takes 20 + 10 n. */
    static const struct hand_made cases[] = {
        /* Without deadlines: the prefix. */
        {5, 4, {{0, 1, 0}, {0, 1, 0}, {0, 1, 0}, {0, 1, 0}, {0, 1, 0}}, "TTTTL"},
        /* It ends where one doesn't fit, which is not passed. */
        {3, 4, {{0, 2, 0}, {0, 3, 0}, {0, 1, 0}}, "TLL"},
        /* More than max_rows: alone. */
        {2, 4, {{0, 9, 0}, {0, 1, 0}}, "TL"},
        {2, 4, {{0, 1, 0}, {0, 9, 0}}, "TL"},
        /* Room for all: one batch. */
        {3, 8, {{50, 1, 0}, {50, 1, 0}, {90, 1, 0}}, "TTT"},
        /* A tight leader makes the batch smaller. */
        {4, 8, {{30, 1, 0}, {200, 1, 0}, {200, 1, 0}, {200, 1, 0}}, "TLLL"},
        {4, 8, {{40, 1, 0}, {200, 1, 0}, {200, 1, 0}, {200, 1, 0}}, "TTLL"},
        /* It is given up where it would cost the others. */
        {4, 8, {{30, 1, 0}, {60, 1, 0}, {60, 1, 0}, {60, 1, 0}}, "LTTT"},
        /* But not by those of lower priority. */
        {4, 8, {{30, 1, 1}, {60, 1, 0}, {60, 1, 0}, {60, 1, 0}}, "TLLL"},
        /* What can't be met is neither run nor in the way. */
        {3, 8, {{29, 1, 0}, {50, 1, 0}, {50, 2, 0}}, "HTT"},
        {2, 8, {{29, 1, 0}, {10, 1, 0}}, "HH"},
        /* A large one is given up for two that it would make late. */
        {3, 8, {{100, 8, 0}, {105, 1, 0}, {105, 1, 0}}, "LTT"},
        /* Without a deadline, of a higher priority: not passed. */
        {2, 1, {{0, 1, 1}, {40, 1, 0}}, "TL"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct puzzle puzzle = {
            .n = cases[i].n, .line = ten_a_row, .max_rows = cases[i].max_rows};
        uint8_t verdict[10];
        uint32_t takes = 0, taken;

        for (uint32_t j = 0; j < cases[i].n; j++) {
            puzzle.items[j] = cases[i].items[j];
            puzzle.items[j].deadline_ns *= MS;
        }
        taken =
            paml_plan(puzzle.items, puzzle.n, &ten_a_row, 0, puzzle.max_rows, verdict);
        for (uint32_t j = 0; j < cases[i].n; j++) {
            CHECK("LTH"[verdict[j]] == cases[i].verdict[j]);
            takes += verdict[j] == PAML_PLAN_TAKE;
        }
        CHECK(takes == taken);
        CHECK(outcome(&puzzle, true) == optimum(&puzzle, (1u << puzzle.n) - 1, 0));
    }
}

static void
where_nothing_is_known_of_the_cost_the_prefix_is_taken(void)
{
    static const struct paml_plan_item items[] = {
        {999, 1, 0}, {1000, 1, 0}, {1, 1, -1}};
    static const struct paml_line unknown = {0, 0};
    uint8_t verdict[3];

    CHECK(paml_plan(items, 3, &unknown, 1000, 8, verdict) == 1);
    CHECK(verdict[0] == PAML_PLAN_HOPELESS && verdict[1] == PAML_PLAN_TAKE);
    CHECK(verdict[2] == PAML_PLAN_HOPELESS);
}

#define PUZZLES 4000

static void
plans_never_do_worse_than_taking_the_first_and_mostly_as_well_as_can_be(void)
{
    for (int32_t priorities = 1; priorities <= 3; priorities++) {
        int optimal = 0, first_optimal = 0;

        for (int i = 0; i < PUZZLES; i++) {
            uint32_t n = 2 + rand_r(&seed) % (SMALL - 1);
            struct puzzle puzzle = make_puzzle(n, priorities, 250);
            int64_t planned = outcome(&puzzle, true);
            int64_t first = outcome(&puzzle, false);
            int64_t most = optimum(&puzzle, (1u << n) - 1, 0);

            CHECK(first <= planned && planned <= most);
            optimal += planned == most;
            first_optimal += first == most;
        }
        printf("    %d priorities: optimal in %.1f %%, in plain order %.1f %%\n",
               priorities, 100.0 * optimal / PUZZLES, 100.0 * first_optimal / PUZZLES);
        /* With several, the order of priority is kept where a lower one could go ahead
           and do no harm. */
        CHECK(optimal > PUZZLES * (priorities == 1 ? 99 : 85) / 100);
    }
}

static void
long_lines_never_do_worse_than_taking_the_first(void)
{
    int64_t planned_met = 0, first_met = 0;

    for (int i = 0; i < 150; i++) {
        uint32_t n = 1 + rand_r(&seed) % PAML_PLAN_MOST;
        struct puzzle puzzle = make_puzzle(n, 1 + i % 3, 20 * (int64_t)n);
        int64_t planned = outcome(&puzzle, true), first = outcome(&puzzle, false);

        CHECK(first <= planned);
        planned_met += i % 3 == 0 ? planned : 0;
        first_met += i % 3 == 0 ? first : 0;
    }
    printf("    one priority: %lld met, in plain order %lld\n", (long long)planned_met,
           (long long)first_met);
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
        TEST(hand_made_cases_come_out_as_they_should),
        TEST(where_nothing_is_known_of_the_cost_the_prefix_is_taken),
        TEST(plans_never_do_worse_than_taking_the_first_and_mostly_as_well_as_can_be),
        TEST(long_lines_never_do_worse_than_taking_the_first),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), reseed);
}
