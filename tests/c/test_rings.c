/* Who tells the loop: rings at once, rings owed, alarms of debtors and of the owner.
 *
 * What is lost hangs, and fails where it is waited for.
 */
#include "engine_helpers.h"

#include "run_tests.h"
#include "serve.h"

#define JOINED() CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND))

#define DEBTORS 3
#define DEBTS 40
#define COUNTED 3000 /* of each, on alarms */

struct debtor {
    struct paml_mailbox *mailbox;
    atomic_int arrived; /* of its ops */
};

/* Owes a ring for each op, and pays only once the op has come. */
static void
owe(void *argument)
{
    struct debtor *debtor = argument;

    for (int i = 0; i < DEBTS; i++) {
        struct paml_op *op = op_new(debtor->mailbox);
        bool owed;

        op->user = debtor;
        owed = paml_mailbox_post_quietly(debtor->mailbox, op) == PAML_NOT_TOLD;
        if (owed) {
            paml_mailbox_set_alarm(debtor->mailbox, paml_now_ns());
        }
        while (atomic_load(&debtor->arrived) <= i) {
            usleep(10); /* its run */
        }
        if (owed) {
            paml_mailbox_pay(debtor->mailbox);
        }
    }
    paml_thread_leaving();
}

static void
what_is_owed_comes_with_the_alarm_though_nobody_pays(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct debtor debtors[DEBTORS];
    struct paml_op *rest = NULL;
    int64_t begun_ns = paml_now_ns();

    for (int i = 0; i < DEBTORS; i++) {
        debtors[i].mailbox = mailbox;
        atomic_init(&debtors[i].arrived, 0);
        CHECK(paml_thread_start(owe, &debtors[i], "debtor") == 0);
    }
    for (int i = 0; i < DEBTORS * DEBTS; i++) {
        struct paml_op *op = await(mailbox, &rest);
        atomic_fetch_add(&((struct debtor *)op->user)->arrived, 1);
        op_free(op);
    }
    JOINED();
    /* An alarm each at worst: nobody waited for a poll to give up. */
    CHECK(paml_now_ns() - begun_ns < 25 * PAML_SECOND);
    paml_mailbox_unref(mailbox);
}

static bool
is_readable(int fd, int timeout_ms)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};

    return poll(&one, 1, timeout_ms) == 1;
}

static void
an_alarm_that_went_off_is_silenced_alone(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();

    paml_mailbox_set_alarm(mailbox, paml_now_ns());
    paml_mailbox_silence_alarm(mailbox, paml_now_ns()); /* too early: goes off yet */
    CHECK(is_readable(mailbox->alarm_fd, 10000));
    paml_mailbox_ring(mailbox);
    paml_mailbox_silence_alarm(mailbox, paml_now_ns());
    CHECK(!is_readable(mailbox->alarm_fd, 0));
    CHECK(is_readable(mailbox->fd, 0));
    paml_mailbox_set_alarm(mailbox, paml_now_ns());
    CHECK(is_readable(mailbox->alarm_fd, 10000));
    paml_mailbox_unref(mailbox);
}

/* Posts an op that has waited for a minute and is due in so many seconds, 0: never. */
static void
post_due_in(struct paml_worker *worker, struct paml_mailbox *mailbox, int64_t now_ns,
            double seconds)
{
    struct paml_op *op = op_new(mailbox);

    op->submitted_ns = now_ns - 60 * PAML_SECOND;
    if (seconds > 0) {
        op->deadline_ns = now_ns + (int64_t)(seconds * (double)PAML_SECOND);
    }
    paml_worker_post(worker, op, now_ns);
}

static void
a_ring_is_not_owed_past_a_deadline(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_worker worker = {.debt = {.mailbox = NULL}};
    int64_t now_ns = paml_now_ns();
    struct paml_op *op, *next;

    post_due_in(&worker, mailbox, now_ns, 0);
    CHECK(worker.debt.mailbox == mailbox);
    CHECK(worker.debt.due_ns >= now_ns + 1000000);
    post_due_in(&worker, mailbox, now_ns, 1e-3); /* of the same burst */
    CHECK(worker.debt.due_ns > now_ns && worker.debt.due_ns <= now_ns + 500000);
    post_due_in(&worker, mailbox, now_ns, 60);
    CHECK(worker.debt.due_ns <= now_ns + 500000);
    paml_mailbox_pay(mailbox);
    worker.debt.mailbox = NULL;
    for (op = paml_mailbox_take(mailbox); op != NULL; op = next) {
        next = op->next;
        op_free(op);
    }
    CHECK(paml_mailbox_rest(mailbox, 0, 0));
    post_due_in(&worker, mailbox, now_ns, 1e-3);
    CHECK(worker.debt.due_ns > now_ns && worker.debt.due_ns <= now_ns + 500000);
    paml_mailbox_pay(mailbox);
    op_free(paml_mailbox_take(mailbox));
    paml_mailbox_unref(mailbox);
}

/* Debts are paid at once or left to the alarm, as it happens. */
static void
owe_now_and_then(void *argument)
{
    struct paml_mailbox *mailbox = argument;
    unsigned seed = (unsigned)paml_now_ns();

    for (int i = 0; i < 5000; i++) {
        if (paml_mailbox_post_quietly(mailbox, op_new(mailbox)) == PAML_NOT_TOLD) {
            if (rand_r(&seed) % 8 == 0) {
                paml_mailbox_set_alarm(mailbox, paml_now_ns());
                usleep(rand_r(&seed) % 50);
            }
            paml_mailbox_pay(mailbox);
        }
    }
    paml_thread_leaving();
}

static void
alarms_and_payments_lose_nothing_between_them(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_op *rest = NULL;

    for (int i = 0; i < DEBTORS; i++) {
        CHECK(paml_thread_start(owe_now_and_then, mailbox, "debtor") == 0);
    }
    for (int i = 0; i < DEBTORS * 5000; i++) {
        op_free(await(mailbox, &rest));
    }
    JOINED();
    paml_mailbox_unref(mailbox);
}

/* --- the owner's alarm --- */

static void
an_owner_that_rests_by_an_alarm_wakes_by_it(void)
{
    const int64_t nap_ns = 1000000;
    struct paml_mailbox *mailbox = paml_mailbox_new();
    int64_t now_ns = paml_now_ns();

    CHECK(!paml_mailbox_has_alarm(mailbox, INT64_MAX));
    CHECK(paml_mailbox_rest(mailbox, now_ns, nap_ns));
    CHECK(paml_mailbox_has_alarm(mailbox, now_ns + nap_ns));
    CHECK(!paml_mailbox_has_alarm(mailbox, now_ns + nap_ns / 2));
    CHECK(is_readable(mailbox->alarm_fd, 10000));
    CHECK(paml_now_ns() >= now_ns + nap_ns);
    paml_mailbox_silence_alarm(mailbox, paml_now_ns());
    CHECK(!is_readable(mailbox->alarm_fd, 0));
    CHECK(!paml_mailbox_has_alarm(mailbox, INT64_MAX));
    paml_mailbox_unref(mailbox);
}

static void
an_owner_makes_an_alarm_earlier_not_later(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    int64_t now_ns = paml_now_ns();

    paml_mailbox_set_alarm(mailbox, now_ns);
    CHECK(!paml_mailbox_has_alarm(mailbox, now_ns + PAML_ALARM_NS / 2));
    CHECK(paml_mailbox_rest(mailbox, now_ns, PAML_ALARM_NS / 2));
    CHECK(paml_mailbox_has_alarm(mailbox, now_ns + PAML_ALARM_NS / 2));
    CHECK(paml_mailbox_rest(mailbox, now_ns, 100 * PAML_ALARM_NS));
    CHECK(paml_mailbox_has_alarm(mailbox, now_ns + PAML_ALARM_NS / 2));
    CHECK(is_readable(mailbox->alarm_fd, 10000));
    CHECK(paml_now_ns() < now_ns + 90 * PAML_ALARM_NS);
    paml_mailbox_unref(mailbox);
}

static void
an_owner_that_finds_more_sets_no_alarm(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    int64_t now_ns = paml_now_ns();

    CHECK(paml_mailbox_take(mailbox) == NULL);
    paml_mailbox_set_alarm(mailbox, now_ns);
    CHECK(paml_mailbox_post_quietly(mailbox, op_new(mailbox)) == PAML_TOLD_SOON);
    CHECK(!paml_mailbox_rest(mailbox, now_ns, 1000000));
    CHECK(!paml_mailbox_has_alarm(mailbox, now_ns + 1000000));
    CHECK(paml_mailbox_has_alarm(mailbox, now_ns + PAML_ALARM_NS));
    op_free(paml_mailbox_take(mailbox));
    paml_mailbox_unref(mailbox);
}

static void
a_debt_is_void_once_the_owner_is_at_work(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct paml_worker worker = {.debt = {.mailbox = NULL}};
    int64_t now_ns = paml_now_ns();

    post_due_in(&worker, mailbox, now_ns, 0);
    CHECK(worker.debt.mailbox == mailbox);
    CHECK(atomic_load(&mailbox->refs) == 2);
    op_free(paml_mailbox_take(mailbox));
    post_due_in(&worker, mailbox, now_ns, 0);
    CHECK(worker.debt.mailbox == NULL);
    CHECK(atomic_load(&mailbox->refs) == 1);
    CHECK(!is_readable(mailbox->fd, 0));
    op_free(paml_mailbox_take(mailbox));
    paml_mailbox_unref(mailbox);
}

/* The next run takes longer than the ring may be owed: nobody would ring meanwhile. */
static void
a_busy_worker_leaves_the_ring_to_the_owner_s_alarm(void)
{
    const struct paml_queue_limits limits = {.max_rows = 10, .max_bytes = INT64_MAX};
    const int64_t run_ns = 20000000;
    struct paml_mailbox *mailbox = paml_mailbox_new(), *begun = paml_mailbox_new();
    struct paml_echo *echo = paml_echo_new(run_ns, 0, false);
    struct paml_op *rest = NULL, *others = NULL, *op;
    struct paml_model *model;

    paml_echo_hold(echo);
    model = echo_model(echo, 1, &limits, mailbox, &rest);
    for (int watched = 0; watched < 2; watched++) {
        op = op_new(begun);
        paml_echo_watch(echo, (uint32_t)(2 * watched + 2), op);
        for (int i = 0; i < 2; i++) {
            CHECK(paml_model_submit(model, op_new(mailbox)) == PAML_OK);
        }
        CHECK(paml_mailbox_rest(mailbox, paml_now_ns(), watched ? 1000000 : 0));
        paml_echo_release(echo, 1);
        CHECK(await(begun, &others) == op); /* the second of them */
        op_free(op);
        CHECK(is_readable(mailbox->fd, 0) == !watched);
        CHECK(!watched || is_readable(mailbox->alarm_fd, 10000));
        paml_mailbox_silence(mailbox, paml_now_ns());
        paml_echo_release(echo, 1);
        for (int i = 0; i < 2; i++) {
            op_free(await(mailbox, &rest));
        }
    }
    paml_echo_release(echo, -1);
    close_model(model, mailbox, &rest);
    paml_echo_unref(echo);
    paml_mailbox_unref(begun);
    paml_mailbox_unref(mailbox);
}

/* Never rings where there is an alarm. */
static void
count_on_the_alarm(void *argument)
{
    struct debtor *debtor = argument;

    for (int i = 0; i < COUNTED; i++) {
        struct paml_op *op = op_new(debtor->mailbox);

        op->user = debtor;
        if (paml_mailbox_post_quietly(debtor->mailbox, op) != PAML_NOT_TOLD) {
            continue;
        }
        if (paml_mailbox_has_alarm(debtor->mailbox, INT64_MAX)) {
            while (atomic_load(&debtor->arrived) <= i) {
                usleep(10);
            }
        }
        paml_mailbox_pay(debtor->mailbox);
    }
    paml_thread_leaving();
}

static void
who_finds_an_alarm_set_may_count_on_it(void)
{
    struct paml_mailbox *mailbox = paml_mailbox_new();
    struct pollfd bells[] = {{.fd = mailbox->fd, .events = POLLIN},
                             {.fd = mailbox->alarm_fd, .events = POLLIN}};
    struct debtor debtors[DEBTORS];
    struct paml_op *op, *next;
    unsigned seed = 1;
    int n = 0;

    for (int i = 0; i < DEBTORS; i++) {
        debtors[i].mailbox = mailbox;
        atomic_init(&debtors[i].arrived, 0);
        CHECK(paml_thread_start(count_on_the_alarm, &debtors[i], "debtor") == 0);
    }
    while (n < DEBTORS * COUNTED) {
        paml_mailbox_silence_alarm(mailbox, paml_now_ns());
        for (op = paml_mailbox_take(mailbox); op != NULL; op = next) {
            next = op->next;
            atomic_fetch_add(&((struct debtor *)op->user)->arrived, 1);
            op_free(op);
            n++;
        }
        paml_mailbox_silence(mailbox, paml_now_ns());
        if (n < DEBTORS * COUNTED &&
            paml_mailbox_rest(mailbox, paml_now_ns(), rand_r(&seed) % 100000)) {
            CHECK(poll(bells, 2, 30000) >= 1);
        }
    }
    JOINED();
    paml_mailbox_unref(mailbox);
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(what_is_owed_comes_with_the_alarm_though_nobody_pays),
        TEST(an_alarm_that_went_off_is_silenced_alone),
        TEST(a_ring_is_not_owed_past_a_deadline),
        TEST(alarms_and_payments_lose_nothing_between_them),
        TEST(an_owner_that_rests_by_an_alarm_wakes_by_it),
        TEST(an_owner_makes_an_alarm_earlier_not_later),
        TEST(an_owner_that_finds_more_sets_no_alarm),
        TEST(a_debt_is_void_once_the_owner_is_at_work),
        TEST(a_busy_worker_leaves_the_ring_to_the_owner_s_alarm),
        TEST(who_finds_an_alarm_set_may_count_on_it),
    };
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
