/* Runs in flight: a worker that begins runs before others have ended, and what becomes
 * of these on the way. The device is the test's own: runs end when the test says so, in
 * whatever order, from whichever thread.
 */
#include "engine_helpers.h"

#include "flights.h"
#include "run_tests.h"

/* --- the device --- */

#define FLIGHTS_MOST 4096

enum telling { AT_ONCE, LATER, WHEN_ASKED };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t depth;
    enum telling telling;
    int refuse; /* so many submits are refused */
    uint32_t begun, finished, runs, asked, up_most;
    struct paml_flight *flights[FLIGHTS_MOST]; /* by begun; NULL once it was told */
    bool done[FLIGHTS_MOST];
    int codes[FLIGHTS_MOST];
} device = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void
device_set(uint32_t depth, enum telling telling)
{
    pthread_mutex_lock(&device.lock);
    device.depth = depth;
    device.telling = telling;
    device.refuse = 0;
    device.begun = device.finished = device.runs = device.asked = device.up_most = 0;
    memset(device.done, 0, sizeof(device.done));
    memset(device.codes, 0, sizeof(device.codes));
    pthread_mutex_unlock(&device.lock);
}

static void
await_begun(uint32_t begun)
{
    pthread_mutex_lock(&device.lock);
    while (device.begun < begun) {
        pthread_cond_wait(&device.changed, &device.lock);
    }
    pthread_mutex_unlock(&device.lock);
}

/* Lock: the device's. */
static void
end_held(uint32_t i, int code)
{
    struct paml_flight *flight = device.flights[i];

    device.codes[i] = code;
    device.done[i] = true;
    device.flights[i] = NULL;
    if (device.telling != WHEN_ASKED) {
        flight->ready(flight);
    }
    pthread_cond_broadcast(&device.changed);
}

/* Run i has ended, with that. */
static void
end(uint32_t i, int code)
{
    pthread_mutex_lock(&device.lock);
    end_held(i, code);
    pthread_mutex_unlock(&device.lock);
}

static int
device_load(const struct paml_load_spec *spec, void **program, struct paml_error *err)
{
    (void)spec;
    (void)err;
    *program = &device;
    return PAML_OK;
}

static void
device_unload(void *program)
{
    (void)program;
}

static const struct paml_entry *
device_describe(void *program)
{
    static const struct paml_entry entry = {.name = "device", .variadic = 1};

    (void)program;
    return &entry;
}

static int
device_open(void *program, DLDevice where, int threads, void **instance,
            struct paml_error *err)
{
    (void)where;
    (void)threads;
    (void)err;
    *instance = program;
    return PAML_OK;
}

static int
device_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    (void)instance;
    (void)run;
    (void)err;
    pthread_mutex_lock(&device.lock);
    CHECK(device.begun == device.finished); /* nothing is up */
    device.runs++;
    pthread_mutex_unlock(&device.lock);
    return PAML_OK;
}

static void
device_close(void *instance)
{
    (void)instance;
    CHECK(device.begun == device.finished);
}

static uint32_t
device_depth(void *instance)
{
    (void)instance;
    return device.depth;
}

static int
device_submit(void *instance, struct paml_flight *flight, struct paml_error *err)
{
    int code = PAML_OK;

    (void)instance;
    pthread_mutex_lock(&device.lock);
    if (device.refuse > 0) {
        device.refuse--;
        code = paml_fail(err, PAML_ERR_BACKEND, "refused");
    } else {
        CHECK(device.begun < FLIGHTS_MOST);
        flight->ticket = (void *)(uintptr_t)(device.begun + 1);
        device.flights[device.begun++] = flight;
        if (device.begun - device.finished > device.up_most) {
            device.up_most = device.begun - device.finished;
        }
        if (device.telling == AT_ONCE) {
            end_held(device.begun - 1, PAML_OK);
        }
        pthread_cond_broadcast(&device.changed);
    }
    pthread_mutex_unlock(&device.lock);
    return code;
}

static int64_t
device_poll(void *instance, struct paml_flight *flight)
{
    int64_t pause_ns = INT64_MAX;

    (void)instance;
    pthread_mutex_lock(&device.lock);
    if (device.telling == WHEN_ASKED) {
        pause_ns = device.done[(uintptr_t)flight->ticket - 1] ? 0 : 1000000;
    }
    device.asked++;
    pthread_mutex_unlock(&device.lock);
    return pause_ns;
}

static int
device_finish(void *instance, struct paml_flight *flight, struct paml_error *err)
{
    uint32_t i = (uint32_t)((uintptr_t)flight->ticket - 1);
    int code;

    (void)instance;
    pthread_mutex_lock(&device.lock);
    CHECK(i == device.finished); /* in the order of submission, each once */
    while (!device.done[i]) {
        pthread_cond_wait(&device.changed, &device.lock);
    }
    device.finished++;
    code = device.codes[i];
    pthread_cond_broadcast(&device.changed);
    pthread_mutex_unlock(&device.lock);
    return code != PAML_OK ? paml_fail(err, code, "run %u failed", (unsigned)i) : code;
}

static const struct paml_backend device_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "device",
    .load = device_load,
    .unload = device_unload,
    .describe = device_describe,
    .open = device_open,
    .run = device_run,
    .close = device_close,
    .depth = device_depth,
    .submit = device_submit,
    .poll = device_poll,
    .finish = device_finish,
};

/* --- models of it --- */

struct bench {
    struct paml_mailbox *mailbox;
    struct paml_op *rest;
    struct paml_model *model;
};

static void
bench_open(struct bench *bench, int instances)
{
    static const DLDevice cpu = {kDLCPU, 0};
    struct paml_model_options options = {.name = "device",
                                         .devices = &cpu,
                                         .n_devices = 1,
                                         .instances = instances,
                                         .threads = 1,
                                         .limits = plenty};
    struct paml_op ready;

    bench->mailbox = paml_mailbox_new();
    bench->rest = NULL;
    bench->model = paml_model_new(&device_backend, &options);
    CHECK(bench->mailbox != NULL && bench->model != NULL);
    paml_op_init(&ready, bench->mailbox);
    paml_model_start(bench->model, &ready);
    CHECK(await(bench->mailbox, &bench->rest) == &ready && ready.code == PAML_OK);
}

static void
bench_close(struct bench *bench)
{
    close_model(bench->model, bench->mailbox, &bench->rest);
    paml_mailbox_unref(bench->mailbox);
}

static void
submit(struct bench *bench, struct paml_op *op)
{
    paml_op_init(op, bench->mailbox);
    op->submitted_ns = paml_now_ns();
    CHECK(paml_model_submit(bench->model, op) == PAML_OK);
}

static void
expect(struct bench *bench, struct paml_op *op, int code)
{
    CHECK(await(bench->mailbox, &bench->rest) == op);
    CHECK(op->code == code);
    paml_op_clear(op);
}

static void
expect_nothing(struct bench *bench)
{
    CHECK(bench->rest == NULL && !paml_mailbox_has_more(bench->mailbox));
}

/* --- the tests --- */

static void
as_many_are_up_as_the_instance_can_have_and_answers_come_in_order(void)
{
    struct bench bench;
    struct paml_op ops[6];

    device_set(3, LATER);
    bench_open(&bench, 1);
    for (int i = 0; i < 6; i++) {
        submit(&bench, &ops[i]);
    }
    await_begun(3);
    end(1, PAML_OK); /* before its turn: waits for it */
    end(2, PAML_OK);
    expect_nothing(&bench);
    end(0, PAML_OK);
    for (int i = 0; i < 3; i++) {
        expect(&bench, &ops[i], PAML_OK);
    }
    await_begun(6);
    for (int i = 5; i >= 3; i--) {
        end((uint32_t)i, PAML_OK);
    }
    for (int i = 3; i < 6; i++) {
        expect(&bench, &ops[i], PAML_OK);
    }
    CHECK(device.up_most == 3 && device.runs == 0);
    bench_close(&bench);
}

static void
work_that_comes_while_a_run_is_up_is_begun_at_once(enum telling telling)
{
    struct bench bench;
    struct paml_op ops[3];

    device_set(3, telling);
    bench_open(&bench, 1);
    for (uint32_t i = 0; i < 3; i++) {
        submit(&bench, &ops[i]);
        await_begun(i + 1);
    }
    for (uint32_t i = 0; i < 3; i++) {
        end(i, PAML_OK);
        expect(&bench, &ops[i], PAML_OK);
    }
    bench_close(&bench);
}

static void
an_end_may_be_told_before_submit_returns(void)
{
    struct bench bench;
    struct paml_op ops[1000];

    device_set(4, AT_ONCE);
    bench_open(&bench, 1);
    for (int i = 0; i < 1000; i++) {
        submit(&bench, &ops[i]);
    }
    for (int i = 0; i < 1000; i++) {
        expect(&bench, &ops[i], PAML_OK);
    }
    bench_close(&bench);
}

static void
who_is_told_does_not_ask(void)
{
    struct bench bench;
    struct paml_op op;

    device_set(2, LATER);
    bench_open(&bench, 1);
    submit(&bench, &op);
    await_begun(1);
    end(0, PAML_OK);
    expect(&bench, &op, PAML_OK);
    bench_close(&bench);
    /* Once before it waits; once more where a wait ended for nothing. */
    CHECK(device.asked <= 2);
}

static void
a_failed_run_fails_its_request_alone(void)
{
    struct bench bench;
    struct paml_op ops[3];

    device_set(3, LATER);
    bench_open(&bench, 1);
    for (int i = 0; i < 3; i++) {
        submit(&bench, &ops[i]);
    }
    await_begun(3);
    end(0, PAML_OK);
    end(1, PAML_ERR_BACKEND);
    end(2, PAML_OK);
    expect(&bench, &ops[0], PAML_OK);
    expect(&bench, &ops[1], PAML_ERR_BACKEND);
    expect(&bench, &ops[2], PAML_OK);
    CHECK(device.runs == 0);
    bench_close(&bench);
}

static void
what_is_refused_at_the_start_fails_alone(void)
{
    struct bench bench;
    struct paml_op ops[2];

    device_set(2, LATER);
    bench_open(&bench, 1);
    submit(&bench, &ops[0]);
    await_begun(1);
    device.refuse = 1;
    submit(&bench, &ops[1]);
    expect(&bench, &ops[1], PAML_ERR_BACKEND); /* the other one is still up */
    end(0, PAML_OK);
    expect(&bench, &ops[0], PAML_OK);
    bench_close(&bench);
}

static void
memory_that_others_may_have_had_is_asked_for_again_alone(void)
{
    struct bench bench;
    struct paml_op ops[3];

    device_set(2, LATER);
    bench_open(&bench, 1);
    submit(&bench, &ops[0]);
    submit(&bench, &ops[1]);
    await_begun(2);
    end(0, PAML_ERR_MEMORY);
    end(1, PAML_OK); /* landed before the first is run again, which answers it first */
    expect(&bench, &ops[1], PAML_OK);
    expect(&bench, &ops[0], PAML_OK);
    CHECK(device.runs == 1);
    submit(&bench, &ops[2]); /* alone from the start: it is too large indeed */
    await_begun(3);
    end(2, PAML_ERR_MEMORY);
    expect(&bench, &ops[2], PAML_ERR_MEMORY);
    CHECK(device.runs == 1);
    bench_close(&bench);
}

static void
a_lost_device_fails_what_is_up_and_what_comes(void)
{
    struct bench bench;
    struct paml_op ops[4];

    device_set(2, LATER);
    bench_open(&bench, 1);
    for (int i = 0; i < 3; i++) {
        submit(&bench, &ops[i]);
    }
    await_begun(2);
    end(0, PAML_ERR_DEVICE);
    end(1, PAML_ERR_DEVICE);
    for (int i = 0; i < 3; i++) {
        expect(&bench, &ops[i], PAML_ERR_DEVICE);
    }
    submit(&bench, &ops[3]);
    expect(&bench, &ops[3], PAML_ERR_DEVICE);
    CHECK(device.begun == 2 && device.runs == 0); /* it was given nothing more */
    bench_close(&bench);
}

static void
a_close_that_drains_waits_for_all(enum telling telling)
{
    struct bench bench;
    struct paml_op ops[4], closed;

    device_set(2, telling);
    bench_open(&bench, 1);
    for (int i = 0; i < 4; i++) {
        submit(&bench, &ops[i]);
    }
    await_begun(2);
    paml_op_init(&closed, bench.mailbox);
    paml_model_close(bench.model, true, &closed);
    for (uint32_t i = 0; i < 4; i++) {
        await_begun(i + 1);
        end(i, PAML_OK);
        expect(&bench, &ops[i], PAML_OK);
    }
    CHECK(await(bench.mailbox, &bench.rest) == &closed);
    paml_model_unref(bench.model);
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
    paml_mailbox_unref(bench.mailbox);
}

static void
a_close_at_once_refuses_what_is_not_up(void)
{
    struct bench bench;
    struct paml_op ops[3], closed;

    device_set(2, LATER);
    bench_open(&bench, 1);
    for (int i = 0; i < 3; i++) {
        submit(&bench, &ops[i]);
    }
    await_begun(2);
    paml_op_init(&closed, bench.mailbox);
    paml_model_close(bench.model, false, &closed);
    expect(&bench, &ops[2], PAML_ERR_CLOSED);
    end(0, PAML_OK);
    end(1, PAML_OK);
    expect(&bench, &ops[0], PAML_OK);
    expect(&bench, &ops[1], PAML_OK);
    CHECK(await(bench.mailbox, &bench.rest) == &closed);
    paml_model_unref(bench.model);
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
    paml_mailbox_unref(bench.mailbox);
}

static void
time_that_two_share_is_counted_once(void)
{
    struct bench bench;
    struct paml_worker_stats *stats;
    struct paml_op ops[2];
    int64_t begun_ns, ended_ns;

    device_set(2, LATER);
    bench_open(&bench, 1);
    stats = &bench.model->workers[0].stats;
    begun_ns = paml_now_ns();
    submit(&bench, &ops[0]);
    submit(&bench, &ops[1]);
    await_begun(2);
    CHECK(atomic_load(&stats->running_since_ns) >= begun_ns);
    while (paml_now_ns() < begun_ns + 20000000) {
        paml_cpu_relax();
    }
    end(0, PAML_OK);
    end(1, PAML_OK);
    expect(&bench, &ops[0], PAML_OK);
    expect(&bench, &ops[1], PAML_OK);
    ended_ns = paml_now_ns();
    CHECK((int64_t)atomic_load(&stats->busy_ns) <= ended_ns - begun_ns);
    CHECK((int64_t)atomic_load(&stats->busy_ns) > 10000000);
    /* The second is said to have taken what was left of it when the first had ended. */
    CHECK(ops[0].run_ns > 10000000 && ops[1].run_ns < ops[0].run_ns);
    CHECK(atomic_load(&stats->runs) == 2);
    bench_close(&bench);
}

/* --- everything at once, on the echo backend's devices --- */

#define STREAMS 3
#define STREAM_OPS 3000

static struct paml_model *shared;
static atomic_int streams_ended;

static void
push_and_await(void *argument)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *op;
    unsigned seed = (unsigned)(uintptr_t)argument;
    int up = 0, pushed = 0;

    CHECK(mailbox != NULL);
    while (pushed < STREAM_OPS || up > 0) {
        if (pushed < STREAM_OPS && (up == 0 || rand_r(&seed) % 3 != 0)) {
            op = op_new(mailbox);
            op->priority = rand_r(&seed) % 3;
            CHECK(paml_model_submit(shared, op) == PAML_OK);
            pushed++;
            up++;
            if (rand_r(&seed) % 8 == 0) {
                if (paml_queue_remove(&shared->queue, op)) {
                    op_free(op);
                    up--;
                } else {
                    paml_op_give_up(op, false);
                }
            }
            continue;
        }
        op = await(mailbox, &rest);
        CHECK(op->code == PAML_OK || op->code == PAML_ERR_BACKEND);
        op_free(op);
        up--;
    }
    paml_mailbox_unref(mailbox);
    atomic_fetch_add(&streams_ended, 1);
    paml_thread_leaving();
}

static void
nothing_is_lost_whatever_comes_together(uint32_t depth, bool polled)
{
    static const DLDevice cpu = {kDLCPU, 0};
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model_options options = {.name = "echo",
                                         .load = {.options = echo},
                                         .devices = &cpu,
                                         .n_devices = 1,
                                         .instances = 2,
                                         .threads = 1,
                                         .spin_ns = 20000,
                                         .limits = plenty};
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *ready;

    CHECK(echo != NULL && mailbox != NULL);
    echo->in_flight = depth;
    echo->polled = polled;
    shared = paml_model_new(&paml_echo_flights_backend, &options);
    paml_model_start(shared, op_new(mailbox));
    ready = await(mailbox, &rest);
    CHECK(ready->code == PAML_OK);
    op_free(ready);
    atomic_store(&streams_ended, 0);
    for (uintptr_t i = 0; i < STREAMS; i++) {
        CHECK(paml_thread_start(push_and_await, (void *)(i + 1), "stream") == 0);
    }
    while (atomic_load(&streams_ended) < STREAMS) {
        paml_echo_fail(echo, 1, PAML_ERR_BACKEND, "on purpose");
        paml_sleep_until(paml_now_ns() + 100000);
    }
    close_model(shared, mailbox, &rest);
    paml_mailbox_unref(mailbox);
    paml_echo_unref(echo);
}

static void
work_is_begun_at_once_where_ends_are_told(void)
{
    work_that_comes_while_a_run_is_up_is_begun_at_once(LATER);
}

static void
work_is_begun_at_once_where_ends_are_asked_for(void)
{
    work_that_comes_while_a_run_is_up_is_begun_at_once(WHEN_ASKED);
}

static void
a_close_drains_what_tells(void)
{
    a_close_that_drains_waits_for_all(LATER);
}

static void
a_close_drains_what_is_asked(void)
{
    a_close_that_drains_waits_for_all(WHEN_ASKED);
}

static void
nothing_is_lost_with_two_up(void)
{
    nothing_is_lost_whatever_comes_together(2, false);
}

static void
nothing_is_lost_with_five_up(void)
{
    nothing_is_lost_whatever_comes_together(5, false);
}

static void
nothing_is_lost_where_ends_are_asked_for(void)
{
    nothing_is_lost_whatever_comes_together(3, true);
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(as_many_are_up_as_the_instance_can_have_and_answers_come_in_order),
        TEST(work_is_begun_at_once_where_ends_are_told),
        TEST(work_is_begun_at_once_where_ends_are_asked_for),
        TEST(an_end_may_be_told_before_submit_returns),
        TEST(who_is_told_does_not_ask),
        TEST(a_failed_run_fails_its_request_alone),
        TEST(what_is_refused_at_the_start_fails_alone),
        TEST(memory_that_others_may_have_had_is_asked_for_again_alone),
        TEST(a_lost_device_fails_what_is_up_and_what_comes),
        TEST(a_close_drains_what_tells),
        TEST(a_close_drains_what_is_asked),
        TEST(a_close_at_once_refuses_what_is_not_up),
        TEST(time_that_two_share_is_counted_once),
        TEST(nothing_is_lost_with_two_up),
        TEST(nothing_is_lost_with_five_up),
        TEST(nothing_is_lost_where_ends_are_asked_for),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
