/* The table of C functions. */
#include "xla_backend.h"

#include <stdlib.h>

#include "client.h"
#include "instance.h"
#include "source.h"

/* A model: a program that may be others' too, and what its instances begin with. */
struct loaded {
    struct paml_xla_program *program;
    const struct paml_xla_source *source;
};

/* Thread: worker. GIL: not held, not taken. (Of all functions here but `devices`.) */
static int
xla_load(const struct paml_load_spec *spec, void **program, struct paml_error *err)
{
    char name[PAML_XLA_THREAD_NAME], ignored[PAML_XLA_THREAD_NAME];
    struct loaded *loaded = calloc(1, sizeof(*loaded));
    int code;

    if (loaded == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for the program");
    }
    loaded->source = spec->options;
    paml_xla_rename_thread(PAML_XLA_THREADS, name);
    code = paml_xla_source_program(spec->options, spec, &loaded->program, err);
    paml_xla_rename_thread(name, ignored);
    if (code != PAML_OK) {
        free(loaded);
        return code;
    }
    *program = loaded;
    return PAML_OK;
}

static void
xla_unload(void *program)
{
    paml_xla_program_unref(((struct loaded *)program)->program);
    free(program);
}

static const struct paml_entry *
xla_describe(void *program)
{
    return &((struct loaded *)program)->program->entry;
}

/* `threads` is not for us to set: XLA's platforms have pools of their own. */
static int
xla_open(void *program, DLDevice device, int threads, void **instance,
         struct paml_error *err)
{
    const struct loaded *loaded = program;
    struct paml_xla_instance *opened = NULL;
    int code =
        paml_xla_instance_open(loaded->program, loaded->source, device, &opened, err);

    (void)threads;
    *instance = opened;
    return code;
}

static int
xla_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    return paml_xla_instance_run(instance, run, err);
}

/* Runs that hand on a state are made one at a time. */
static uint32_t
xla_depth(void *instance)
{
    return ((struct paml_xla_instance *)instance)->n_runs;
}

static int
xla_submit(void *instance, struct paml_flight *flight, struct paml_error *err)
{
    return paml_xla_instance_submit(instance, flight, err);
}

static int
xla_crowded(void *instance)
{
    return atomic_load_explicit(((struct paml_xla_instance *)instance)->executing,
                                memory_order_relaxed) >= PAML_XLA_CROWD;
}

static int64_t
xla_poll(void *instance, struct paml_flight *flight)
{
    (void)instance;
    (void)flight;
    return INT64_MAX; /* the latch tells */
}

static int
xla_finish(void *instance, struct paml_flight *flight, struct paml_error *err)
{
    return paml_xla_instance_finish(instance, flight, err);
}

static void
xla_close(void *instance)
{
    paml_xla_instance_close(instance);
}

struct paml_backend paml_xla_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "xla",
    .version = "", /* the client's, once it is there */
    .load = xla_load,
    .unload = xla_unload,
    .describe = xla_describe,
    .open = xla_open,
    .run = xla_run,
    .close = xla_close,
    .devices = paml_xla_devices,
    /* The plugin's own threads do the work, on the CPU too. */
    .computes = 0,
    .depth = xla_depth,
    .submit = xla_submit,
    .poll = xla_poll,
    .finish = xla_finish,
    .crowded = xla_crowded,
};
