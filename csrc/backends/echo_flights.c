/* The echo backend with asynchronous instances: a thread of its own takes the place of
 * a device, and runs what it was given one after the other, in order. A run counts as
 * begun when it is given to it.
 */
#include <stdlib.h>

#include "echo.h"

/* How long whoever has to ask waits between two questions. */
#define ASK_EVERY_NS 100000

/* Owner: the worker, from submit to finish. */
struct ticket {
    struct paml_flight *flight;
    struct ticket *next; /* the device's: lock */
    bool done;           /* lock; what follows is the worker's once it is set */
    struct paml_error error;
    int code;
};

/* Owner: the worker. Lock: `lock` guards what is waiting to be run. */
struct device {
    struct paml_echo *echo;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t given, done;
    struct ticket *first, **last;
    bool closing;
};

/* Thread: the device's, its whole life. GIL: never. Locks: takes the device's, and as
   paml_echo_run and a flight's ready() do. */
static void *
device_main(void *argument)
{
    struct device *device = argument;
    struct ticket *ticket;

    pthread_mutex_lock(&device->lock);
    for (;;) {
        while (device->first == NULL && !device->closing) {
            pthread_cond_wait(&device->given, &device->lock);
        }
        ticket = device->first;
        if (ticket == NULL) {
            break;
        }
        device->first = ticket->next;
        if (device->first == NULL) {
            device->last = &device->first;
        }
        pthread_mutex_unlock(&device->lock);
        ticket->code =
            paml_echo_run(device->echo, &ticket->flight->run, true, &ticket->error);
        pthread_mutex_lock(&device->lock);
        ticket->done = true;
        if (!device->echo->polled) {
            /* Under the lock: finish() waits for it, so it comes before that returns.
             */
            ticket->flight->ready(ticket->flight);
        }
        pthread_cond_signal(&device->done);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

static int
flights_open(void *program, DLDevice where, int threads, void **instance,
             struct paml_error *err)
{
    struct device *device;
    int code = paml_echo_check_device(where, err);

    (void)threads;
    if (code != PAML_OK) {
        return code;
    }
    device = calloc(1, sizeof(*device));
    if (device == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for an instance");
    }
    device->echo = program;
    device->last = &device->first;
    pthread_mutex_init(&device->lock, NULL);
    pthread_cond_init(&device->given, NULL);
    pthread_cond_init(&device->done, NULL);
    if (pthread_create(&device->thread, NULL, device_main, device) != 0) {
        pthread_mutex_destroy(&device->lock);
        pthread_cond_destroy(&device->given);
        pthread_cond_destroy(&device->done);
        free(device);
        return paml_fail(err, PAML_ERR_LOAD, "a thread can't be started");
    }
    *instance = device;
    return PAML_OK;
}

/* Thread: worker. GIL: not held. Locks: takes the device's. (And so all below.) */
static void
flights_close(void *instance)
{
    struct device *device = instance;

    pthread_mutex_lock(&device->lock);
    device->closing = true;
    pthread_cond_signal(&device->given);
    pthread_mutex_unlock(&device->lock);
    pthread_join(device->thread, NULL);
    pthread_mutex_destroy(&device->lock);
    pthread_cond_destroy(&device->given);
    pthread_cond_destroy(&device->done);
    free(device);
}

static int
flights_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    return paml_echo_run(((struct device *)instance)->echo, run, false, err);
}

static uint32_t
flights_depth(void *instance)
{
    return ((struct device *)instance)->echo->in_flight;
}

static int
flights_submit(void *instance, struct paml_flight *flight, struct paml_error *err)
{
    struct device *device = instance;
    struct ticket *ticket = calloc(1, sizeof(*ticket));

    if (ticket == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a run in flight");
    }
    ticket->flight = flight;
    flight->ticket = ticket;
    paml_echo_begin(device->echo, &flight->run);
    pthread_mutex_lock(&device->lock);
    *device->last = ticket;
    device->last = &ticket->next;
    pthread_cond_signal(&device->given);
    pthread_mutex_unlock(&device->lock);
    return PAML_OK;
}

static int64_t
flights_poll(void *instance, struct paml_flight *flight)
{
    struct device *device = instance;
    bool done;

    if (!device->echo->polled) {
        return INT64_MAX;
    }
    pthread_mutex_lock(&device->lock);
    done = ((struct ticket *)flight->ticket)->done;
    pthread_mutex_unlock(&device->lock);
    return done ? 0 : ASK_EVERY_NS;
}

static int
flights_finish(void *instance, struct paml_flight *flight, struct paml_error *err)
{
    struct device *device = instance;
    struct ticket *ticket = flight->ticket;
    int code;

    pthread_mutex_lock(&device->lock);
    while (!ticket->done) {
        pthread_cond_wait(&device->done, &device->lock);
    }
    pthread_mutex_unlock(&device->lock);
    code = ticket->code;
    if (code != PAML_OK) {
        *err = ticket->error;
    }
    free(ticket);
    return code;
}

const struct paml_backend paml_echo_flights_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "echo",
    .version = "1",
    .load = paml_echo_load,
    .unload = paml_echo_unload,
    .describe = paml_echo_describe,
    .open = flights_open,
    .run = flights_run,
    .close = flights_close,
    .depth = flights_depth,
    .submit = flights_submit,
    .poll = flights_poll,
    .finish = flights_finish,
};
