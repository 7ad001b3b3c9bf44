#include "budget.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"

/* In `state`, beside the number of tokens taken: somebody waits. While it is set the
   state changes under the lock only, since both fast paths turn away from it. Far above
   any number of tokens, so that with it there never seem to be enough. */
#define WANTED (1 << 30)

struct waiter {
    struct waiter *next;
    int tokens;
    sem_t granted;
};

/* Relaxed throughout: the number itself is all that is passed on, and every decision
   about it is a compare-and-swap on this one word. */
static _Alignas(64) atomic_int state;
static _Alignas(64) pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct waiter *first, *last; /* those that wait */

int
paml_budget_total(void)
{
    static atomic_int known; /* 0: not yet; relaxed, as whoever computes it agrees */
    int total = atomic_load_explicit(&known, memory_order_relaxed);

    if (total == 0) {
        const char *text = getenv(PAML_BUDGET_VARIABLE);
        char *end = NULL;
        long wish = 0;

        if (text != NULL) {
            wish = strtol(text, &end, 10);
        }
        if (wish > 0 && wish < WANTED / 2 && *end == '\0') {
            total = (int)wish;
        } else {
            total = paml_usable_cpus();
        }
        atomic_store_explicit(&known, total, memory_order_relaxed);
    }
    return total;
}

static int
budget_clamp(int tokens)
{
    int total = paml_budget_total();

    return tokens < total ? tokens : total;
}

/* Takes tokens if nobody waits and they are there; else `*seen` is why not.
   Thread: any. Locks: none. */
static bool
budget_try(int tokens, int *seen)
{
    int total = paml_budget_total();

    *seen = atomic_load_explicit(&state, memory_order_relaxed);
    while (*seen + tokens <= total) {
        if (atomic_compare_exchange_weak_explicit(&state, seen, *seen + tokens,
                                                  memory_order_relaxed,
                                                  memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

/* Thread: worker. GIL: not held. Locks: takes `lock` where it has to wait. */
void
paml_budget_acquire(int tokens)
{
    struct waiter self = {.tokens = budget_clamp(tokens)};
    int seen;

    if (budget_try(self.tokens, &seen)) {
        return;
    }
    sem_init(&self.granted, 0, 0);
    pthread_mutex_lock(&lock);
    /* A release may come just before WANTED is set: then the swap fails, and the
       tokens are looked for again. One that comes after takes the lock. */
    do {
        if (budget_try(self.tokens, &seen)) {
            pthread_mutex_unlock(&lock);
            sem_destroy(&self.granted);
            return;
        }
    } while (!atomic_compare_exchange_weak_explicit(
        &state, &seen, seen | WANTED, memory_order_relaxed, memory_order_relaxed));
    *(last != NULL ? &last->next : &first) = &self;
    last = &self;
    pthread_mutex_unlock(&lock);
    while (sem_wait(&self.granted) < 0 && errno == EINTR) {
    }
    sem_destroy(&self.granted);
}

/* Gives tokens back and hands them to those that wait, in their order.
   Thread: worker. Locks: takes `lock`. */
static void
budget_hand_on(int tokens)
{
    int total = paml_budget_total(), now, held;

    pthread_mutex_lock(&lock);
    now = atomic_fetch_sub_explicit(&state, tokens, memory_order_relaxed) - tokens;
    held = now & ~WANTED;
    while (first != NULL && held + first->tokens <= total) {
        struct waiter *waiter = first;

        held += waiter->tokens;
        first = waiter->next;
        if (first == NULL) {
            last = NULL;
        }
        sem_post(&waiter->granted); /* and with it goes the node */
    }
    /* Without WANTED the last waiter was served before we got the lock: the fast paths
       are open, and a store would undo what they do. */
    if ((now & WANTED) != 0) {
        atomic_store_explicit(&state, held | (first != NULL ? WANTED : 0),
                              memory_order_relaxed);
    }
    pthread_mutex_unlock(&lock);
}

/* Thread: worker. GIL: not held. Locks: takes `lock` where somebody waits. */
void
paml_budget_release(int tokens)
{
    int seen = atomic_load_explicit(&state, memory_order_relaxed);

    tokens = budget_clamp(tokens);
    while ((seen & WANTED) == 0) {
        if (atomic_compare_exchange_weak_explicit(&state, &seen, seen - tokens,
                                                  memory_order_relaxed,
                                                  memory_order_relaxed)) {
            return;
        }
    }
    budget_hand_on(tokens);
}

/* Thread: any. GIL: any. Locks: none. */
bool
paml_budget_wanted(void)
{
    return (atomic_load_explicit(&state, memory_order_relaxed) & WANTED) != 0;
}

/* Thread: any. GIL: any. Locks: none. */
int
paml_budget_held(void)
{
    return atomic_load_explicit(&state, memory_order_relaxed) & ~WANTED;
}
