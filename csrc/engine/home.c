#include "home.h"

#include <stdatomic.h>
#include <stdlib.h>

#define KEPT_BYTES ((size_t)1 << 20)
#define SPARE_MOST 256

/* Looking takes the list's cache line from those who drop: after short runs, every so
   often is enough. */
#define CLEAN_EVERY 16
#define LONG_RUN_NS 20000

/* What an output's value points to on its way. */
struct parcel {
    struct parcel *next;
    struct paml_home *home;
    void *owner;
    void (*release)(void *owner);
    size_t bytes;
};

/* What `head` holds while nobody is home: no parcel lives at this address. */
static struct parcel nobody;
#define NOBODY (&nobody)

/* More than there will ever be. */
#define EVERYONE (INT64_MAX / 2)

struct paml_home {
    _Alignas(64) _Atomic(struct parcel *) head;
    atomic_size_t kept; /* bytes in the list, and on their way to it */
    /* EVERYONE less the parcels that were freed elsewhere; from the end on how many are
       still out. The last one ends the home. */
    _Alignas(64) atomic_int_least64_t elsewhere;
    _Alignas(64) struct parcel *spare;
    int n_spare;
    unsigned runs; /* short ones */
    int64_t out;   /* sent and not come home */
};

struct paml_home *
paml_home_new(void)
{
    struct paml_home *home = aligned_alloc(64, sizeof(*home));

    if (home != NULL) {
        atomic_init(&home->head, NULL);
        atomic_init(&home->kept, 0);
        atomic_init(&home->elsewhere, EVERYONE);
        home->spare = NULL;
        home->n_spare = 0;
        home->runs = 0;
        home->out = 0;
    }
    return home;
}

/* Takes `many` off, and ends what nobody needs any more. Thread: any. Locks: none. */
static void
home_count(struct paml_home *home, int64_t many)
{
    /* acq_rel: what everyone did to the home happens before the free. */
    if (atomic_fetch_sub_explicit(&home->elsewhere, many, memory_order_acq_rel) ==
        many) {
        free(home);
    }
}

/* Thread: any. GIL: any. Locks: none. */
static void
parcel_release(void *owner)
{
    struct parcel *parcel = owner;
    struct paml_home *home = parcel->home;
    struct parcel *head = atomic_load_explicit(&home->head, memory_order_relaxed);
    size_t kept;

    if (head != NOBODY) {
        /* Before it is in the list: after that the home may be gone. */
        kept =
            atomic_fetch_add_explicit(&home->kept, parcel->bytes, memory_order_relaxed);
        while (kept + parcel->bytes <= KEPT_BYTES && head != NOBODY) {
            parcel->next = head;
            /* release: pairs with the exchange in home_unpack. */
            if (atomic_compare_exchange_weak_explicit(&home->head, &head, parcel,
                                                      memory_order_release,
                                                      memory_order_relaxed)) {
                return;
            }
        }
        atomic_fetch_sub_explicit(&home->kept, parcel->bytes, memory_order_relaxed);
    }
    parcel->release(parcel->owner);
    free(parcel);
    home_count(home, 1);
}

/* Frees what has come, and leaves `left`. Thread: the worker. Locks: none. */
static void
home_unpack(struct paml_home *home, struct parcel *left)
{
    /* acquire: pairs with the release in parcel_release. */
    struct parcel *parcel =
        atomic_exchange_explicit(&home->head, left, memory_order_acquire);
    struct parcel *next;
    size_t bytes = 0;

    if (parcel == NOBODY) {
        return;
    }
    for (; parcel != NULL; parcel = next) {
        next = parcel->next;
        bytes += parcel->bytes;
        parcel->release(parcel->owner);
        home->out--;
        if (home->n_spare < SPARE_MOST) {
            parcel->next = home->spare;
            home->spare = parcel;
            home->n_spare++;
        } else {
            free(parcel);
        }
    }
    atomic_fetch_sub_explicit(&home->kept, bytes, memory_order_relaxed);
}

/* Thread: the worker. Locks: none. */
void
paml_home_clean(struct paml_home *home, int64_t run_ns)
{
    if (run_ns < LONG_RUN_NS && ++home->runs % CLEAN_EVERY != 0) {
        return;
    }
    if (atomic_load_explicit(&home->head, memory_order_relaxed) != NULL) {
        home_unpack(home, NULL);
    }
}

/* Thread: the worker. Locks: none. */
void
paml_home_rest(struct paml_home *home)
{
    home_unpack(home, NOBODY);
}

/* Thread: the worker. Locks: none. */
void
paml_home_wake(struct paml_home *home)
{
    atomic_store_explicit(&home->head, NULL, memory_order_relaxed);
}

/* Thread: the worker. Locks: none. */
void
paml_home_send(struct paml_home *home, struct paml_outputs *outputs)
{
    struct paml_value *value = outputs->values;
    struct parcel *parcel;

    for (uint32_t i = 0; i < outputs->count; i++, value++) {
        if (value->release == NULL || value->kind != PAML_TENSOR) {
            continue;
        }
        parcel = home->spare;
        if (parcel != NULL) {
            home->spare = parcel->next;
            home->n_spare--;
        } else if ((parcel = malloc(sizeof(*parcel))) == NULL) {
            return; /* the rest is freed wherever it is dropped */
        }
        parcel->home = home;
        parcel->owner = value->owner;
        parcel->release = value->release;
        parcel->bytes = paml_value_nbytes(value);
        home->out++;
        value->owner = parcel;
        value->release = parcel_release;
    }
}

/* Thread: the worker. Locks: none. */
void
paml_home_leave(struct paml_home *home)
{
    struct parcel *parcel;

    home_unpack(home, NOBODY);
    while ((parcel = home->spare) != NULL) {
        home->spare = parcel->next;
        free(parcel);
    }
    home_count(home, EVERYONE - home->out);
}
