#include "settings.h"

#include <stdlib.h>
#include <string.h>

struct ort_settings *
ort_settings_new(size_t count)
{
    struct ort_settings *settings =
        calloc(1, sizeof(*settings) + count * sizeof(settings->items[0]));

    if (settings != NULL) {
        atomic_init(&settings->references, 1);
    }
    return settings;
}

int
ort_settings_put(struct ort_settings *settings, enum ort_setting_kind kind,
                 const char *name, const char *value)
{
    struct ort_setting *item = &settings->items[settings->count++];

    item->kind = kind;
    item->name = strdup(name);
    item->value = strdup(value);
    return item->name != NULL && item->value != NULL ? 0 : -1;
}

struct ort_settings *
ort_settings_ref(struct ort_settings *settings)
{
    if (settings != NULL) {
        atomic_fetch_add_explicit(&settings->references, 1, memory_order_relaxed);
    }
    return settings;
}

void
ort_settings_unref(struct ort_settings *settings)
{
    /* acq_rel: whoever frees it comes after all who have let go. */
    if (settings == NULL ||
        atomic_fetch_sub_explicit(&settings->references, 1, memory_order_acq_rel) > 1) {
        return;
    }
    for (size_t i = 0; i < settings->count; i++) {
        free(settings->items[i].name);
        free(settings->items[i].value);
    }
    free(settings);
}

const struct ort_setting *
ort_settings_find(const struct ort_settings *settings, enum ort_setting_kind kind,
                  size_t *from)
{
    while (settings != NULL && *from < settings->count) {
        const struct ort_setting *item = &settings->items[(*from)++];

        if (item->kind == kind) {
            return item;
        }
    }
    return NULL;
}
