/* The engine without Python: ownership, order, and races that a sanitizer can see.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include "engine_helpers.h"
#include "run_tests.h"

/* --- the mailbox --- */

#define POSTERS 4
#define POSTS 20000

static void
post_many(void *argument)
{
    struct paml_mailbox *mailbox = argument;

    for (int i = 0; i < POSTS; i++) {
        struct paml_op *op = op_new(mailbox);
        op->rows = (uint32_t)i;
        paml_mailbox_post(mailbox, op);
    }
    paml_thread_leaving();
}

static void
every_post_arrives_once_and_none_sleeps_through_the_bell(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    uint64_t sum = 0;

    CHECK(mailbox != NULL);
    for (int i = 0; i < POSTERS; i++) {
        CHECK(paml_thread_start(post_many, mailbox, "poster") == 0);
    }
    for (int i = 0; i < POSTERS * POSTS; i++) {
        struct paml_op *op = await(mailbox, &rest);
        sum += op->rows;
        op_free(op);
    }
    CHECK(sum == (uint64_t)POSTERS * POSTS * (POSTS - 1) / 2);
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
    paml_mailbox_unref(mailbox);
}

#define HANDOVERS 20000

static _Atomic(struct paml_mailbox *) handed_over;

static void
post_to_what_is_handed_over(void *argument)
{
    (void)argument;
    for (int i = 0; i < HANDOVERS; i++) {
        struct paml_mailbox *mailbox;
        while ((mailbox = atomic_exchange(&handed_over, NULL)) == NULL) {
            paml_cpu_relax();
        }
        paml_mailbox_post(mailbox, op_new(mailbox));
    }
    paml_thread_leaving();
}

static void
a_mailbox_outlives_its_owner_while_somebody_posts(void)
{
    CHECK(paml_thread_start(post_to_what_is_handed_over, NULL, "poster") == 0);
    for (int i = 0; i < HANDOVERS; i++) {
        struct paml_mailbox *mailbox = paml_mailbox_new();
        struct paml_op *op;

        atomic_store(&handed_over, mailbox);
        while ((op = paml_mailbox_take(mailbox)) == NULL) {
            /* Half the time the poster must ring, and may still be at it below. */
            if (i % 2 == 0) {
                paml_mailbox_rest(mailbox, 0, 0);
            }
        }
        op_free(op);
        paml_mailbox_unref(mailbox);
    }
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
}

/* --- the queue --- */

static struct paml_op *
take_now(struct paml_queue *queue)
{
    struct paml_cost_model cost;
    const struct paml_taker taker = {.cost = &cost};
    struct paml_batch batch;
    struct paml_op *op;
    bool closed;

    paml_cost_init(&cost);
    paml_batch_init(&batch);
    paml_queue_take(queue, &taker, &batch, &closed);
    op = batch.n > 0 ? batch.ops[0] : NULL;
    paml_batch_destroy(&batch);
    return op;
}

static int
push(struct paml_queue *queue, struct paml_op *op)
{
    struct paml_op *dropped;
    int code = paml_queue_push(queue, op, &dropped);

    CHECK(dropped == NULL);
    return code;
}

static void
urgent_ops_come_first_and_equals_in_their_order(void)
{
    static const int32_t priorities[] = {0, 5, 0, -1, 5, 9};
    static const uint32_t expected[] = {5, 1, 4, 0, 2, 3};
    struct paml_queue queue;

    paml_queue_init(&queue, NULL, &plenty);
    for (uint32_t i = 0; i < 6; i++) {
        struct paml_op *op = op_new(NULL);
        op->priority = priorities[i];
        op->rows = i;
        CHECK(push(&queue, op) == PAML_OK);
    }
    for (int i = 0; i < 6; i++) {
        struct paml_op *op = take_now(&queue);
        CHECK(op->rows == expected[i]);
        op_free(op);
    }
    paml_queue_destroy(&queue);
}

static void
a_bound_refuses_and_leaves_the_op_with_its_owner(void)
{
    static const struct paml_queue_limits two = {2, 100, PAML_FULL_REJECT};
    struct paml_queue queue;
    struct paml_op *op = op_new(NULL), *small = op_new(NULL);

    paml_queue_init(&queue, NULL, &two);
    op->bytes = 101;
    CHECK(push(&queue, op) == PAML_ERR_QUEUE);
    op->bytes = 100;
    CHECK(push(&queue, op) == PAML_OK);
    small->bytes = 1;
    CHECK(push(&queue, small) == PAML_ERR_QUEUE);
    CHECK(paml_queue_remove(&queue, op));
    CHECK(!paml_queue_remove(&queue, op));
    CHECK(push(&queue, small) == PAML_OK);
    small->next = NULL;
    CHECK(paml_queue_empty(&queue) == small);
    CHECK(paml_queue_rows(&queue) == 0 && paml_queue_bytes(&queue) == 0);
    op_free(op);
    op_free(small);
    paml_queue_destroy(&queue);
}

static void
a_closed_queue_serves_what_it_has_and_takes_no_more(void)
{
    struct paml_queue queue;
    struct paml_op *op = op_new(NULL), *late = op_new(NULL);

    paml_queue_init(&queue, NULL, &plenty);
    CHECK(push(&queue, op) == PAML_OK);
    paml_queue_close(&queue);
    paml_queue_close(&queue);
    CHECK(push(&queue, late) == PAML_ERR_CLOSED);
    CHECK(take_now(&queue) == op);
    CHECK(take_now(&queue) == NULL);
    op_free(op);
    op_free(late);
    paml_queue_destroy(&queue);
}

/* --- models --- */

static void
inputs_come_back_with_any_strides(void)
{
    float data[6] = {0, 1, 2, 3, 4, 5};
    int64_t shape[] = {3, 2}, strides[] = {1, 3};
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *op;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model = echo_model(echo, 1, &plenty, mailbox, &rest);
    struct paml_value input = {.kind = PAML_TENSOR,
                               .tensor = {.data = data,
                                          .device = {kDLCPU, 0},
                                          .ndim = 2,
                                          .dtype = {kDLFloat, 32, 1},
                                          .shape = shape,
                                          .strides = strides}};
    const float *out;

    op = op_new(mailbox);
    op->inputs = &input;
    op->n_inputs = op->n_arguments = 1;
    CHECK(paml_model_submit(model, op) == PAML_OK);
    CHECK(await(mailbox, &rest) == op);
    CHECK(op->code == PAML_OK && op->outputs.count == 1);
    CHECK((uintptr_t)op->outputs.values[0].tensor.data % 64 == 0);
    out = op->outputs.values[0].tensor.data;
    for (int i = 0; i < 6; i++) {
        CHECK(out[i] == data[i % 2 * 3 + i / 2]);
    }
    op_free(op);
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

static void
expired_work_is_not_run(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *first, *late;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model = echo_model(echo, 1, &plenty, mailbox, &rest);

    paml_echo_hold(echo);
    first = op_new(mailbox);
    CHECK(paml_model_submit(model, first) == PAML_OK);
    while (paml_queue_rows(&model->queue) > 0) {
        /* The worker has it: nothing overtakes. */
    }
    late = op_new(mailbox);
    late->deadline_ns = paml_now_ns() + 1;
    CHECK(paml_model_submit(model, late) == PAML_OK);
    paml_echo_release(echo, -1);
    CHECK(await(mailbox, &rest) == first && first->code == PAML_OK);
    CHECK(await(mailbox, &rest) == late && late->code == PAML_ERR_DEADLINE);
    CHECK(echo->begun == 1);
    op_free(first);
    op_free(late);
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

static void
closing_without_draining_answers_what_waits(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *running, *waiting, *closed;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model = echo_model(echo, 1, &plenty, mailbox, &rest);
    struct paml_op *begun = op_new(mailbox);

    paml_echo_hold(echo);
    running = op_new(mailbox);
    CHECK(paml_model_submit(model, running) == PAML_OK);
    paml_echo_watch(echo, 1, begun);
    CHECK(await(mailbox, &rest) == begun);
    waiting = op_new(mailbox);
    CHECK(paml_model_submit(model, waiting) == PAML_OK);
    closed = op_new(mailbox);
    paml_model_close(model, false, closed);
    CHECK(await(mailbox, &rest) == waiting && waiting->code == PAML_ERR_CLOSED);
    paml_echo_release(echo, -1);
    CHECK(await(mailbox, &rest) == running && running->code == PAML_OK);
    CHECK(await(mailbox, &rest) == closed && closed->code == PAML_OK);
    op_free(begun);
    op_free(running);
    op_free(waiting);
    op_free(closed);
    paml_model_unref(model);
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

/* --- everything at once --- */

#define CLIENTS 4
#define OPS_PER_CLIENT 30000
#define IN_FLIGHT 64

struct client {
    struct paml_model *model;
    unsigned seed;
    int settled, removed;
};

static void
be_a_client(void *argument)
{
    struct client *client = argument;
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *ops[IN_FLIGHT] = {NULL};
    int submitted = 0, in_flight = 0;

    while (submitted < OPS_PER_CLIENT || in_flight > 0) {
        int slot = (int)(rand_r(&client->seed) % IN_FLIGHT);
        if (ops[slot] == NULL && submitted < OPS_PER_CLIENT) {
            struct paml_op *op = op_new(mailbox);
            op->user = (void *)(intptr_t)slot;
            op->priority = rand_r(&client->seed) % 3;
            if (rand_r(&client->seed) % 16 == 0) {
                op->deadline_ns = paml_now_ns() + rand_r(&client->seed) % 100000;
            }
            if (rand_r(&client->seed) % 8 == 0) {
                paml_queue_hold(&client->model->queue, paml_now_ns());
            }
            CHECK(paml_model_submit(client->model, op) == PAML_OK);
            ops[slot] = op;
            submitted++;
            in_flight++;
        } else if (ops[slot] != NULL && rand_r(&client->seed) % 4 == 0 &&
                   paml_queue_remove(&client->model->queue, ops[slot])) {
            op_free(ops[slot]);
            ops[slot] = NULL;
            client->removed++;
            in_flight--;
        } else if (in_flight > IN_FLIGHT / 2 || submitted == OPS_PER_CLIENT) {
            struct paml_op *op;
            if (in_flight == 0) {
                break;
            }
            op = await(mailbox, &rest);
            CHECK(op->code == PAML_OK || op->code == PAML_ERR_DEADLINE ||
                  op->code == PAML_ERR_BACKEND);
            CHECK(ops[(intptr_t)op->user] == op);
            ops[(intptr_t)op->user] = NULL;
            op_free(op);
            client->settled++;
            in_flight--;
        }
    }
    paml_mailbox_unref(mailbox);
    paml_thread_leaving();
}

static void
every_op_of_many_threads_ends_exactly_once(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;
    struct paml_echo *echo = paml_echo_new(0, 0, false);
    struct paml_model *model = echo_model(echo, 3, &plenty, mailbox, &rest);
    struct client clients[CLIENTS];

    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){.model = model, .seed = 17u + (unsigned)i};
        CHECK(paml_thread_start(be_a_client, &clients[i], "client") == 0);
    }
    while (echo->delay_ns == 0 && atomic_load(&model->submitted) < 1000) {
        paml_echo_fail(echo, 3, PAML_ERR_BACKEND, "now and then");
        usleep(100);
    }
    /* The model's own three workers stay; the clients must leave. */
    for (int i = 0; i < CLIENTS; i++) {
        while (atomic_load(&model->submitted) < CLIENTS * OPS_PER_CLIENT) {
            usleep(1000);
        }
    }
    close_model(model, mailbox, &rest);
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(clients[i].settled + clients[i].removed == OPS_PER_CLIENT);
    }
    paml_echo_unref(echo);
    paml_mailbox_unref(mailbox);
}

/* Model 1 replaces 0 and then 2 replaces 1, or (`both`) 2 replaces first 1 and then 0.
 */
static void
close_with_predecessors(bool both)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL, *running[3], *closed[2];
    struct paml_echo *echos[3];
    struct paml_model *models[3];

    for (int i = 0; i < 3; i++) {
        struct paml_op *begun = op_new(mailbox);
        echos[i] = paml_echo_new(0, 0, false);
        models[i] = echo_model(echos[i], 2, &plenty, mailbox, &rest);
        paml_echo_hold(echos[i]);
        running[i] = op_new(mailbox);
        CHECK(paml_model_submit(models[i], running[i]) == PAML_OK);
        paml_echo_watch(echos[i], 1, begun);
        CHECK(await(mailbox, &rest) == begun);
        op_free(begun);
    }
    for (int k = 0; k < 2; k++) {
        int replaced = both ? 1 - k : k;
        paml_model_succeed(models[both ? 2 : k + 1], models[replaced]);
        paml_model_close(models[replaced], true, NULL);
        paml_model_unref(models[replaced]);
    }
    closed[0] = op_new(mailbox);
    closed[1] = op_new(mailbox);
    paml_model_close(models[2], true, closed[0]);
    paml_model_close(models[2], true, closed[1]);
    CHECK(paml_model_forget(models[2]) == NULL);
    for (int i = 2; i >= 0; i--) { /* the latest ends first */
        paml_echo_release(echos[i], -1);
        CHECK(await(mailbox, &rest) == running[i] && running[i]->code == PAML_OK);
        op_free(running[i]);
    }
    for (int i = 0; i < 2; i++) {
        struct paml_op *op = await(mailbox, &rest);
        CHECK((op == closed[0] || op == closed[1]) && op->code == PAML_OK);
        op_free(op);
    }
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
    for (int i = 0; i < 2; i++) {
        struct paml_model *gone = paml_model_forget(models[2]);
        CHECK(gone != NULL);
        CHECK(paml_model_status(gone, NULL) == PAML_STATUS_CLOSED);
        paml_model_unref(gone);
    }
    CHECK(models[2]->predecessor == NULL);
    paml_model_unref(models[2]);
    for (int i = 0; i < 3; i++) {
        paml_echo_unref(echos[i]);
    }
    paml_mailbox_unref(mailbox);
}

static void
close_of_a_model_that_replaced_others_awaits_them_all(void)
{
    close_with_predecessors(false);
}

static void
a_model_that_has_replaced_one_keeps_it_when_it_replaces_another(void)
{
    close_with_predecessors(true);
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(every_post_arrives_once_and_none_sleeps_through_the_bell),
        TEST(a_mailbox_outlives_its_owner_while_somebody_posts),
        TEST(urgent_ops_come_first_and_equals_in_their_order),
        TEST(a_bound_refuses_and_leaves_the_op_with_its_owner),
        TEST(a_closed_queue_serves_what_it_has_and_takes_no_more),
        TEST(inputs_come_back_with_any_strides),
        TEST(expired_work_is_not_run),
        TEST(closing_without_draining_answers_what_waits),
        TEST(close_of_a_model_that_replaced_others_awaits_them_all),
        TEST(a_model_that_has_replaced_one_keeps_it_when_it_replaces_another),
        TEST(every_op_of_many_threads_ends_exactly_once),
    };

    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
