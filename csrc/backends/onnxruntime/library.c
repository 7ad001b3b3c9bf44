#include "library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

/* What OrtGetApiBase() gives. */
struct ort_api_base {
    const void *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
};

struct ort_library ort;

/* Thread: any. */
static void
log_to_stderr(void *param, int level, const char *category, const char *id,
              const char *location, const char *message)
{
    static const char *const levels[] = {"verbose", "info", "warning", "error",
                                         "fatal"};

    (void)id;
    if (param != NULL) { /* asked for */
        fprintf(stderr, "pyasyncml: onnxruntime: %s: %s (%s, %s)\n",
                levels[level >= 0 && level <= ORT_LOG_FATAL ? level : 0], message,
                category, location);
    }
}

static int
create_globals(int debug, struct paml_error *err)
{
    OrtStatus *status = ort.CreateEnvWithCustomLogger(
        log_to_stderr, debug ? &ort : NULL, debug ? ORT_LOG_INFO : ORT_LOG_FATAL,
        "pyasyncml", &ort.env);

    if (status == NULL) {
        status = ort.DisableTelemetryEvents(ort.env);
    }
    if (status == NULL) {
        status = ort.CreateCpuMemoryInfo(1, 0, &ort.host); /* arena, default memory */
    }
    if (status == NULL) {
        status = ort.GetAllocatorWithDefaultOptions(&ort.allocator);
    }
    return status == NULL ? PAML_OK : ort_fail(status, PAML_ERR_LOAD, err);
}

/* Thread: any, one at a time. Locks: none. */
int
ort_library_open(const char *path, int debug, struct paml_error *err)
{
    const struct ort_api_base *(*get_base)(void);
    const struct ort_api_base *base;
    void *const *table;
    int major = 0, minor = 0;
    void *library;

    if (ort.env != NULL) {
        return PAML_OK;
    }
    /* LOCAL: `import onnxruntime`, before or after, has a library of its own. */
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return paml_fail(err, PAML_ERR_LOAD, "ONNX Runtime can't be loaded: %s",
                         dlerror());
    }
    *(void **)&get_base = dlsym(library, "OrtGetApiBase");
    if (get_base == NULL) {
        return paml_fail(err, PAML_ERR_LOAD, "%s is no library of ONNX Runtime", path);
    }
    base = get_base();
    ort.version = base->GetVersionString();
    /* Asked for a table that it lacks, it says so on stderr. */
    if (sscanf(ort.version, "%d.%d", &major, &minor) != 2 || major != 1 ||
        minor < ORT_TABLE_VERSION ||
        (table = base->GetApi(ORT_TABLE_VERSION)) == NULL) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "ONNX Runtime %s can't be used: version 1.%d or newer (1.x) "
                         "is needed (%s)",
                         ort.version, ORT_TABLE_VERSION, path);
    }
#define ORT_COPY(place, returned, name, parameters)                                    \
    memcpy(&ort.name, &table[place], sizeof(ort.name));
    ORT_FUNCTIONS(ORT_COPY)
#undef ORT_COPY
    return create_globals(debug, err);
}

static int
list_providers(char ***names)
{
    int count = 0;
    OrtStatus *status = ort.GetAvailableProviders(names, &count);

    if (status != NULL) {
        ort.ReleaseStatus(status);
        return 0;
    }
    return count;
}

static void
free_providers(char **names, int count)
{
    OrtStatus *status = count > 0 ? ort.ReleaseAvailableProviders(names, count) : NULL;

    if (status != NULL) {
        ort.ReleaseStatus(status);
    }
}

const char *
ort_providers(char *text, size_t size)
{
    char **names = NULL;
    int count = list_providers(&names);
    size_t length = 0;

    text[0] = '\0';
    for (int i = 0; i < count && length < size; i++) {
        length += (size_t)snprintf(text + length, size - length, "%s%s",
                                   i > 0 ? ", " : "", names[i]);
    }
    free_providers(names, count);
    return text;
}

int
ort_has_provider(const char *name)
{
    char **names = NULL;
    int count = list_providers(&names), found = 0;

    for (int i = 0; i < count; i++) {
        found = found || strcmp(names[i], name) == 0;
    }
    free_providers(names, count);
    return found;
}
