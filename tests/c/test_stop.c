/* Stopping runs that nobody wants any more: which are, which aren't, and the race
 * between whoever gives up and whoever begins.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "mailbox.h"
#include "model.h"
#include "thread.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

/* --- a backend whose runs last until they are stopped, or let go --- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int begun, stops, unstops;
    bool stopped, open; /* open: runs end at once, well */
} gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, false, false};

static int
gate_load(const struct paml_load_spec *spec, void **program, struct paml_error *err)
{
    (void)spec;
    (void)err;
    *program = &gate;
    return PAML_OK;
}

static void
gate_unload(void *program)
{
    (void)program;
}

static const struct paml_entry *
gate_describe(void *program)
{
    static const struct paml_entry entry = {.name = "gate", .variadic = 1};

    (void)program;
    return &entry;
}

static int
gate_open(void *program, DLDevice device, int threads, void **instance,
          struct paml_error *err)
{
    (void)device;
    (void)threads;
    (void)err;
    *instance = program;
    return PAML_OK;
}

static int
gate_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    bool stopped;

    (void)instance;
    (void)run;
    pthread_mutex_lock(&gate.lock);
    gate.begun++;
    pthread_cond_broadcast(&gate.changed);
    while (!gate.stopped && !gate.open) {
        pthread_cond_wait(&gate.changed, &gate.lock);
    }
    stopped = gate.stopped;
    pthread_mutex_unlock(&gate.lock);
    return stopped ? paml_fail(err, PAML_ERR_BACKEND, "stopped") : PAML_OK;
}

static void
gate_close(void *instance)
{
    (void)instance;
}

static void
gate_stop(void *instance, int on)
{
    (void)instance;
    pthread_mutex_lock(&gate.lock);
    gate.stopped = on;
    gate.stops += on;
    gate.unstops += !on;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static const struct paml_backend gate_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "gate",
    .load = gate_load,
    .unload = gate_unload,
    .describe = gate_describe,
    .open = gate_open,
    .run = gate_run,
    .close = gate_close,
    .stop = gate_stop,
};

/* Sets the gate, and counts anew. */
static void
gate_set(bool open)
{
    pthread_mutex_lock(&gate.lock);
    gate.open = open;
    gate.begun = gate.stops = gate.unstops = 0;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static void
await_begun(int runs)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.begun < runs) {
        pthread_cond_wait(&gate.changed, &gate.lock);
    }
    pthread_mutex_unlock(&gate.lock);
}

static void
let_go(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.open = true;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

/* --- models and requests --- */

struct bench {
    struct paml_mailbox *mailbox;
    struct paml_model *model;
    struct paml_op *rest;
};

static struct paml_op *
await(struct bench *bench)
{
    struct paml_mailbox *mailbox = bench->mailbox;
    struct pollfd bells[] = {{.fd = mailbox->fd, .events = POLLIN},
                             {.fd = mailbox->alarm_fd, .events = POLLIN}};
    struct paml_op *op;

    while (bench->rest == NULL) {
        if (paml_mailbox_rest(mailbox, 0, 0)) {
            CHECK(poll(bells, 2, 30000) >= 1);
            paml_mailbox_silence(mailbox, paml_now_ns());
        }
        bench->rest = paml_mailbox_take(mailbox);
    }
    op = bench->rest;
    bench->rest = op->next;
    return op;
}

static void
bench_open(struct bench *bench, uint32_t max_rows)
{
    static const DLDevice cpu = {kDLCPU, 0};
    struct paml_model_options options = {
        .name = "gate",
        .devices = &cpu,
        .n_devices = 1,
        .instances = 1,
        .threads = 1,
        .limits = {INT64_MAX / 2, INT64_MAX / 2, PAML_FULL_WAIT},
        .batching = {.max_rows = max_rows}};
    struct paml_op ready;

    bench->mailbox = paml_mailbox_new();
    bench->rest = NULL;
    bench->model = paml_model_new(&gate_backend, &options);
    CHECK(bench->mailbox != NULL && bench->model != NULL);
    paml_op_init(&ready, bench->mailbox);
    paml_model_start(bench->model, &ready);
    CHECK(await(bench) == &ready && ready.code == PAML_OK);
}

static void
bench_close(struct bench *bench)
{
    struct paml_op closed;

    paml_op_init(&closed, bench->mailbox);
    paml_model_close(bench->model, true, &closed);
    CHECK(await(bench) == &closed);
    paml_model_unref(bench->model);
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
    paml_mailbox_unref(bench->mailbox);
}

/* A request of one row. */
struct request {
    struct paml_op op;
    struct paml_value input;
    int64_t shape;
    float data;
};

static void
submit(struct bench *bench, struct request *request, int64_t timeout_ns)
{
    memset(request, 0, sizeof(*request));
    paml_op_init(&request->op, bench->mailbox);
    request->shape = 1;
    request->input.kind = PAML_TENSOR;
    request->input.tensor = (DLTensor){.data = &request->data,
                                       .device = {kDLCPU, 0},
                                       .ndim = 1,
                                       .dtype = {kDLFloat, 32, 1},
                                       .shape = &request->shape};
    request->op.inputs = &request->input;
    request->op.n_inputs = request->op.n_arguments = 1;
    request->op.submitted_ns = paml_now_ns();
    request->op.deadline_ns =
        timeout_ns != 0 ? request->op.submitted_ns + timeout_ns : 0;
    if (bench->model->batching.max_rows > 0) {
        struct paml_error error;
        CHECK(paml_batch_classify(&bench->model->batching, &request->op, &error) == 0);
    }
    CHECK(paml_model_submit(bench->model, &request->op) == PAML_OK);
}

static uint64_t
count_of(const atomic_uint_least64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void
a_run_that_is_given_up_is_stopped_and_no_failure(void)
{
    struct bench bench;
    struct request request;

    gate_set(false);
    bench_open(&bench, 0);
    submit(&bench, &request, 0);
    await_begun(1);
    paml_op_give_up(&request.op, false);
    CHECK(await(&bench) == &request.op);
    CHECK(gate.stops == 1 && gate.unstops == 1);
    CHECK(count_of(&bench.model->workers[0].stats.failed) == 0);
    CHECK(count_of(&bench.model->failing) == 0);
    paml_op_clear(&request.op);
    /* And the next run runs. */
    let_go();
    submit(&bench, &request, 0);
    CHECK(await(&bench) == &request.op && request.op.code == PAML_OK);
    paml_op_clear(&request.op);
    bench_close(&bench);
}

static void
a_run_past_its_deadline_is_stopped_and_expires(void)
{
    struct bench bench;
    struct request request;

    gate_set(false);
    bench_open(&bench, 0);
    submit(&bench, &request, 20 * PAML_SECOND / 1000);
    await_begun(1);
    paml_op_give_up(&request.op, true); /* too early: nothing happens */
    CHECK(gate.stops == 0);
    while (paml_now_ns() < request.op.deadline_ns) {
    }
    paml_op_give_up(&request.op, true);
    CHECK(await(&bench) == &request.op);
    CHECK(request.op.code == PAML_ERR_DEADLINE && gate.stops == 1);
    CHECK(count_of(&bench.model->workers[0].stats.expired) == 1);
    paml_op_clear(&request.op);
    bench_close(&bench);
}

static void
a_batch_goes_on_until_the_last_one_gives_up(void)
{
    struct bench bench;
    struct request first, requests[3];

    gate_set(false);
    bench_open(&bench, 8);
    submit(&bench, &first, 0);
    await_begun(1);
    for (int i = 0; i < 3; i++) {
        submit(&bench, &requests[i], 0);
    }
    paml_op_give_up(&first.op, false);
    CHECK(await(&bench) == &first.op);
    await_begun(2);
    for (int i = 0; i < 3; i++) {
        CHECK(gate.stops == 1);
        paml_op_give_up(&requests[i].op, false);
    }
    for (int i = 0; i < 3; i++) {
        paml_op_clear(await(&bench));
    }
    CHECK(gate.stops == 2 && gate.unstops == 2 && gate.begun == 2);
    CHECK(count_of(&bench.model->workers[0].stats.failed) == 0);
    paml_op_clear(&first.op);
    bench_close(&bench);
}

static void
what_is_still_wanted_of_a_batch_is_served(void)
{
    struct bench bench;
    struct request first, requests[3];

    gate_set(false);
    bench_open(&bench, 8);
    submit(&bench, &first, 0);
    await_begun(1);
    for (int i = 0; i < 3; i++) {
        submit(&bench, &requests[i], 0);
    }
    paml_op_give_up(&first.op, false);
    CHECK(await(&bench) == &first.op);
    await_begun(2);
    paml_op_give_up(&requests[0].op, false);
    paml_op_give_up(&requests[2].op, false);
    let_go();
    for (int i = 0; i < 3; i++) {
        paml_op_clear(await(&bench));
    }
    CHECK(gate.stops == 1);
    CHECK(requests[1].op.code == PAML_OK);
    paml_op_clear(&first.op);
    bench_close(&bench);
}

/* Without waiting for the run to begin: a stop that is lost would hang, as these runs
   end by nothing else. */
static void
giving_up_while_the_run_begins_is_never_lost(void)
{
    struct bench bench;
    struct request request;

    gate_set(false);
    bench_open(&bench, 0);
    for (int i = 0; i < 3000; i++) {
        submit(&bench, &request, 0);
        for (volatile int spin = i % 300; spin > 0; spin--) {
        }
        if (paml_queue_remove(&bench.model->queue, &request.op)) {
            paml_op_clear(&request.op);
            continue;
        }
        paml_op_give_up(&request.op, false);
        CHECK(await(&bench) == &request.op);
        paml_op_clear(&request.op);
    }
    CHECK(gate.stops == gate.unstops && gate.stops == gate.begun);
    bench_close(&bench);
}

int
main(void)
{
#define RUN(test) (printf(#test "\n"), fflush(stdout), test())
    RUN(a_run_that_is_given_up_is_stopped_and_no_failure);
    RUN(a_run_past_its_deadline_is_stopped_and_expires);
    RUN(a_batch_goes_on_until_the_last_one_gives_up);
    RUN(what_is_still_wanted_of_a_batch_is_served);
    RUN(giving_up_while_the_run_begins_is_never_lost);
    return 0;
}
