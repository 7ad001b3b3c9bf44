#include "batching.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Room for whatever the settings may fill. */
struct storage {
    int32_t input_axes[PAML_PLACES_MOST], output_axes[PAML_PLACES_MOST];
    double fills[PAML_PLACES_MOST];
    struct paml_padded_axis padded[PAML_PADDED_MOST];
    struct paml_axis_place inputs[PAML_PADDED_MOST][PAML_PLACES_MOST];
    struct paml_axis_place outputs[PAML_PADDED_MOST][PAML_PLACES_MOST];
    char *names[PAML_PLACES_MOST];
    int64_t buckets[]; /* n_settings for each padded axis */
};

/* "ids, mask" */
static void
names_of(const struct paml_spec *specs, uint32_t count, char *text, size_t size)
{
    size_t length = 0;

    text[0] = '\0';
    for (uint32_t i = 0; i < count && length < size; i++) {
        length +=
            (size_t)snprintf(text + length, size - length, "%s%s", i > 0 ? ", " : "",
                             specs[i].name != NULL ? specs[i].name : "?");
    }
}

/* The position that a setting means. */
static int
look_up(const struct paml_setting *setting, const struct paml_entry *entry,
        uint32_t *position, struct paml_error *err)
{
    int is_output = setting->kind == PAML_SET_OUTPUT_AXIS ||
                    setting->kind == PAML_SET_PADDED_OUTPUT;
    const struct paml_spec *specs = is_output ? entry->outputs : entry->inputs;
    uint32_t count = is_output ? entry->n_outputs : entry->n_inputs;
    char names[512];

    *position = setting->position;
    if (setting->name == NULL) {
        if (is_output || entry->variadic || setting->position < count) {
            return PAML_OK;
        }
        return paml_fail(err, PAML_ERR_LOAD,
                         "batching=: there is no input %u; the model takes %u",
                         setting->position, count);
    }
    for (uint32_t i = 0; i < count && i < PAML_PLACES_MOST; i++) {
        if (specs[i].name != NULL && strcmp(specs[i].name, setting->name) == 0) {
            *position = i;
            return PAML_OK;
        }
    }
    names_of(specs, count, names, sizeof(names));
    return paml_fail(err, PAML_ERR_LOAD,
                     "batching=: there is no %s named '%s'; the model has (%s)",
                     is_output ? "output" : "input", setting->name, names);
}

static void
apply(struct paml_batching *batching, struct storage *storage, uint32_t n_settings,
      const struct paml_setting *setting, uint32_t position)
{
    struct paml_padded_axis *padded = &storage->padded[setting->which];
    struct paml_axis_place place = {position, (int32_t)setting->value};

    switch (setting->kind) {
    case PAML_SET_INPUT_AXIS:
        storage->input_axes[position] = (int32_t)setting->value;
        batching->n_input_axes = PAML_PLACES_MOST;
        break;
    case PAML_SET_OUTPUT_AXIS:
        storage->output_axes[position] = (int32_t)setting->value;
        batching->n_output_axes = PAML_PLACES_MOST;
        break;
    case PAML_SET_FILL:
        storage->fills[position] = setting->value;
        batching->n_fills = PAML_PLACES_MOST;
        break;
    case PAML_SET_MASK:
        batching->mask_argument = (int32_t)position;
        break;
    case PAML_SET_PADDED_INPUT:
        storage->inputs[setting->which][padded->n_inputs++] = place;
        break;
    case PAML_SET_PADDED_OUTPUT:
        storage->outputs[setting->which][padded->n_outputs++] = place;
        break;
    case PAML_SET_BUCKET:
        storage->buckets[setting->which * n_settings + padded->n_buckets++] =
            (int64_t)setting->value;
        break;
    }
}

/* A batch has as many rows as requests bring: an input that states its rows can't be
   one. */
static int
check_batch_axes(const struct paml_batching *batching, const struct paml_entry *entry,
                 struct paml_error *err)
{
    for (uint32_t i = 0; i < entry->n_inputs; i++) {
        const struct paml_spec *spec = &entry->inputs[i];
        int32_t axis = i < batching->n_input_axes ? batching->input_axes[i] : 0;

        if (spec->shape != NULL && axis < spec->ndim && spec->shape[axis] >= 0) {
            return paml_fail(err, PAML_ERR_LOAD,
                             "batching=: axis %d of input '%s', the batch axis, is "
                             "fixed at %lld by the model; export it with a dynamic one",
                             axis, spec->name != NULL ? spec->name : "?",
                             (long long)spec->shape[axis]);
        }
    }
    return PAML_OK;
}

int
paml_batching_build(struct paml_batching *batching,
                    const struct paml_batching_options *options,
                    const struct paml_entry *entry, struct paml_error *err)
{
    uint32_t n = options->n_settings, position = 0;
    struct storage *storage;
    int code = PAML_OK;

    memset(batching, 0, sizeof(*batching));
    batching->mask_argument = -1;
    if (options->max_rows == 0) {
        return PAML_OK;
    }
    if (entry->stateful) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "batching=: '%s' keeps state of its own from one run to the "
                         "next, and would mix the streams of those who share a run; "
                         "serve one stream an instance without batching, or what it "
                         "calls with the state as an input (entry=, Model.session())",
                         entry->name);
    }
    storage = calloc(1, sizeof(*storage) + PAML_PADDED_MOST * n * sizeof(int64_t));
    if (storage == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for what batching= says");
    }
    batching->storage = storage;
    batching->max_delay_ns = options->max_delay_ns;
    batching->mask_dtype = options->mask_dtype;
    batching->n_padded = options->n_padded;
    batching->input_axes = storage->input_axes;
    batching->output_axes = storage->output_axes;
    batching->fills = storage->fills;
    batching->padded = storage->padded;
    for (uint32_t k = 0; k < options->n_padded; k++) {
        storage->padded[k].name = options->axis_names[k];
        storage->padded[k].inputs = storage->inputs[k];
        storage->padded[k].outputs = storage->outputs[k];
        storage->padded[k].buckets = storage->buckets + k * n;
    }
    /* Copies: messages are written also after the program has gone. */
    batching->names = (const char *const *)storage->names;
    batching->n_names = PAML_PLACES_MOST;
    for (uint32_t i = 0; i < entry->n_inputs && i < PAML_PLACES_MOST; i++) {
        if (entry->inputs[i].name != NULL) {
            storage->names[i] = strdup(entry->inputs[i].name);
        }
    }
    for (uint32_t i = 0; i < n && code == PAML_OK; i++) {
        const struct paml_setting *setting = &options->settings[i];
        if (setting->kind != PAML_SET_BUCKET) {
            code = look_up(setting, entry, &position, err);
        }
        if (code == PAML_OK) {
            apply(batching, storage, n, setting, position);
        }
    }
    if (code == PAML_OK) {
        code = check_batch_axes(batching, entry, err);
    }
    if (code != PAML_OK) {
        paml_batching_clear(batching);
        return code;
    }
    batching->max_rows = options->max_rows;
    return PAML_OK;
}

void
paml_batching_clear(struct paml_batching *batching)
{
    struct storage *storage = batching->storage;

    for (int i = 0; storage != NULL && i < PAML_PLACES_MOST; i++) {
        free(storage->names[i]);
    }
    free(storage);
    memset(batching, 0, sizeof(*batching));
}

int
paml_batching_options_copy(struct paml_batching_options *to,
                           const struct paml_batching_options *from)
{
    bool complete = true;

    *to = *from;
    for (uint32_t k = 0; k < from->n_padded; k++) {
        to->axis_names[k] = strdup(from->axis_names[k]);
        complete = complete && to->axis_names[k] != NULL;
    }
    to->settings = calloc(from->n_settings + 1, sizeof(*to->settings));
    to->n_settings = to->settings != NULL ? from->n_settings : 0;
    complete = complete && to->settings != NULL;
    for (uint32_t i = 0; i < to->n_settings; i++) {
        to->settings[i] = from->settings[i];
        if (from->settings[i].name != NULL) {
            to->settings[i].name = strdup(from->settings[i].name);
            complete = complete && to->settings[i].name != NULL;
        }
    }
    if (!complete) {
        paml_batching_options_clear(to);
        return -1;
    }
    return 0;
}

void
paml_batching_options_clear(struct paml_batching_options *options)
{
    for (uint32_t k = 0; k < options->n_padded; k++) {
        free((char *)options->axis_names[k]);
    }
    for (uint32_t i = 0; i < options->n_settings; i++) {
        free(options->settings[i].name);
    }
    free(options->settings);
    memset(options, 0, sizeof(*options));
}
