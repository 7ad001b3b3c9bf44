#include "client.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#define OPTIONS_MOST 32

static struct paml_xla_client the_client;
/* Release when `the_client` is filled, acquire by whoever uses it. */
static atomic_bool is_open;
static pid_t opened_by;

const struct paml_xla_client *
paml_xla_client(void)
{
    /* acquire: pairs with the release in paml_xla_open(). */
    return atomic_load_explicit(&is_open, memory_order_acquire) ? &the_client : NULL;
}

int
paml_xla_usable(struct paml_error *err)
{
    if (paml_xla_client() == NULL) {
        return paml_fail(err, PAML_ERR_LOAD, "no XLA plugin has been loaded");
    }
    if (getpid() != opened_by) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "this process was forked from one that used XLA, whose "
                         "threads did not come along: use the 'spawn' start method");
    }
    return PAML_OK;
}

/* Thread: any. */
void
paml_xla_rename_thread(const char *name, char old[PAML_XLA_THREAD_NAME])
{
    if (pthread_getname_np(pthread_self(), old, PAML_XLA_THREAD_NAME) != 0) {
        old[0] = '\0';
    }
    pthread_setname_np(pthread_self(), name);
}

/* --- the plugin --- */

static const struct pjrt_api *
plugin_api(const char *path, struct paml_error *err)
{
    const struct pjrt_api *(*get_api)(void);
    const struct pjrt_api *api;
    /* Local: other frameworks in the process bring an XLA of their own. */
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

    if (library == NULL) {
        paml_fail(err, PAML_ERR_LOAD, "the XLA plugin doesn't load: %.900s", dlerror());
        return NULL;
    }
    *(void **)&get_api = dlsym(library, "GetPjrtApi");
    api = get_api != NULL ? get_api() : NULL;
    if (api == NULL) {
        paml_fail(err, PAML_ERR_LOAD, "%.800s: is no PJRT plugin, it has no GetPjrtApi",
                  path);
        return NULL;
    }
    if (api->version.major != PJRT_MAJOR ||
        api->struct_size <
            offsetof(struct pjrt_api, slots) + PJRT_SLOTS_NEEDED * sizeof(void *)) {
        paml_fail(
            err, PAML_ERR_LOAD,
            "%.800s: speaks version %d.%d of the PJRT interface; %d.x, of 2024 or "
            "later, was expected",
            path, api->version.major, api->version.minor, PJRT_MAJOR);
        return NULL;
    }
    return api;
}

static void
fill_options(const struct paml_xla_option *options, uint32_t n_options,
             struct pjrt_named_value *values)
{
    for (uint32_t i = 0; i < n_options; i++) {
        values[i] = (struct pjrt_named_value){.struct_size = sizeof(values[i]),
                                              .name = options[i].name,
                                              .name_size = strlen(options[i].name),
                                              .type = options[i].type,
                                              .value_size = 1};
        switch (options[i].type) {
        case PJRT_NAMED_STRING:
            values[i].string = options[i].string;
            values[i].value_size = strlen(options[i].string);
            break;
        case PJRT_NAMED_FLOAT:
            values[i].real = (float)options[i].real;
            break;
        case PJRT_NAMED_BOOL:
            values[i].boolean = options[i].integer != 0;
            break;
        default:
            values[i].integer = options[i].integer;
            break;
        }
    }
}

static void
copy_text(const struct pjrt_client_text *text, char *to, size_t size)
{
    snprintf(to, size, "%.*s", (int)text->text_size, text->text);
}

/* What the client is asked once: its platform and its devices. */
static int
describe_client(struct paml_xla_client *client, struct paml_error *err)
{
    const struct pjrt_api *api = client->api;
    PJRT_ARGS(client_text, text);
    PJRT_ARGS(client_devices, devices);
    int code;

    text.client = devices.client = client->client;
    code = paml_xla_report(api, api->slots[PJRT_CLIENT_PLATFORM_NAME](&text),
                           PAML_ERR_LOAD, "the XLA client", err);
    if (code != PAML_OK) {
        return code;
    }
    copy_text(&text, client->platform, sizeof(client->platform));
    code = paml_xla_report(api, api->slots[PJRT_CLIENT_PLATFORM_VERSION](&text),
                           PAML_ERR_LOAD, "the XLA client", err);
    if (code != PAML_OK) {
        return code;
    }
    copy_text(&text, client->version, sizeof(client->version));
    code = paml_xla_report(api, api->slots[PJRT_CLIENT_ADDRESSABLE_DEVICES](&devices),
                           PAML_ERR_LOAD, "the devices of the XLA client", err);
    if (code == PAML_OK && devices.n_devices == 0) {
        code = paml_fail(err, PAML_ERR_LOAD, "the XLA plugin finds no device here");
    }
    if (code != PAML_OK) {
        return code;
    }
    client->devices = devices.devices;
    client->n_devices = (int)devices.n_devices;
    client->executing = calloc(devices.n_devices, sizeof(*client->executing));
    return client->executing != NULL
               ? PAML_OK
               : paml_fail(err, PAML_ERR_MEMORY, "no memory for the XLA client");
}

static int
open_client(const char *path, const struct paml_xla_option *options, uint32_t n_options,
            struct paml_error *err)
{
    struct pjrt_named_value values[OPTIONS_MOST];
    struct paml_xla_client client = {0};
    PJRT_ARGS(plugin_initialize, initialize);
    PJRT_ARGS(client_create, create);
    PJRT_ARGS(client_destroy, destroy);
    struct paml_error ignored;
    int code;

    if (n_options > OPTIONS_MOST) {
        return paml_fail(err, PAML_ERR_LOAD, "at most %d options of an XLA client",
                         OPTIONS_MOST);
    }
    client.api = plugin_api(path, err);
    if (client.api == NULL) {
        return PAML_ERR_LOAD;
    }
    code = paml_xla_report(client.api,
                           client.api->slots[PJRT_PLUGIN_INITIALIZE](&initialize),
                           PAML_ERR_LOAD, "the XLA plugin doesn't start", err);
    if (code != PAML_OK) {
        return code;
    }
    fill_options(options, n_options, values);
    create.options = values;
    create.n_options = n_options;
    code = paml_xla_report(client.api, client.api->slots[PJRT_CLIENT_CREATE](&create),
                           PAML_ERR_LOAD, "the XLA plugin can't be used here", err);
    if (code != PAML_OK) {
        return code;
    }
    client.client = create.client;
    code = describe_client(&client, err);
    if (code != PAML_OK) {
        destroy.client = client.client;
        paml_xla_report(client.api, client.api->slots[PJRT_CLIENT_DESTROY](&destroy),
                        PAML_ERR_LOAD, "", &ignored);
        return code;
    }
    the_client = client;
    opened_by = getpid();
    /* release: pairs with the acquire in paml_xla_client(). */
    atomic_store_explicit(&is_open, true, memory_order_release);
    return PAML_OK;
}

/* Thread: any, one at a time. */
int
paml_xla_open(const char *path, const struct paml_xla_option *options,
              uint32_t n_options, struct paml_error *err)
{
    char name[PAML_XLA_THREAD_NAME], ignored[PAML_XLA_THREAD_NAME];
    int code;

    if (paml_xla_client() != NULL) {
        return PAML_OK;
    }
    paml_xla_rename_thread(PAML_XLA_THREADS, name);
    code = open_client(path, options, n_options, err);
    paml_xla_rename_thread(name, ignored);
    return code;
}

/* --- devices --- */

static void
describe_device(struct pjrt_device *device, struct paml_device_info *info)
{
    const struct pjrt_api *api = paml_xla_client()->api;
    PJRT_ARGS(device_get_description, get);
    PJRT_ARGS(description_kind, kind);
    PJRT_ARGS(device_memory_stats, stats);
    struct paml_error ignored, why;

    snprintf(info->name, sizeof(info->name), "%s", paml_xla_client()->platform);
    get.device = stats.device = device;
    if (paml_xla_report(api, api->slots[PJRT_DEVICE_GET_DESCRIPTION](&get),
                        PAML_ERR_LOAD, "", &ignored) == PAML_OK) {
        kind.description = get.description;
        if (paml_xla_report(api, api->slots[PJRT_DESCRIPTION_KIND](&kind),
                            PAML_ERR_LOAD, "", &ignored) == PAML_OK) {
            snprintf(info->name, sizeof(info->name), "%.*s", (int)kind.kind_size,
                     kind.kind);
        }
    }
    /* Platforms that don't count their memory (the CPU) answer with an error. */
    strcpy(why.message, "memory: the plugin doesn't tell");
    if (paml_xla_report(api, api->slots[PJRT_DEVICE_MEMORY_STATS](&stats),
                        PAML_ERR_LOAD, "memory", &why) == PAML_OK &&
        stats.bytes_limit_is_set) {
        info->memory = (uint64_t)stats.bytes_limit;
    } else if (strcmp(paml_xla_client()->platform, "cpu") == 0) {
        info->memory = paml_host_memory(); /* all of its devices' together */
    } else {
        snprintf(info->reason, sizeof(info->reason), "%.*s",
                 (int)sizeof(info->reason) - 1, why.message);
    }
}

/* Thread: any. GIL: either way. */
int
paml_xla_devices(struct paml_device_info *infos, int capacity)
{
    const struct paml_xla_client *client = paml_xla_client();
    struct paml_error ignored;
    int count = 0;

    if (paml_xla_usable(&ignored) != PAML_OK) {
        return 0;
    }
    for (; count < client->n_devices && count < capacity; count++) {
        memset(&infos[count], 0, sizeof(infos[count]));
        infos[count].device = (DLDevice){(DLDeviceType)PAML_DEVICE_XLA, count};
        describe_device(client->devices[count], &infos[count]);
    }
    return client->n_devices;
}

/* Thread: worker. Locks: none. */
int
paml_xla_find_device(DLDevice device, struct pjrt_device **found,
                     struct paml_error *err)
{
    const struct paml_xla_client *client = paml_xla_client();

    if (device.device_type == kDLCPU) {
        if (strcmp(client->platform, "cpu") != 0) {
            return paml_fail(err, PAML_ERR_LOAD,
                             "device='cpu': the XLA plugin drives %s; say "
                             "device='xla:0', or choose the plugin with "
                             "PYASYNCML_XLA_PLATFORM=cpu",
                             client->platform);
        }
        device.device_id = 0;
    } else if ((int)device.device_type != PAML_DEVICE_XLA) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "device: an XLA program runs on 'cpu' or 'xla:0', 'xla:1', …");
    }
    if (device.device_id < 0 || device.device_id >= client->n_devices) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "device='xla:%d': there %s %d (%s: xla:0 to xla:%d)",
                         (int)device.device_id, client->n_devices == 1 ? "is" : "are",
                         client->n_devices, client->platform, client->n_devices - 1);
    }
    *found = client->devices[device.device_id];
    return PAML_OK;
}
