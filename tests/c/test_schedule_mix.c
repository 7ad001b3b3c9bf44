/* Any mix of adding, removing and taking, against the limits that always hold. */
#include "schedule_helpers.h"

static int64_t
waiting_rows(const struct scene *scene, const bool *waits)
{
    int64_t rows = 0;

    for (int i = 0; i < scene->n_made; i++) {
        rows += waits[i] && scene->made[i]->op.place != PAML_PARKED
                    ? paml_op_places(&scene->made[i]->op)
                    : 0;
    }
    return rows;
}

/* Which request it is: waits no longer. */
static void
strike(const struct scene *scene, bool *waits, const struct paml_op *op)
{
    for (int i = 0; i < scene->n_made; i++) {
        if (&scene->made[i]->op == op) {
            CHECK(waits[i]);
            waits[i] = false;
            return;
        }
    }
    CHECK(false);
}

static void
check_batch(const struct scene *scene)
{
    const struct paml_batch *batch = &scene->batch;
    int64_t rows = 0, longest = 0, real = 0;

    for (uint32_t i = 0; i < batch->n; i++) {
        const struct paml_op *op = batch->ops[i];
        CHECK(op->batch_key == batch->ops[0]->batch_key);
        CHECK(batch->n == 1 || op->batch_key != 0);
        rows += op->rows;
        longest = op->lengths[0] > longest ? op->lengths[0] : longest;
        real += op->rows * op->lengths[0];
    }
    CHECK(rows == batch->rows);
    CHECK(batch->n <= 1 || rows <= scene->batching.max_rows);
    /* Where deadlines are tight, some of the similar ones go without the others. */
    if (batch->n > 1 && scene->batching.n_padded > 0 &&
        scene->batching.padded[0].n_buckets == 0 && batch->hopeless == NULL &&
        batch->release != PAML_RELEASE_DEADLINE) {
        CHECK(3 * rows * longest <= 4 * real);
    }
}

static void
any_mix_loses_nothing_and_keeps_every_limit(void)
{
    static const struct paml_batching *const kinds[] = {&plain, &padding, &bucketing};
    unsigned seed = 5;
    int64_t hopeless = 0, taken = 0, removed = 0;

    for (int round = 0; round < 120; round++) {
        int64_t bound = round % 2 == 0 ? INT64_MAX / 2 : 1 + rand_r(&seed) % 40;
        int64_t most = 1 + rand_r(&seed) % 16;
        struct paml_batching batching = *kinds[round % 3];
        struct scene *scene;
        bool waits[200] = {false};
        int left = 0;

        batching.max_delay_ns = round % 5 == 0 ? 50 : 0;
        scene = scene_of(&batching, most, bound);
        while (scene->n_made < 200 || left > 0) {
            int draw = (int)(rand_r(&seed) % 10);
            scene->now_ns += rand_r(&seed) % 20;
            if (draw < 5 && scene->n_made < 200) {
                int64_t time = rand_r(&seed) % 3 == 0 ? 1 + rand_r(&seed) % 300 : 0;
                waits[scene->n_made] = true;
                left++;
                add_urgent(scene, rand_r(&seed) % 6, 1 + rand_r(&seed) % 16,
                           (int32_t)(rand_r(&seed) % 3), time);
            } else if (draw < 6 && left > 0) {
                int i = (int)rand_r(&seed) % scene->n_made;
                if (waits[i]) {
                    paml_schedule_remove(&scene->schedule, &scene->made[i]->op);
                    waits[i] = false;
                    left--;
                    removed++;
                }
            } else {
                take(scene);
                check_batch(scene);
                for (uint32_t i = 0; i < scene->batch.n; i++) {
                    strike(scene, waits, scene->batch.ops[i]);
                    left--;
                    taken++;
                }
                for (struct paml_op *op = scene->batch.hopeless; op != NULL;
                     op = op->next) {
                    CHECK(op->deadline_ns != 0);
                    strike(scene, waits, op);
                    left--;
                    hopeless++;
                }
                /* Nothing waits that could run, unless for company. */
                CHECK(left == 0 || scene->batch.n > 0 ||
                      scene->batch.hopeless != NULL ||
                      scene->batch.wait_until_ns > scene->now_ns);
                if (scene->batch.n > 0) {
                    paml_cost_observe(
                        &scene->cost,
                        paml_batch_cost_key(&scene->batching, scene->batch.ops[0]),
                        scene->batch.rows > 0 ? scene->batch.rows : 1,
                        20 + 5 * scene->batch.rows);
                    scene->taker.last_run_ns = scene->now_ns;
                }
            }
            CHECK(scene->schedule.rows == waiting_rows(scene, waits));
            CHECK(scene->schedule.rows <= bound || scene->schedule.count == 1);
        }
        scene_drop(scene);
    }
    printf("    %lld taken, %lld hopeless, %lld removed\n", (long long)taken,
           (long long)hopeless, (long long)removed);
    CHECK(taken > 10000 && hopeless > 100 && removed > 500);
}

int
main(void)
{
    RUN(any_mix_loses_nothing_and_keeps_every_limit);
    return 0;
}
