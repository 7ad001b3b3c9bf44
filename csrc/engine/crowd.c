#include "crowd.h"

#include <stdatomic.h>

#include "clock.h"

static atomic_int awake, spinning;

static int
usable_cpus(void)
{
    static atomic_int usable; /* 0: not known yet */
    int cpus = atomic_load_explicit(&usable, memory_order_relaxed);

    if (cpus == 0) {
        cpus = paml_usable_cpus();
        atomic_store_explicit(&usable, cpus, memory_order_relaxed);
    }
    return cpus;
}

void
paml_crowd_attend(int workers)
{
    atomic_fetch_add_explicit(&awake, workers, memory_order_relaxed);
}

bool
paml_crowded(void)
{
    return atomic_load_explicit(&awake, memory_order_relaxed) >= usable_cpus();
}

bool
paml_crowd_spin(void)
{
    return atomic_fetch_add_explicit(&spinning, 1, memory_order_relaxed) <
           usable_cpus() - 1;
}

void
paml_crowd_spun(void)
{
    atomic_fetch_sub_explicit(&spinning, 1, memory_order_relaxed);
}
