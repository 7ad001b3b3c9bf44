/* Ops in order of urgency, against sorting them all.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "order.h"
#include "run_tests.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

/* --- helpers --- */

static struct paml_op *
ops_new(int count)
{
    struct paml_op *ops = malloc((size_t)count * sizeof(*ops));

    CHECK(ops != NULL);
    for (int i = 0; i < count; i++) {
        paml_op_init(&ops[i], NULL);
        ops[i].sequence = (uint64_t)i;
    }
    return ops;
}

/* The rule once more, written another way. */
static int
compare(const void *left, const void *right)
{
    const struct paml_op *one = *(struct paml_op *const *)left;
    const struct paml_op *other = *(struct paml_op *const *)right;
    int64_t deadline = one->deadline_ns != 0 ? one->deadline_ns : INT64_MAX;
    int64_t others = other->deadline_ns != 0 ? other->deadline_ns : INT64_MAX;

    if (one->priority != other->priority) {
        return one->priority > other->priority ? -1 : 1;
    }
    if (deadline != others) {
        return deadline < others ? -1 : 1;
    }
    return one->sequence < other->sequence ? -1 : one->sequence > other->sequence;
}

static void
expect_empty(const struct paml_order *order)
{
    CHECK(order->count == 0 && order->root == NULL);
    CHECK(order->first == NULL && order->last == NULL);
    CHECK(paml_order_peek(order) == NULL);
}

/* --- the tests --- */

static void
priority_comes_first_then_the_deadline_then_who_came_first(void)
{
    static const struct {
        int32_t priority;
        int64_t deadline_ns;
    } cases[] = {{0, 0},  {0, 500}, {5, 0}, {5, 900},
                 {-1, 1}, {5, 100}, {0, 0}, {5, 900}};
    static const uint64_t expected[] = {5, 3, 7, 2, 1, 0, 6, 4};
    struct paml_op *ops = ops_new(8);
    struct paml_order order;

    paml_order_init(&order);
    for (int i = 0; i < 8; i++) {
        ops[i].priority = cases[i].priority;
        ops[i].deadline_ns = cases[i].deadline_ns;
        paml_order_push(&order, &ops[i]);
    }
    for (int i = 0; i < 8; i++) {
        CHECK(paml_order_peek(&order)->sequence == expected[i]);
        CHECK(paml_order_pop(&order)->sequence == expected[i]);
    }
    CHECK(paml_order_pop(&order) == NULL);
    expect_empty(&order);
    free(ops);
}

static void
what_comes_in_order_never_sees_the_heap(void)
{
    struct paml_op *ops = ops_new(1000);
    struct paml_order order;

    paml_order_init(&order);
    for (int i = 0; i < 1000; i++) {
        ops[i].deadline_ns = 1 + i / 3;
        paml_order_push(&order, &ops[i]);
        CHECK(order.root == NULL);
    }
    for (int i = 0; i < 1000; i++) {
        CHECK(paml_order_pop(&order) == &ops[i]);
    }
    expect_empty(&order);
    free(ops);
}

#define ROUNDS 300
#define OPS 200

static void
any_mix_of_pushes_pops_and_removals_agrees_with_sorting(void)
{
    struct paml_op *ops = ops_new(OPS), *waiting[OPS];
    unsigned seed = 3;

    for (int round = 0; round < ROUNDS; round++) {
        int pushed = 0, count = 0;
        int spread = 1 + (int)(rand_r(&seed) % 40);
        struct paml_order order;

        paml_order_init(&order);
        while (pushed < OPS || count > 0) {
            int draw = (int)(rand_r(&seed) % 100);
            if (pushed < OPS && draw < 50) {
                struct paml_op *op = &ops[pushed++];
                op->priority = (int32_t)(rand_r(&seed) % 3) - 1;
                op->deadline_ns = rand_r(&seed) % 4 == 0
                                      ? 0
                                      : pushed + (int64_t)(rand_r(&seed) % spread);
                paml_order_push(&order, op);
                waiting[count++] = op;
            } else if (count > 0 && draw < 75) {
                int which = (int)(rand_r(&seed) % count);
                paml_order_remove(&order, waiting[which]);
                waiting[which] = waiting[--count];
            } else if (count > 0) {
                qsort(waiting, (size_t)count, sizeof(*waiting), compare);
                CHECK(paml_order_peek(&order) == waiting[0]);
                CHECK(paml_order_pop(&order) == waiting[0]);
                waiting[0] = waiting[--count];
            }
            CHECK(order.count == (size_t)count);
        }
        expect_empty(&order);
    }
    free(ops);
}

#define MANY 100000

static void
a_hundred_thousand_ever_more_urgent_ops_come_out_backwards(void)
{
    struct paml_op *ops = ops_new(MANY);
    struct paml_order order;

    paml_order_init(&order);
    for (int i = 0; i < MANY; i++) {
        ops[i].priority = i;
        paml_order_push(&order, &ops[i]);
    }
    for (int i = MANY - 1; i >= 0; i--) {
        CHECK(paml_order_pop(&order) == &ops[i]);
    }
    expect_empty(&order);
    free(ops);
}

static void
a_root_with_a_hundred_thousand_children_goes_in_any_way(void)
{
    struct paml_op *ops = ops_new(MANY);
    struct paml_order order;

    /* The first makes the rest go to the heap, the second is above them all. */
    for (int how = 0; how < 2; how++) {
        paml_order_init(&order);
        for (int i = 0; i < MANY; i++) {
            ops[i].priority = i == 0 ? 3 : i == 1 ? 5 : 4;
            paml_order_push(&order, &ops[i]);
        }
        if (how == 0) {
            paml_order_remove(&order, &ops[1]);
        } else {
            CHECK(paml_order_pop(&order) == &ops[1]);
        }
        for (int i = 2; i < MANY; i++) {
            CHECK(paml_order_pop(&order) == &ops[i]);
        }
        CHECK(paml_order_pop(&order) == &ops[0]);
        expect_empty(&order);
    }
    free(ops);
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(priority_comes_first_then_the_deadline_then_who_came_first),
        TEST(what_comes_in_order_never_sees_the_heap),
        TEST(any_mix_of_pushes_pops_and_removals_agrees_with_sorting),
        TEST(a_hundred_thousand_ever_more_urgent_ops_come_out_backwards),
        TEST(a_root_with_a_hundred_thousand_children_goes_in_any_way),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
