/* A schedule by hand, at a time that the test says: for the tests of schedules. */
#ifndef PAML_SCHEDULE_HELPERS_H
#define PAML_SCHEDULE_HELPERS_H

#include "batch_helpers.h"
#include "schedule.h"

#define SECOND INT64_C(1000000000)
#define MOST 4096

/* A schedule, what it is asked with, and the requests that were made for it. */
struct scene {
    struct paml_batching batching;
    struct paml_schedule schedule;
    struct paml_cost_model cost;
    struct paml_taker taker;
    struct paml_batch batch;
    int64_t now_ns;
    struct request *made[MOST];
    int n_made;
};

static inline struct scene *
scene_of(const struct paml_batching *batching, int64_t max_rows, int64_t admitted)
{
    struct scene *scene = calloc(1, sizeof(*scene));

    CHECK(scene != NULL);
    scene->batching = *batching;
    scene->batching.max_rows = max_rows;
    paml_schedule_init(&scene->schedule, &scene->batching, admitted);
    paml_cost_init(&scene->cost);
    paml_batch_init(&scene->batch);
    scene->now_ns = 1000 * SECOND;
    scene->taker = (struct paml_taker){&scene->cost, scene->now_ns, 0};
    return scene;
}

static inline struct scene *
scene_new(int64_t max_rows)
{
    return scene_of(&plain, max_rows, INT64_MAX / 2);
}

static inline void
scene_drop(struct scene *scene)
{
    CHECK(scene->schedule.count == 0 && scene->schedule.rows == 0);
    CHECK(scene->schedule.groups == NULL && scene->schedule.parked_first == NULL);
    CHECK(scene->schedule.oldest == NULL && scene->schedule.newest == NULL);
    paml_schedule_destroy(&scene->schedule);
    paml_batch_destroy(&scene->batch);
    for (int i = 0; i < scene->n_made; i++) {
        request_drop(scene->made[i]);
    }
    free(scene);
}

/* A request of the group that its columns make, not yet in the schedule. */
static inline struct paml_op *
make(struct scene *scene, int64_t rows, int64_t columns)
{
    struct request *request = request_of(rows, columns, 0);

    CHECK(scene->n_made < MOST);
    scene->made[scene->n_made++] = request;
    classify(&scene->batching, request);
    request->op.submitted_ns = scene->now_ns;
    paml_op_set_state(&request->op, PAML_OP_WAITING);
    return &request->op;
}

static inline struct paml_op *
add_op(struct scene *scene, int64_t rows, int64_t columns)
{
    struct paml_op *op = make(scene, rows, columns);

    paml_schedule_add(&scene->schedule, op);
    return op;
}

static inline struct paml_op *
add_urgent(struct scene *scene, int64_t rows, int64_t columns, int32_t priority,
           int64_t left_ns)
{
    struct paml_op *op = make(scene, rows, columns);

    op->priority = priority;
    op->deadline_ns = left_ns != 0 ? scene->now_ns + left_ns : 0;
    paml_schedule_add(&scene->schedule, op);
    return op;
}

/* One that shares with nobody: it has no rows. */
static inline struct paml_op *
add_alone(struct scene *scene)
{
    struct paml_op *op = add_op(scene, 0, 1);

    CHECK(op->batch_key == 0);
    return op;
}

static inline uint32_t
take(struct scene *scene)
{
    CHECK(paml_schedule_take(&scene->schedule, &scene->taker, scene->now_ns, false,
                             &scene->batch) == 0);
    for (uint32_t i = 0; i < scene->batch.n; i++) {
        const struct paml_op *op = scene->batch.ops[i];
        CHECK(atomic_load(&op->state) == PAML_OP_CLAIMED && op->group == NULL);
    }
    return scene->batch.n;
}

/* Takes, and expects exactly these; NULL ends them. */
static inline void
expect(struct scene *scene, enum paml_release release, ...)
{
    const struct paml_op *op;
    uint32_t n = 0;
    int64_t rows = 0;
    va_list ops;

    take(scene);
    va_start(ops, release);
    while ((op = va_arg(ops, const struct paml_op *)) != NULL) {
        CHECK(n < scene->batch.n && scene->batch.ops[n] == op);
        rows += op->rows;
        n++;
    }
    va_end(ops);
    CHECK(scene->batch.n == n && scene->batch.rows == rows);
    CHECK(scene->batch.hopeless == NULL);
    CHECK(n == 0 || scene->batch.release == release);
}

static inline void
expect_nothing(struct scene *scene)
{
    expect(scene, PAML_RELEASE_ALONE, (struct paml_op *)NULL);
}

#define EXPECT(scene, release, ...)                                                    \
    expect(scene, PAML_RELEASE_##release, __VA_ARGS__, (struct paml_op *)NULL)

#endif
