/* The budget of processors: never exceeded, first come first served; and how many there
 * are.
 *
 * Each test is a sentence about behaviour. A failed check names its line and ends the
 * program with status 1.
 */
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "budget.h"
#include "clock.h"
#include "run_tests.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

#define TOTAL 5 /* by the environment, set in main */

/* --- the budget --- */

static void
the_environment_says_how_many_tokens_there_are(void)
{
    CHECK(paml_budget_total() == TOTAL);
    CHECK(setenv(PAML_BUDGET_VARIABLE, "7", 1) == 0);
    CHECK(paml_budget_total() == TOTAL); /* read once */
}

static void
tokens_that_nobody_waits_for_are_taken_and_given_back(void)
{
    paml_budget_acquire(2);
    CHECK(paml_budget_held() == 2);
    paml_budget_acquire(3);
    CHECK(paml_budget_held() == 5 && !paml_budget_wanted());
    paml_budget_release(2);
    CHECK(paml_budget_held() == 3);
    paml_budget_release(3);
    CHECK(paml_budget_held() == 0);
}

static void
more_tokens_than_there_are_means_all_of_them(void)
{
    paml_budget_acquire(1000);
    CHECK(paml_budget_held() == TOTAL);
    paml_budget_release(1000);
    CHECK(paml_budget_held() == 0);
}

/* --- those that wait --- */

struct visitor {
    int tokens;
    int place;      /* when it was served, among those of the test */
    atomic_int tid; /* stored just before it asks */
    pthread_t thread;
};

static atomic_int served;

static void *
visit(void *argument)
{
    struct visitor *visitor = argument;

    atomic_store(&visitor->tid, gettid());
    paml_budget_acquire(visitor->tokens);
    visitor->place = atomic_fetch_add(&served, 1);
    paml_budget_release(visitor->tokens);
    return NULL;
}

static bool
sleeps(int tid)
{
    char path[64], text[512] = "";
    const char *state;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
    file = fopen(path, "r");
    CHECK(file != NULL && fgets(text, sizeof(text), file) != NULL);
    fclose(file);
    state = strrchr(text, ')');
    return state != NULL && state[2] == 'S';
}

/* Returns when the visitor waits: all that it sleeps for is its turn. */
static void
line_up(struct visitor *visitor)
{
    CHECK(pthread_create(&visitor->thread, NULL, visit, visitor) == 0);
    while (atomic_load(&visitor->tid) == 0 || !sleeps(visitor->tid)) {
        sched_yield();
    }
}

static void
those_that_wait_are_served_in_their_order_whatever_they_ask_for(void)
{
    /* No two fit in together, so each notes its place before the next is served. */
    struct visitor visitors[] = {{.tokens = 5}, {.tokens = 3}, {.tokens = 4},
                                 {.tokens = 3}, {.tokens = 5}, {.tokens = 3}};

    atomic_store(&served, 0);
    paml_budget_acquire(TOTAL);
    for (int i = 0; i < 6; i++) {
        line_up(&visitors[i]);
        CHECK(paml_budget_wanted());
    }
    paml_budget_release(TOTAL);
    for (int i = 0; i < 6; i++) {
        CHECK(pthread_join(visitors[i].thread, NULL) == 0);
        CHECK(visitors[i].place == i);
    }
    CHECK(paml_budget_held() == 0 && !paml_budget_wanted());
}

static void
few_tokens_dont_overtake_many(void)
{
    struct visitor many = {.tokens = 5}, few = {.tokens = 1};

    atomic_store(&served, 0);
    paml_budget_acquire(2);
    line_up(&many);
    line_up(&few); /* three are free, but not for it */
    CHECK(paml_budget_held() == 2);
    paml_budget_release(1);
    CHECK(paml_budget_held() == 1 && atomic_load(&served) == 0);
    paml_budget_release(1);
    CHECK(pthread_join(many.thread, NULL) == 0);
    CHECK(pthread_join(few.thread, NULL) == 0);
    CHECK(many.place == 0 && few.place == 1);
    CHECK(paml_budget_held() == 0 && !paml_budget_wanted());
}

/* --- everything at once --- */

#define THREADS 8
#define TURNS 20000

static atomic_int at_work;
static atomic_long turns;

static void *
hammer(void *argument)
{
    unsigned seed = (unsigned)(intptr_t)argument;

    for (int i = 0; i < TURNS; i++) {
        int tokens = 1 + (int)(rand_r(&seed) % TOTAL);
        paml_budget_acquire(tokens);
        CHECK(atomic_fetch_add(&at_work, tokens) + tokens <= TOTAL);
        if (rand_r(&seed) % 64 == 0) {
            sched_yield();
        }
        while (rand_r(&seed) % 4 != 0 && !paml_budget_wanted()) {
        }
        atomic_fetch_sub(&at_work, tokens);
        paml_budget_release(tokens);
        atomic_fetch_add(&turns, 1);
    }
    return NULL;
}

static void
eight_threads_never_hold_more_than_there_is_and_all_get_through(void)
{
    pthread_t threads[THREADS];

    for (intptr_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, hammer, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(atomic_load(&turns) == (long)THREADS * TURNS);
    CHECK(paml_budget_held() == 0 && !paml_budget_wanted());
}

/* --- how many processors there are --- */

static char directory[] = "/tmp/paml_budget_XXXXXX";

/* Writes a file below the directory, with the directories that it needs. */
static void
put(const char *name, const char *text)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    for (char *slash = path + strlen(directory); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0);
    CHECK(fclose(file) == 0);
}

static int
quota(const char *groups)
{
    char path[256], mounts[256];

    put("groups", groups);
    snprintf(path, sizeof(path), "%s/groups", directory);
    snprintf(mounts, sizeof(mounts), "%s/fs", directory);
    return paml_quota_cpus(path, mounts);
}

static void
quotas_of_control_groups_and_of_those_above_them_count(void)
{
    char command[64];

    CHECK(mkdtemp(directory) != NULL);
    put("fs/a/b/cpu.max", "250000 100000\n");
    put("fs/a/cpu.max", "max 100000\n");
    put("fs/c/b/cpu.max", "max 100000\n");
    put("fs/c/cpu.max", "50000 100000\n");
    put("fs/cpu,cpuacct/a/cpu.cfs_quota_us", "400000\n");
    put("fs/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
    put("fs/cpu,cpuacct/none/cpu.cfs_quota_us", "-1\n");
    put("fs/cpu,cpuacct/none/cpu.cfs_period_us", "100000\n");
    put("fs/cpuset/a/cpu.cfs_quota_us", "100000\n");
    put("fs/cpuset/a/cpu.cfs_period_us", "100000\n");

    CHECK(quota("0::/a/b\n") == 3);
    CHECK(quota("0::/a\n") == INT_MAX);
    CHECK(quota("0::/c/b\n") == 1);
    CHECK(quota("0::/\n") == INT_MAX);
    CHECK(quota("4:cpu,cpuacct:/a\n") == 4);
    CHECK(quota("4:cpu,cpuacct:/none\n0::/\n") == INT_MAX);
    CHECK(quota("4:cpuset:/a\n") == INT_MAX);
    CHECK(quota("9:cpuset:/\n4:cpu,cpuacct:/a\n0::/a/b\n") == 3);
    CHECK(quota("") == INT_MAX && quota("nonsense\n1:cpu\n") == INT_MAX);
    /* In a container: the host's path, the container's root. */
    put("fs/cpu.max", "200000 100000\n");
    CHECK(quota("0::/docker/0123abcd\n") == 2);
    CHECK(quota("0::/\n") == 2);

    snprintf(command, sizeof(command), "rm -r %s", directory);
    CHECK(system(command) == 0);
    CHECK(paml_quota_cpus("/nowhere", "/nowhere") == INT_MAX);
    CHECK(paml_usable_cpus() >= 1);
}

int
main(void)
{
    static const struct test tests[] = {
        TEST(the_environment_says_how_many_tokens_there_are),
        TEST(tokens_that_nobody_waits_for_are_taken_and_given_back),
        TEST(more_tokens_than_there_are_means_all_of_them),
        TEST(those_that_wait_are_served_in_their_order_whatever_they_ask_for),
        TEST(few_tokens_dont_overtake_many),
        TEST(eight_threads_never_hold_more_than_there_is_and_all_get_through),
        TEST(quotas_of_control_groups_and_of_those_above_them_count),
    };

    CHECK(setenv(PAML_BUDGET_VARIABLE, "5", 1) == 0);
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), NULL);
}
