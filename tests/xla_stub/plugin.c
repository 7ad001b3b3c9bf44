/* A PJRT plugin for tests: another one's table, the one at PYASYNCML_STUB_OF, with
 * failures where a test asks for them, and a count of what is executed at a time. What
 * the tests call is at the end.
 */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "pjrt.h"

enum { EXECUTES, REFUSES, FAILS_LATE };

static const struct pjrt_api *real;
static struct pjrt_device *const *devices;
static atomic_int mode, once, gone, code, failing;
static char the_error; /* its address is the error's */
static const char message[] = "fell off the bus";

static struct pjrt_error *
failure(void)
{
    return (struct pjrt_error *)&the_error;
}

/* --- errors: ours, or the other plugin's --- */

static struct pjrt_error *
error_destroy(void *args)
{
    struct pjrt_error_destroy *destroy = args;

    return destroy->error == failure() ? NULL : real->slots[PJRT_ERROR_DESTROY](args);
}

static struct pjrt_error *
error_message(void *args)
{
    struct pjrt_error_message *said = args;

    if (said->error != failure()) {
        return real->slots[PJRT_ERROR_MESSAGE](args);
    }
    said->message = message;
    said->message_size = sizeof(message) - 1;
    return NULL;
}

static struct pjrt_error *
error_get_code(void *args)
{
    struct pjrt_error_get_code *get = args;

    if (get->error != failure()) {
        return real->slots[PJRT_ERROR_GET_CODE](args);
    }
    get->code = atomic_load(&code);
    return NULL;
}

/* --- what fails --- */

static int
fails(struct pjrt_device *device)
{
    return device == devices[atomic_load(&failing)];
}

static struct pjrt_error *
client_devices(void *args)
{
    struct pjrt_client_devices *found = args;
    struct pjrt_error *error = real->slots[PJRT_CLIENT_ADDRESSABLE_DEVICES](args);

    devices = found->devices;
    if (getenv("PYASYNCML_STUB_EMPTY") != NULL) {
        found->n_devices = 0;
    }
    return error;
}

static struct pjrt_error *
buffer_from_host_buffer(void *args)
{
    struct pjrt_buffer_from_host_buffer *from = args;

    return atomic_load(&gone) && fails(from->device)
               ? failure()
               : real->slots[PJRT_CLIENT_BUFFER_FROM_HOST_BUFFER](args);
}

static atomic_int executing, most;

static void
count_up(void)
{
    int now = atomic_fetch_add(&executing, 1) + 1, before = atomic_load(&most);

    while (before < now && !atomic_compare_exchange_weak(&most, &before, now)) {
    }
}

static void
count_down(struct pjrt_error *error, void *argument)
{
    (void)argument;
    atomic_fetch_sub(&executing, 1);
    if (error != NULL) {
        PJRT_ARGS(error_destroy, destroy);
        destroy.error = error;
        real->slots[PJRT_ERROR_DESTROY](&destroy);
    }
}

static struct pjrt_error *
execute(void *args)
{
    struct pjrt_loaded_execute *run = args;
    struct pjrt_error *error;

    if (atomic_load(&mode) == REFUSES && fails(run->device)) {
        return failure();
    }
    count_up();
    error = real->slots[PJRT_LOADED_EXECUTE](args);
    if (error == NULL) {
        PJRT_ARGS(event_on_ready, ready);
        ready.event = run->complete[0];
        ready.callback = count_down;
        real->slots[PJRT_EVENT_ON_READY](&ready);
    }
    return error;
}

struct waiter {
    void (*callback)(struct pjrt_error *error, void *argument);
    void *argument;
};

/* It is really over by now: nothing is written any more. */
static void
fail_late(struct pjrt_error *error, void *argument)
{
    struct waiter waiter = *(struct waiter *)argument;

    if (error != NULL) {
        PJRT_ARGS(error_destroy, destroy);
        destroy.error = error;
        real->slots[PJRT_ERROR_DESTROY](&destroy);
    }
    free(argument);
    waiter.callback(failure(), waiter.argument);
}

static struct pjrt_error *
event_on_ready(void *args)
{
    struct pjrt_event_on_ready *asked = args, ours = *asked;
    struct waiter *waiter;

    if (atomic_load(&mode) != FAILS_LATE) {
        return real->slots[PJRT_EVENT_ON_READY](args);
    }
    if (atomic_load(&once)) {
        atomic_store(&mode, EXECUTES);
    }
    waiter = malloc(sizeof(*waiter));
    *waiter = (struct waiter){asked->callback, asked->argument};
    ours.callback = fail_late;
    ours.argument = waiter;
    return real->slots[PJRT_EVENT_ON_READY](&ours);
}

/* --- the plugin --- */

const struct pjrt_api *
GetPjrtApi(void)
{
    static struct pjrt_api *table;
    const struct pjrt_api *(*get_api)(void);
    void *library;

    if (table != NULL) {
        return table;
    }
    library = dlopen(getenv("PYASYNCML_STUB_OF"), RTLD_NOW | RTLD_LOCAL);
    *(void **)&get_api = dlsym(library, "GetPjrtApi");
    real = get_api();
    table = malloc(real->struct_size);
    memcpy(table, real, real->struct_size);
    table->slots[PJRT_ERROR_DESTROY] = error_destroy;
    table->slots[PJRT_ERROR_MESSAGE] = error_message;
    table->slots[PJRT_ERROR_GET_CODE] = error_get_code;
    table->slots[PJRT_CLIENT_ADDRESSABLE_DEVICES] = client_devices;
    table->slots[PJRT_CLIENT_BUFFER_FROM_HOST_BUFFER] = buffer_from_host_buffer;
    table->slots[PJRT_LOADED_EXECUTE] = execute;
    table->slots[PJRT_EVENT_ON_READY] = event_on_ready;
    return table;
}

/* --- for tests --- */

/* Runs on the device fail from now on as `how` says, with this code of PJRT's (late:
   one event alone, unless `for_good`: the device takes nothing any more either). */
void
stub_fail(int device, int how, int with, int for_good)
{
    atomic_store(&once, !for_good);
    atomic_store(&failing, device);
    atomic_store(&code, with);
    atomic_store(&gone, for_good);
    atomic_store(&mode, how);
}

/* The most executions that there were at a time, those that the plugin made wait
   included. */
int
stub_most(void)
{
    return atomic_load(&most);
}
