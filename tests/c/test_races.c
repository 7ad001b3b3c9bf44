/* Races between threads that each do something right: homes and who drops, sessions and
 * models that come and go, sleepers and what they wait for.
 *
 * Most of what is checked here a sanitizer sees; what hangs fails in await().
 */
#include "engine_helpers.h"

#include "home.h"
#include "serve.h"
#include "session.h"

#define JOINED() CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND))

/* --- homes --- */

#define DROPPERS 3
#define SENT 30000
#define SHELVES 64

static _Atomic(struct paml_outputs *) shelves[SHELVES]; /* out in the world */
static atomic_int freed, dropped_by_others;
static atomic_bool home_is_left;

static void
free_one(void *owner)
{
    *(int *)owner += 1; /* a second time, or from two threads: a sanitizer's */
    CHECK(*(int *)owner == 1);
    free(owner);
    atomic_fetch_add(&freed, 1);
}

static struct paml_outputs *
output_new(int64_t *shape)
{
    struct paml_outputs *outputs = malloc(sizeof(*outputs));
    struct paml_value *value;

    CHECK(outputs != NULL);
    paml_outputs_init(outputs);
    value = &outputs->values[0];
    *value = (struct paml_value){.kind = PAML_TENSOR,
                                 .tensor = {.device = {kDLCPU, 0},
                                            .ndim = 1,
                                            .dtype = {kDLUInt, 8, 1},
                                            .shape = shape},
                                 .owner = calloc(1, sizeof(int)),
                                 .release = free_one};
    outputs->count = 1;
    return outputs;
}

static void
drop(struct paml_outputs *outputs)
{
    if (outputs != NULL) {
        paml_outputs_clear(outputs);
        free(outputs);
    }
}

static void
drop_what_is_out(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    bool left = false;

    while (!left) {
        left = atomic_load(&home_is_left); /* then once more over all of them */
        for (int i = 0; i < SHELVES; i++) {
            struct paml_outputs *outputs;

            if (!left && rand_r(&seed) % 2 == 0) {
                continue;
            }
            outputs = atomic_exchange(&shelves[i], NULL);
            if (outputs != NULL) {
                atomic_fetch_add(&dropped_by_others, 1);
                drop(outputs);
            }
        }
    }
    paml_thread_leaving();
}

static void
outputs_are_freed_once_whoever_drops_them_and_whenever_their_worker_leaves(void)
{
    /* Some are small, of some a few fill a home. */
    static int64_t small = 16, large = 300000;
    struct paml_home *home = paml_home_new();
    unsigned seed = 3;

    CHECK(home != NULL);
    for (uintptr_t i = 0; i < DROPPERS; i++) {
        CHECK(paml_thread_start(drop_what_is_out, (void *)(i + 1), "dropper") == 0);
    }
    for (int i = 0; i < SENT; i++) {
        struct paml_outputs *outputs =
            output_new(rand_r(&seed) % 8 == 0 ? &large : &small);

        paml_home_send(home, outputs);
        drop(atomic_exchange(&shelves[rand_r(&seed) % SHELVES], outputs));
        paml_home_clean(home, rand_r(&seed) % 40000);
        if (rand_r(&seed) % 16 == 0) {
            paml_home_rest(home);
            paml_home_wake(home);
        }
    }
    paml_home_leave(home); /* with many still out */
    atomic_store(&home_is_left, true);
    JOINED();
    CHECK(atomic_load(&freed) == SENT);
    CHECK(atomic_load(&dropped_by_others) > 0);
}

/* --- sessions, and models that come and go --- */

#define STREAMS 3
#define CHUNKS 6000
#define AHEAD 24
#define VERSIONS 12

static _Atomic(struct paml_model *) present;
static atomic_int streams_ended;

static struct paml_op *
chunk_new(struct paml_mailbox *mailbox, struct paml_session *session, int number)
{
    /* Two inputs: the echo gives a tuple, of which none of the items is a state. */
    static struct paml_value inputs[2] = {{.kind = PAML_INT}, {.kind = PAML_INT}};
    struct paml_op *op = op_new(mailbox);

    op->inputs = inputs;
    op->n_inputs = op->n_arguments = 2;
    op->session = session;
    atomic_fetch_add(&session->refs, 1);
    op->user = (void *)(intptr_t)number;
    return op;
}

/* Chunks come back in order, but for those that were taken back, whatever model they
   were given to. */
static void
be_a_stream(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_session *session = paml_session_new(0, NULL, NULL, NULL);
    struct paml_op *rest = NULL, *ops[CHUNKS] = {NULL};
    int submitted = 0, in_flight = 0, last = -1;

    while (submitted < CHUNKS || in_flight > 0) {
        if (submitted < CHUNKS && in_flight < AHEAD) {
            struct paml_op *op = chunk_new(mailbox, session, submitted);
            /* It may have been replaced just now, and closed. */
            while (paml_model_submit(atomic_load(&present), op) != PAML_OK) {
                paml_cpu_relax();
            }
            ops[submitted++] = op;
            in_flight++;
        } else {
            struct paml_op *op = await(mailbox, &rest);
            int number = (int)(intptr_t)op->user;

            CHECK(op->code == PAML_OK);
            CHECK(ops[number] == op);
            CHECK(number > last);
            last = number;
            ops[number] = NULL;
            op_free(op);
            in_flight--;
        }
        if (submitted > 0 && rand_r(&seed) % 4 == 0) {
            int number = submitted - 1 - (int)(rand_r(&seed) % AHEAD);
            struct paml_op *op = number >= 0 ? ops[number] : NULL;

            if (op != NULL && paml_queue_remove(op->queue, op)) {
                ops[number] = NULL;
                op_free(op);
                in_flight--;
            }
        }
    }
    paml_session_unref(session);
    paml_mailbox_unref(mailbox);
    atomic_fetch_add(&streams_ended, 1);
    paml_thread_leaving();
}

static void
sessions_keep_their_order_while_models_replace_each_other(void)
{
    static const struct paml_queue_limits few = {8, INT64_MAX / 2, PAML_FULL_WAIT};
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *models[VERSIONS];

    for (int i = 0; i < VERSIONS; i++) {
        models[i] = echo_model(echo, 2, &few, mailbox, &rest);
        atomic_store(&present, models[i]);
        if (i == 0) {
            for (uintptr_t k = 0; k < STREAMS; k++) {
                CHECK(paml_thread_start(be_a_stream, (void *)(k + 1), "stream") == 0);
            }
        } else {
            paml_model_close(models[i - 1], true, NULL);
        }
        usleep(2000);
    }
    while (atomic_load(&streams_ended) < STREAMS) {
        usleep(1000);
    }
    /* Those that were replaced have served all, so their workers can leave. */
    close_model(models[VERSIONS - 1], mailbox, &rest);
    for (int i = 0; i < VERSIONS - 1; i++) {
        CHECK(paml_model_status(models[i], NULL) == PAML_STATUS_CLOSED);
        paml_model_unref(models[i]);
    }
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

/* --- sleepers --- */

static struct paml_model *
patient_model(struct paml_echo *echo, int instances, int64_t max_rows,
              int64_t max_delay_ns, struct paml_mailbox *mailbox, struct paml_op **rest)
{
    static const DLDevice cpu = {kDLCPU, 0};
    struct paml_model_options options = {
        .name = "patient",
        .load = {.options = echo},
        .devices = &cpu,
        .n_devices = 1,
        .instances = instances,
        .threads = 1,
        .limits = plenty,
        .batching = {.max_rows = max_rows, .max_delay_ns = max_delay_ns}};

    return model_of(&options, mailbox, rest);
}

static struct paml_op *
row_new(struct paml_model *model, struct paml_mailbox *mailbox)
{
    static float data[4];
    static int64_t shape[] = {1, 4};
    static struct paml_value input = {.kind = PAML_TENSOR,
                                      .tensor = {.data = data,
                                                 .device = {kDLCPU, 0},
                                                 .ndim = 2,
                                                 .dtype = {kDLFloat, 32, 1},
                                                 .shape = shape}};
    struct paml_op *op = op_new(mailbox);
    struct paml_error error;

    op->inputs = &input;
    op->n_inputs = op->n_arguments = 1;
    CHECK(paml_batch_classify(&model->batching, op, &error) == PAML_OK);
    CHECK(op->batch_key != 0);
    return op;
}

/* Until every worker sleeps. */
static void
await_sleep(struct paml_model *model)
{
    while (atomic_load(&model->queue.sleepers) < model->n_workers) {
        usleep(100);
    }
}

static void
who_fills_the_batch_wakes_who_waits_for_it(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model =
        patient_model(echo, 2, 3, 3600 * PAML_SECOND, mailbox, &rest);
    int64_t least_ns = INT64_MAX;

    for (int round = 0; round < 20; round++) {
        int64_t full_ns;

        for (int i = 0; i < 2; i++) {
            CHECK(paml_model_submit(model, row_new(model, mailbox)) == PAML_OK);
            await_sleep(model);
        }
        full_ns = paml_now_ns();
        CHECK(paml_model_submit(model, row_new(model, mailbox)) == PAML_OK);
        for (int i = 0; i < 3; i++) {
            op_free(await(mailbox, &rest));
        }
        full_ns = paml_now_ns() - full_ns;
        least_ns = full_ns < least_ns ? full_ns : least_ns;
    }
    CHECK(least_ns < 20000000); /* of twenty: it doesn't take a poll, or a timer */
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

static void
sleepers_wake_when_their_batch_is_due_not_before_and_not_much_later(void)
{
    const int64_t delay_ns = 5000000;
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model = patient_model(echo, 2, 64, delay_ns, mailbox, &rest);
    int64_t least_ns = INT64_MAX;

    for (int round = 0; round < 20; round++) {
        struct paml_op *op = row_new(model, mailbox);
        int64_t took_ns, begun_ns = op->submitted_ns;

        CHECK(paml_model_submit(model, op) == PAML_OK);
        CHECK(await(mailbox, &rest) == op);
        took_ns = paml_now_ns() - begun_ns;
        op_free(op);
        CHECK(took_ns >= delay_ns);
        least_ns = took_ns < least_ns ? took_ns : least_ns;
    }
    CHECK(least_ns < 2 * delay_ns);
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

static void
one_in_a_hurry_wakes_who_waits_for_company(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *calm, *hurried;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model =
        patient_model(echo, 1, 64, 3600 * PAML_SECOND, mailbox, &rest);

    calm = row_new(model, mailbox);
    calm->priority = 1; /* it leads, and has no deadline */
    CHECK(paml_model_submit(model, calm) == PAML_OK);
    await_sleep(model);
    hurried = row_new(model, mailbox);
    hurried->deadline_ns = hurried->submitted_ns + 2 * PAML_SECOND;
    CHECK(paml_model_submit(model, hurried) == PAML_OK);
    CHECK(await(mailbox, &rest) == calm && calm->code == PAML_OK);
    CHECK(await(mailbox, &rest) == hurried && hurried->code == PAML_OK);
    op_free(calm);
    op_free(hurried);
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

#define IMPATIENT 3
#define ASKED 1500

static void
ask_now_and_then(void *argument)
{
    struct paml_model *model = argument;
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    unsigned seed = (unsigned)paml_now_ns();
    int in_flight = 0;

    for (int i = 0; i < ASKED; i++) {
        struct paml_op *op = row_new(model, mailbox);

        if (rand_r(&seed) % 4 == 0) {
            op->deadline_ns = op->submitted_ns + 20 * PAML_SECOND;
        }
        CHECK(paml_model_submit(model, op) == PAML_OK);
        if (rand_r(&seed) % 8 == 0 && paml_queue_remove(&model->queue, op)) {
            op_free(op);
        } else {
            in_flight++;
        }
        for (int most = (int)(rand_r(&seed) % 8); in_flight > most; in_flight--) {
            op = await(mailbox, &rest);
            CHECK(op->code == PAML_OK);
            op_free(op);
        }
    }
    for (; in_flight > 0; in_flight--) {
        op_free(await(mailbox, &rest));
    }
    paml_mailbox_unref(mailbox);
    atomic_fetch_add(&streams_ended, 1);
    paml_thread_leaving();
}

static void
timers_pushes_and_removals_leave_nobody_asleep(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model = patient_model(echo, 3, 4, 200000, mailbox, &rest);

    atomic_store(&streams_ended, 0);
    for (int i = 0; i < IMPATIENT; i++) {
        CHECK(paml_thread_start(ask_now_and_then, model, "client") == 0);
    }
    while (atomic_load(&streams_ended) < IMPATIENT) {
        usleep(1000);
    }
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

int
main(void)
{
#define RUN(name)                                                                      \
    do {                                                                               \
        printf("%s\n", #name);                                                         \
        fflush(stdout);                                                                \
        name();                                                                        \
    } while (0)
    RUN(outputs_are_freed_once_whoever_drops_them_and_whenever_their_worker_leaves);
    RUN(sessions_keep_their_order_while_models_replace_each_other);
    RUN(who_fills_the_batch_wakes_who_waits_for_it);
    RUN(sleepers_wake_when_their_batch_is_due_not_before_and_not_much_later);
    RUN(one_in_a_hurry_wakes_who_waits_for_company);
    RUN(timers_pushes_and_removals_leave_nobody_asleep);
    return 0;
}
