#include "library.h"

#include "quiet.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The oldest version whose wheel is laid out as this needs it and that is tried. */
#define OLDEST_MAJOR 2
#define OLDEST_MINOR 16

struct paml_tf_functions tf;

static const struct {
    const char *name;
    size_t at;
} functions[] = {
#define PAML_TF_ROW(result, name, parameters)                                          \
    {"TF_" #name, offsetof(struct paml_tf_functions, name)},
    PAML_TF_FUNCTIONS(PAML_TF_ROW)
#undef PAML_TF_ROW
};

#define N_FUNCTIONS (sizeof(functions) / sizeof(functions[0]))

static int
check_version(const char *path, const char *version, int *minor, struct paml_error *err)
{
    int major = 0;

    *minor = 0;
    if (sscanf(version, "%d.%d", &major, minor) != 2 || major != OLDEST_MAJOR ||
        *minor < OLDEST_MINOR) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "TensorFlow %.40s is installed (%s); supported are 2.16 and "
                         "later versions of 2: pip install -U 'pyasyncml[tensorflow]'",
                         version, path);
    }
    return PAML_OK;
}

/* Thread: any, one at a time. GIL: not held, the linker takes a while. */
int
paml_tf_open(const char *path, const char *framework, struct paml_error *err)
{
    static bool opened;
    struct paml_tf_functions found;
    const char *(*version)(void);
    struct paml_tf_quiet quiet;
    void *library, *symbol;
    int minor;

    if (opened) {
        return PAML_OK;
    }
    /* Intra-op threads are the process's otherwise: the first session, or an `import
       tensorflow`, decides for all. */
    setenv("TF_OVERRIDE_GLOBAL_THREADPOOL", "1", 0);
    paml_tf_quiet_begin(&quiet);
    /* It prints, and is the other's dependency. Where it is missing, the other says so.
     */
    if (framework != NULL) {
        dlopen(framework, RTLD_NOW | RTLD_LOCAL);
    }
    paml_tf_quiet_end(&quiet);
    /* Not RTLD_GLOBAL: an `import tensorflow` that follows would crash. Never closed:
       the library leaves threads behind. */
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        paml_fail(err, PAML_ERR_LOAD, "TensorFlow's library doesn't load: %s",
                  dlerror());
        goto fail;
    }
    symbol = dlsym(library, "TF_Version");
    if (symbol == NULL) {
        paml_fail(err, PAML_ERR_LOAD,
                  "%s is no TensorFlow library: it has no TF_Version", path);
        goto fail;
    }
    memcpy(&version, &symbol, sizeof(symbol));
    if (check_version(path, version(), &minor, err) != PAML_OK) {
        goto fail;
    }
    for (size_t i = 0; i < N_FUNCTIONS; i++) {
        symbol = dlsym(library, functions[i].name);
        if (symbol == NULL) {
            paml_fail(err, PAML_ERR_LOAD,
                      "TensorFlow %.40s (%s) has no %s: this version isn't "
                      "supported by this pyasyncml, 2.16 to 2.21 are known to be",
                      version(), path, functions[i].name);
            goto fail;
        }
        memcpy((char *)&found + functions[i].at, &symbol, sizeof(symbol));
    }
    paml_tf_quiet_stays(&quiet, library, minor);
    tf = found;
    opened = true;
    return PAML_OK;

fail:
    paml_tf_quiet_stays(&quiet, NULL, 0);
    return err->code;
}
