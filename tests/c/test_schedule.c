/* Which of the waiting ops run next, and together.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1. Nothing here looks at the clock: the tests say what time it
 * is.
 */
#include "schedule_helpers.h"

/* --- helpers --- */

/* The op's group is known to cost a row and b a run. */
static void
teach(struct scene *scene, const struct paml_op *op, int64_t a, int64_t b, int runs)
{
    uint64_t key = paml_batch_cost_key(&scene->batching, op);

    for (int i = 0; i < runs; i++) {
        int64_t rows = 1 + i % 2 * 7;
        paml_cost_observe(&scene->cost, key, rows, a * rows + b);
    }
}

/* --- the tests --- */

static void
ops_of_a_group_run_together_up_to_max_rows(void)
{
    struct scene *scene = scene_new(4);
    struct paml_op *a = add_op(scene, 1, 2), *b = add_op(scene, 2, 2);
    struct paml_op *c = add_op(scene, 1, 2), *d = add_op(scene, 3, 2);
    struct paml_op *e = add_op(scene, 9, 2), *f = add_op(scene, 2, 2);

    EXPECT(scene, FULL, a, b, c);
    EXPECT(scene, FULL, d); /* the next doesn't fit */
    EXPECT(scene, FULL, e); /* more than a run may have: it will be cut */
    EXPECT(scene, DRAINED, f);
    expect_nothing(scene);
    scene_drop(scene);
}

static void
groups_do_not_mix_and_the_most_urgent_op_of_all_leads(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *a = add_op(scene, 1, 2), *b = add_op(scene, 1, 3);
    struct paml_op *c = add_op(scene, 1, 2), *d = add_urgent(scene, 1, 3, 1, 0);
    struct paml_op *alone = add_alone(scene), *other = add_alone(scene);

    EXPECT(scene, DRAINED, d, b);
    EXPECT(scene, DRAINED, a, c);
    EXPECT(scene, ALONE, alone);
    EXPECT(scene, ALONE, other);
    scene_drop(scene);
}

static void
earlier_deadlines_lead_within_a_priority(void)
{
    struct scene *scene = scene_new(2);
    struct paml_op *a = add_op(scene, 2, 2);
    struct paml_op *late = add_urgent(scene, 2, 3, 0, 90 * SECOND);
    struct paml_op *soon = add_urgent(scene, 2, 2, 0, 50 * SECOND);
    struct paml_op *urgent = add_urgent(scene, 2, 3, 1, 0);

    EXPECT(scene, FULL, urgent);
    EXPECT(scene, FULL, soon);
    EXPECT(scene, FULL, late);
    EXPECT(scene, FULL, a);
    scene_drop(scene);
}

static void
without_batching_every_op_runs_alone(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *a, *b;

    scene->schedule.batching = NULL;
    a = add_op(scene, 1, 2);
    b = add_urgent(scene, 1, 2, 1, 0);
    EXPECT(scene, ALONE, b);
    EXPECT(scene, ALONE, a);
    scene_drop(scene);
}

static void
batch_grows_to_as_many_ops_as_a_run_may_have(void)
{
    struct scene *scene = scene_new(2 * PAML_BATCH_MOST);
    int count = 1000;

    for (int i = 0; i < count; i++) {
        add_op(scene, 1, 2);
    }
    CHECK(take(scene) == (uint32_t)count && scene->batch.rows == count);
    for (int i = 0; i < count; i++) {
        CHECK(scene->batch.ops[i] == &scene->made[i]->op);
    }
    scene_drop(scene);
}

static void
removed_ops_leave_their_group_and_an_empty_group_goes(void)
{
    struct scene *scene = scene_new(4);
    struct paml_op *a = add_op(scene, 1, 2), *b = add_op(scene, 1, 3);
    struct paml_op *c = add_op(scene, 1, 2), *d = add_alone(scene);

    paml_schedule_remove(&scene->schedule, a);
    paml_schedule_remove(&scene->schedule, b);
    paml_schedule_remove(&scene->schedule, d);
    CHECK(scene->schedule.count == 1 && scene->schedule.rows == 1);
    CHECK(scene->schedule.groups->next == NULL);
    EXPECT(scene, DRAINED, c);
    b = add_op(scene, 1, 3);
    EXPECT(scene, DRAINED, b);
    scene_drop(scene);
}

static void
memory_limits_a_run_to_the_cap_of_its_group(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *ops[6], *other = add_op(scene, 8, 3);

    for (int i = 0; i < 6; i++) {
        ops[i] = add_urgent(scene, 1, 2, 1, 0);
    }
    paml_cost_out_of_memory(&scene->cost, paml_batch_cost_key(&scene->batching, ops[0]),
                            8);
    EXPECT(scene, FULL, ops[0], ops[1], ops[2], ops[3]);
    EXPECT(scene, DRAINED, ops[4], ops[5]);
    EXPECT(scene, FULL, other);
    scene_drop(scene);
}

/* --- ageing --- */

static void
op_that_has_seen_64_runs_begin_leads_every_eighth(void)
{
    struct scene *scene = scene_new(1);
    struct paml_op *old = add_urgent(scene, 1, 2, -5, 0);
    struct paml_op *older = add_urgent(scene, 1, 2, -9, 0);
    int at = -1, other_at = -1;

    for (int i = 0; i < 90; i++) {
        add_op(scene, 1, 3);
    }
    for (int i = 0; i < 92; i++) {
        CHECK(take(scene) == 1);
        at = scene->batch.ops[0] == old ? i : at;
        other_at = scene->batch.ops[0] == older ? i : other_at;
    }
    CHECK(at == 71 && other_at == 79); /* past 64, and 7 modulo 8 */
    scene_drop(scene);
}

static void
aged_op_takes_the_most_urgent_of_its_group_along(void)
{
    struct scene *scene = scene_new(3);
    struct paml_op *old = add_urgent(scene, 1, 2, -5, 0), *urgent;

    for (int i = 0; i < 80; i++) {
        add_op(scene, 3, 3);
    }
    for (int i = 0; i < 71; i++) {
        CHECK(take(scene) == 1);
    }
    add_urgent(scene, 1, 2, -8, 0);
    urgent = add_urgent(scene, 2, 2, -1, 0);
    EXPECT(scene, FULL, old, urgent);
    while (take(scene) > 0) {
    }
    scene_drop(scene);
}

/* --- delay --- */

static struct scene *
scene_with_delay(int64_t max_rows, int64_t delay_ns)
{
    struct paml_batching batching = plain;

    batching.max_delay_ns = delay_ns;
    return scene_of(&batching, max_rows, INT64_MAX / 2);
}

static void
batch_that_is_not_full_waits_for_its_delay(void)
{
    struct scene *scene = scene_with_delay(4, SECOND);
    int64_t begun_ns = scene->now_ns;
    struct paml_op *a = add_op(scene, 1, 2), *b;

    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == begun_ns + SECOND);
    scene->now_ns += SECOND / 2;
    b = add_op(scene, 2, 2);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == begun_ns + SECOND);
    scene->now_ns = begun_ns + SECOND;
    EXPECT(scene, DELAY, a, b);
    scene_drop(scene);
}

static void
who_leaves_does_not_make_those_who_stay_wait_anew(void)
{
    struct scene *scene = scene_with_delay(3, SECOND);
    struct paml_op *first = add_op(scene, 1, 2), *second, *third, *urgent;

    scene->now_ns += SECOND / 4;
    second = add_op(scene, 1, 2);
    add_alone(scene);
    scene->now_ns += SECOND / 2;
    urgent = add_urgent(scene, 1, 2, 1, 0);
    paml_schedule_remove(&scene->schedule, urgent);
    urgent = add_urgent(scene, 1, 2, 1, 0);
    paml_schedule_remove(&scene->schedule, first);
    take(scene); /* the one that is alone */
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == second->submitted_ns + SECOND);
    third = add_urgent(scene, 2, 2, 1, 0);
    EXPECT(scene, FULL, urgent, third);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == second->submitted_ns + SECOND);
    paml_schedule_remove(&scene->schedule, second);
    scene_drop(scene);
}

static void
full_batch_goes_at_once_and_so_does_who_is_alone(void)
{
    struct scene *scene = scene_with_delay(4, SECOND);
    struct paml_op *a = add_op(scene, 2, 2), *b = add_op(scene, 1, 3);
    struct paml_op *alone = add_alone(scene), *c = add_op(scene, 2, 2);

    EXPECT(scene, FULL, a, c);
    EXPECT(scene, ALONE, alone);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == b->submitted_ns + SECOND);
    scene->now_ns += SECOND;
    EXPECT(scene, DELAY, b);
    scene_drop(scene);
}

static void
worker_waits_for_the_earliest_of_the_groups(void)
{
    struct scene *scene = scene_with_delay(4, SECOND);
    struct paml_op *a = add_op(scene, 1, 2), *b;

    scene->now_ns += 10;
    b = add_op(scene, 1, 3);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == a->submitted_ns + SECOND);
    scene->now_ns = a->submitted_ns + SECOND;
    EXPECT(scene, DELAY, a);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == b->submitted_ns + SECOND);
    paml_schedule_remove(&scene->schedule, b);
    scene_drop(scene);
}

static void
closing_releases_everything(void)
{
    struct scene *scene = scene_with_delay(4, SECOND);
    struct paml_op *a = add_op(scene, 1, 2);

    CHECK(paml_schedule_take(&scene->schedule, &scene->taker, scene->now_ns, true,
                             &scene->batch) == 0);
    CHECK(scene->batch.n == 1 && scene->batch.ops[0] == a);
    CHECK(scene->batch.release == PAML_RELEASE_DRAINED);
    scene_drop(scene);
}

static void
waiting_for_company_spends_half_of_the_time_at_most(void)
{
    struct scene *scene = scene_with_delay(4, 10 * SECOND);
    struct paml_op *a = add_urgent(scene, 1, 2, 0, 2 * SECOND);

    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == a->submitted_ns + SECOND);
    /* Less where the run itself takes long: two rows are expected to. */
    teach(scene, a, SECOND / 4, SECOND / 4, 8);
    expect_nothing(scene);
    CHECK(llabs(scene->batch.wait_until_ns - (a->deadline_ns - 3 * SECOND / 2)) <
          SECOND / 100);
    scene->now_ns = scene->batch.wait_until_ns;
    EXPECT(scene, DELAY, a);
    scene_drop(scene);
}

static void
while_the_device_is_busy_only_a_full_batch_is_begun(void)
{
    struct scene *scene = scene_new(4);
    struct paml_op *a = add_op(scene, 2, 2), *b, *c;

    scene->taker.busy_ns = 1;
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == INT64_MAX);
    b = add_op(scene, 1, 2);
    expect_nothing(scene);
    c = add_op(scene, 1, 2);
    EXPECT(scene, FULL, a, b, c);
    a = add_op(scene, 1, 2);
    expect_nothing(scene);
    scene->taker.busy_ns = 0;
    EXPECT(scene, DRAINED, a);
    scene_drop(scene);
}

static void
those_who_fill_batches_do_not_pass_who_waits_for_longer(void)
{
    struct scene *scene = scene_new(4);
    struct paml_op *few = add_op(scene, 1, 2), *full, *urgent, *alone;

    scene->taker.busy_ns = 1;
    full = add_op(scene, 4, 3);
    EXPECT(scene, DRAINED, few);
    EXPECT(scene, FULL, full);
    few = add_op(scene, 1, 2);
    alone = add_alone(scene);
    urgent = add_urgent(scene, 1, 5, 1, 0);
    EXPECT(scene, DRAINED, urgent);
    EXPECT(scene, DRAINED, few);
    EXPECT(scene, ALONE, alone);
    scene_drop(scene);
}

static void
what_is_late_after_the_runs_before_waits_and_is_not_refused(void)
{
    struct scene *scene = scene_new(1);
    struct paml_op *a = add_urgent(scene, 1, 2, 0, 3 * SECOND);

    teach(scene, a, 0, SECOND, 8);
    scene->taker.busy_ns = SECOND;
    EXPECT(scene, FULL, a);
    a = add_urgent(scene, 1, 2, 0, 3 * SECOND);
    scene->taker.busy_ns = 3 * SECOND;
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == INT64_MAX);
    scene->taker.busy_ns = 0; /* they took less than expected */
    EXPECT(scene, FULL, a);
    scene_drop(scene);
}

/* Only the head's deadline was looked at, and of lower priority there may be tighter
   ones. */
static void
any_members_deadline_shortens_the_wait(void)
{
    struct scene *scene = scene_with_delay(8, 10 * SECOND);
    struct paml_op *head = add_urgent(scene, 1, 2, 5, 0), *tight, *tighter;
    int64_t begun_ns = scene->now_ns;

    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == begun_ns + 10 * SECOND);
    tight = add_urgent(scene, 1, 2, 0, 4 * SECOND);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == begun_ns + 2 * SECOND);
    tighter = add_urgent(scene, 1, 2, -1, 2 * SECOND);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == begun_ns + SECOND);
    /* It leaves, and with it its hurry. */
    paml_schedule_remove(&scene->schedule, tighter);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == begun_ns + 2 * SECOND);
    scene->now_ns = begun_ns + 2 * SECOND;
    EXPECT(scene, DELAY, head, tight);
    head = add_op(scene, 1, 2);
    expect_nothing(scene);
    CHECK(scene->batch.wait_until_ns == scene->now_ns + 10 * SECOND);
    paml_schedule_remove(&scene->schedule, head);
    scene_drop(scene);
}

/* --- padding --- */

static void
similar_lengths_go_together_most_urgent_first(void)
{
    struct scene *scene = scene_of(&padding, 4, INT64_MAX / 2);
    struct paml_op *a = add_op(scene, 1, 10), *b = add_op(scene, 1, 100);
    struct paml_op *c = add_op(scene, 1, 11), *d = add_op(scene, 1, 99);
    struct paml_op *e = add_op(scene, 1, 9);

    EXPECT(scene, SHAPE, a, c, e);
    EXPECT(scene, DRAINED, b, d);
    scene_drop(scene);
}

static void
nearest_lengths_fill_the_batch_and_the_others_keep_their_order(void)
{
    struct scene *scene = scene_of(&padding, 3, INT64_MAX / 2);
    struct paml_op *a = add_op(scene, 1, 50), *b = add_op(scene, 1, 60);
    struct paml_op *c = add_op(scene, 1, 49), *d = add_op(scene, 1, 51);
    struct paml_op *e = add_op(scene, 1, 58);

    EXPECT(scene, FULL, a, c, d);
    EXPECT(scene, DRAINED, b, e);
    scene_drop(scene);
}

static void
padding_adds_no_more_than_a_third(void)
{
    for (int length = 1; length < 64; length++) {
        struct scene *scene = scene_of(&padding, 8, INT64_MAX / 2);
        bool fits = 2 * 64 * 3 <= (64 + length) * 4;

        add_op(scene, 1, 64);
        add_op(scene, 1, length);
        CHECK(take(scene) == (fits ? 2 : 1));
        CHECK(scene->batch.release ==
              (fits ? PAML_RELEASE_DRAINED : PAML_RELEASE_SHAPE));
        take(scene);
        scene_drop(scene);
    }
}

static void
lengths_of_one_bucket_are_all_alike(void)
{
    struct scene *scene = scene_of(&bucketing, 8, INT64_MAX / 2);
    struct paml_op *a = add_op(scene, 1, 5), *b = add_op(scene, 1, 4);
    struct paml_op *c = add_op(scene, 1, 16), *d = add_op(scene, 1, 1);

    EXPECT(scene, DRAINED, a, c);
    EXPECT(scene, DRAINED, b, d);
    scene_drop(scene);
}

/* --- deadlines --- */

static void
what_cannot_be_met_is_handed_out_to_be_answered(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *late = add_urgent(scene, 1, 2, 0, 5);
    struct paml_op *fine = add_urgent(scene, 1, 2, 0, 1000000);
    struct paml_op *never = add_op(scene, 1, 2);

    teach(scene, late, 10, 1000, 8);
    CHECK(take(scene) == 2);
    CHECK(scene->batch.ops[0] == fine && scene->batch.ops[1] == never);
    CHECK(scene->batch.hopeless == late && late->next == NULL);
    CHECK(atomic_load(&late->state) == PAML_OP_CLAIMED);
    scene_drop(scene);
}

static void
cost_of_few_runs_is_held_against_nobody(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *op = add_urgent(scene, 1, 2, 0, 5);

    teach(scene, op, 10, 1000, 3);
    EXPECT(scene, DRAINED, op);
    op = add_urgent(scene, 1, 2, 0, 5);
    teach(scene, op, 10, 1000, 1);
    CHECK(take(scene) == 0 && scene->batch.hopeless == op);
    scene_drop(scene);
}

static void
what_is_late_already_is_not_run_though_nothing_is_known_of_its_cost(void)
{
    struct scene *scene = scene_of(&padding, 8, INT64_MAX / 2);
    struct paml_op *late = add_urgent(scene, 1, 10, 0, 5), *other;

    other = add_op(scene, 1, 10);
    scene->now_ns += 10;
    CHECK(take(scene) == 1 && scene->batch.ops[0] == other);
    CHECK(scene->batch.hopeless == late);
    scene_drop(scene);
}

static void
estimate_that_meets_nobody_is_tried_again_after_a_second(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *ops[3];

    for (int i = 0; i < 3; i++) {
        ops[i] = add_urgent(scene, 1, 2, 0, 5 + i);
    }
    teach(scene, ops[0], 10, 1000, 8);
    scene->taker.last_run_ns = scene->now_ns - 2 * SECOND;
    CHECK(take(scene) == 1 && scene->batch.ops[0] == ops[2]); /* has the most time */
    CHECK(scene->batch.hopeless == ops[1] && ops[1]->next == ops[0]);
    scene->taker.last_run_ns = scene->now_ns;
    ops[0] = add_urgent(scene, 1, 2, 0, 5);
    CHECK(take(scene) == 0 && scene->batch.hopeless == ops[0]);
    scene_drop(scene);
}

static void
op_that_runs_alone_can_be_hopeless_too(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *op = add_alone(scene), *other = add_alone(scene);

    paml_schedule_remove(&scene->schedule, op);
    op->deadline_ns = scene->now_ns + 5;
    paml_schedule_add(&scene->schedule, op);
    teach(scene, op, 10, 1000, 8);
    CHECK(take(scene) == 0 && scene->batch.hopeless == op);
    EXPECT(scene, ALONE, other);
    scene_drop(scene);
}

static void
batch_stays_small_where_more_rows_would_make_somebody_late(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *tight = add_urgent(scene, 1, 2, 1, 1250), *ops[5];

    for (int i = 0; i < 5; i++) {
        ops[i] = add_op(scene, 1, 2);
    }
    teach(scene, tight, 100, 1000, 20);
    take(scene);
    CHECK(scene->batch.n >= 1 && scene->batch.n <= 2);
    CHECK(scene->batch.ops[0] == tight && scene->batch.hopeless == NULL);
    CHECK(scene->batch.release == PAML_RELEASE_DEADLINE);
    take(scene);
    CHECK(scene->batch.ops[scene->batch.n - 1] == ops[4]);
    scene_drop(scene);
}

/* --- parking --- */

static void
ops_past_the_bound_are_admitted_first_come_first_served(void)
{
    struct scene *scene = scene_of(&plain, 8, 4);
    struct paml_op *a = add_op(scene, 3, 2), *b = add_op(scene, 2, 2);
    struct paml_op *c = add_urgent(scene, 1, 2, 9, 0);

    CHECK(b->place == PAML_PARKED && c->place == PAML_PARKED &&
          scene->schedule.rows == 3);
    EXPECT(scene, DRAINED, a);
    CHECK(b->place != PAML_PARKED && c->place != PAML_PARKED);
    EXPECT(scene, DRAINED, c, b);
    scene_drop(scene);
}

static void
removed_while_parked_it_is_no_longer_in_the_way(void)
{
    struct scene *scene = scene_of(&plain, 8, 4);
    struct paml_op *a = add_op(scene, 3, 2), *b = add_op(scene, 2, 2);
    struct paml_op *c = add_op(scene, 1, 2), *d = add_op(scene, 1, 2);

    paml_schedule_remove(&scene->schedule, b);
    CHECK(c->place != PAML_PARKED && d->place == PAML_PARKED);
    paml_schedule_remove(&scene->schedule, d);
    EXPECT(scene, DRAINED, a, c);
    scene_drop(scene);
}

static void
the_least_is_the_newest_of_the_lowest_priority(void)
{
    struct scene *scene = scene_new(8);
    struct paml_op *ops[5];
    static const int32_t priorities[5] = {1, 0, 2, 0, 1};
    static const int order[5] = {3, 1, 4, 0, 2};

    CHECK(paml_schedule_least(&scene->schedule) == NULL);
    for (int i = 0; i < 5; i++) {
        ops[i] = add_urgent(scene, 1, 2 + i % 2, priorities[i], 0);
    }
    for (int i = 0; i < 5; i++) {
        CHECK(paml_schedule_least(&scene->schedule) == ops[order[i]]);
        paml_schedule_remove(&scene->schedule, ops[order[i]]);
    }
    scene_drop(scene);
}

static void
take_all_gives_everything_by_arrival(void)
{
    struct scene *scene = scene_of(&plain, 8, 4);
    struct paml_op *op;
    int count = 0;

    add_op(scene, 1, 2);
    add_urgent(scene, 1, 3, 5, 0);
    add_alone(scene);
    add_op(scene, 4, 2);
    add_op(scene, 1, 2);
    for (op = paml_schedule_take_all(&scene->schedule); op != NULL; op = op->next) {
        CHECK(op == &scene->made[count++]->op);
    }
    CHECK(count == 5);
    scene_drop(scene);
}

int
main(void)
{
    RUN(ops_of_a_group_run_together_up_to_max_rows);
    RUN(groups_do_not_mix_and_the_most_urgent_op_of_all_leads);
    RUN(earlier_deadlines_lead_within_a_priority);
    RUN(without_batching_every_op_runs_alone);
    RUN(batch_grows_to_as_many_ops_as_a_run_may_have);
    RUN(removed_ops_leave_their_group_and_an_empty_group_goes);
    RUN(memory_limits_a_run_to_the_cap_of_its_group);
    RUN(op_that_has_seen_64_runs_begin_leads_every_eighth);
    RUN(aged_op_takes_the_most_urgent_of_its_group_along);
    RUN(batch_that_is_not_full_waits_for_its_delay);
    RUN(who_leaves_does_not_make_those_who_stay_wait_anew);
    RUN(full_batch_goes_at_once_and_so_does_who_is_alone);
    RUN(worker_waits_for_the_earliest_of_the_groups);
    RUN(closing_releases_everything);
    RUN(waiting_for_company_spends_half_of_the_time_at_most);
    RUN(any_members_deadline_shortens_the_wait);
    RUN(while_the_device_is_busy_only_a_full_batch_is_begun);
    RUN(those_who_fill_batches_do_not_pass_who_waits_for_longer);
    RUN(what_is_late_after_the_runs_before_waits_and_is_not_refused);
    RUN(similar_lengths_go_together_most_urgent_first);
    RUN(nearest_lengths_fill_the_batch_and_the_others_keep_their_order);
    RUN(padding_adds_no_more_than_a_third);
    RUN(lengths_of_one_bucket_are_all_alike);
    RUN(what_cannot_be_met_is_handed_out_to_be_answered);
    RUN(cost_of_few_runs_is_held_against_nobody);
    RUN(what_is_late_already_is_not_run_though_nothing_is_known_of_its_cost);
    RUN(estimate_that_meets_nobody_is_tried_again_after_a_second);
    RUN(op_that_runs_alone_can_be_hopeless_too);
    RUN(batch_stays_small_where_more_rows_would_make_somebody_late);
    RUN(ops_past_the_bound_are_admitted_first_come_first_served);
    RUN(removed_while_parked_it_is_no_longer_in_the_way);
    RUN(the_least_is_the_newest_of_the_lowest_priority);
    RUN(take_all_gives_everything_by_arrival);
    return 0;
}
