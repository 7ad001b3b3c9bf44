/* The plugin and its client: one of each a process, opened once and never closed.
 *
 * A plugin's threads and static state live as long as the process, so unloading it buys
 * nothing and is not safe. Written by paml_xla_open() alone, before any worker asks.
 */
#ifndef PAML_XLA_CLIENT_H
#define PAML_XLA_CLIENT_H

#include <stdatomic.h>
#include <stdint.h>

#include "backend.h"
#include "pjrt.h"

struct paml_xla_client {
    const struct pjrt_api *api;
    struct pjrt_client *client;
    struct pjrt_device *const *devices; /* those of this process */
    int n_devices;
    atomic_int
        *executing;    /* for each device: executions that haven't been waited for */
    char platform[64]; /* "cpu", "cuda", "tpu", … */
    char version[128]; /* of the platform, for people */
};

/* One creation option of a client; its name and value are the platform's matter. */
struct paml_xla_option {
    const char *name;
    enum pjrt_named_value_type type;
    const char *string;
    int64_t integer; /* booleans too */
    double real;
};

/* Loads the plugin and makes the client. PAML_OK, also where it is there already, or
   PAML_ERR_LOAD. Thread: any, one at a time. GIL: better not held, it takes a second.
 */
int paml_xla_open(const char *path, const struct paml_xla_option *options,
                  uint32_t n_options, struct paml_error *err);

/* NULL: there is none. Thread: any. */
const struct paml_xla_client *paml_xla_client(void);

/* PAML_OK, or why the client can't be used: there is none, or it was made by the
   process that this one was forked from. Thread: any. */
int paml_xla_usable(struct paml_error *err);

int paml_xla_devices(struct paml_device_info *infos, int capacity);

/* The device of the client that the engine's name means. PAML_ERR_LOAD: none. */
int paml_xla_find_device(DLDevice device, struct pjrt_device **found,
                         struct paml_error *err);

/* Threads take the name of the one that makes them, and the plugin's shall not be taken
   for this library's: calls that may make some are made under another name. Gives the
   name that the calling thread had. */
#define PAML_XLA_THREADS "xla"
#define PAML_XLA_THREAD_NAME 16 /* Linux's limit */
void paml_xla_rename_thread(const char *name, char old[PAML_XLA_THREAD_NAME]);

/* Calls a function of the plugin. NULL, or an error to destroy. Thread: any. */
static inline struct pjrt_error *
paml_xla_call(enum pjrt_slot slot, void *args)
{
    return paml_xla_client()->api->slots[slot](args);
}

/* errors.c: destroys the error (NULL: none) and says it: "<what>: <message>". PAML_OK,
   PAML_ERR_MEMORY where that is what ran out, else `code`. */
int paml_xla_report(const struct pjrt_api *api, struct pjrt_error *error, int code,
                    const char *what, struct paml_error *err);

#endif
