/* What `load(options=…)` says of a model's sessions and outputs.
 *
 * Made once, with Python's strings copied, and never changed from then on. Owner: the
 * references, one of the capsule that Python has and one of each program that was
 * loaded with it, which may outlive the other. Thread: any. GIL: not needed.
 */
#ifndef PAML_ORT_SETTINGS_H
#define PAML_ORT_SETTINGS_H

#include <stdatomic.h>
#include <stddef.h>

enum ort_setting_kind {
    ORT_SET_CONFIG,          /* an entry of the session's configuration */
    ORT_SET_PROVIDER,        /* an execution provider; its value is "" */
    ORT_SET_PROVIDER_OPTION, /* of the provider before it */
    ORT_SET_OUTPUT,          /* to be computed and handed out; its value is "" */
    ORT_SET_OPTIMIZED,       /* the file for the optimized model; its value is "" */
    ORT_N_SETTING_KINDS,
};

struct ort_setting {
    enum ort_setting_kind kind;
    char *name, *value;
};

struct ort_settings {
    atomic_int references;
    /* Each is -1 where it is the library's to choose. */
    int graph_optimization_level, mem_pattern, cpu_mem_arena;
    size_t count;
    struct ort_setting items[];
};

/* Room for `count` items, which the caller fills by ort_settings_put(); one reference.
   NULL: memory ran out. */
struct ort_settings *ort_settings_new(size_t count);
/* -1: memory ran out. */
int ort_settings_put(struct ort_settings *settings, enum ort_setting_kind kind,
                     const char *name, const char *value);
/* NULL is taken, and given back. */
struct ort_settings *ort_settings_ref(struct ort_settings *settings);
void ort_settings_unref(struct ort_settings *settings);

/* The item of that kind at or after `from`; NULL: there is none. Settings may be NULL.
 */
const struct ort_setting *ort_settings_find(const struct ort_settings *settings,
                                            enum ort_setting_kind kind, size_t *from);

#endif
