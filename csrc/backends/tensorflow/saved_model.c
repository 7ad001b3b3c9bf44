#include "saved_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dtypes.h"
#include "meta_graph.h"

/* Protobuf's own bound for a message. */
#define FILE_MOST ((size_t)INT32_MAX)

/* The whole file. NULL: see `err`. */
static char *
read_file(const char *path, size_t *size, struct paml_error *err)
{
    FILE *file = fopen(path, "rb");
    char *bytes = NULL;
    long end = -1;

    if (file == NULL) {
        paml_fail(err, PAML_ERR_LOAD, "%.400s: %s", path, strerror(errno));
        return NULL;
    }
    if (fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) >= 0) {
        rewind(file);
    }
    if (end <= 0 || (size_t)end > FILE_MOST) {
        paml_fail(err, PAML_ERR_LOAD, "%.400s: %s", path,
                  end == 0 ? "the file is empty" : "can't be read");
    } else if ((bytes = malloc((size_t)end)) == NULL) {
        paml_fail(err, PAML_ERR_MEMORY, "%.400s: no memory for %ld bytes", path, end);
    } else {
        /* Shorter where somebody cuts it off meanwhile. */
        *size = fread(bytes, 1, (size_t)end, file);
    }
    fclose(file);
    return bytes;
}

/* Which of the graphs is served: the one tagged "serve" alone, else the first with that
   tag, else the first. -1: damaged. */
static int
choose_graph(struct wire saved_model, struct wire *chosen)
{
    struct wire_field field;
    int status, best = 0;

    while ((status = wire_next(&saved_model, &field)) > 0) {
        int rank;

        if (field.number != 2 || !field.is_bytes) {
            continue;
        }
        rank = paml_tf_meta_graph_rank(field.bytes);
        if (rank < 0) {
            return -1;
        }
        if (rank > best) {
            best = rank;
            *chosen = field.bytes;
        }
    }
    return status < 0 ? -1 : best;
}

struct paml_tf_saved_model *
paml_tf_saved_model_read(const char *folder, struct paml_error *err)
{
    struct paml_tf_saved_model *model = calloc(1, sizeof(*model));
    size_t length = strlen(folder) + sizeof("/saved_model.pb"), size = 0;
    char *path = malloc(length), *bytes = NULL;
    struct wire whole, graph = {NULL, NULL};
    int found;

    if (model == NULL || path == NULL) {
        paml_fail(err, PAML_ERR_MEMORY, "no memory to read %.400s", folder);
        goto fail;
    }
    snprintf(path, length, "%s/saved_model.pb", folder);
    bytes = read_file(path, &size, err);
    if (bytes == NULL) {
        goto fail;
    }
    whole = (struct wire){bytes, bytes + size};
    found = choose_graph(whole, &graph);
    if (found == 0) {
        paml_fail(err, PAML_ERR_LOAD, "%.400s: holds no graph", path);
        goto fail;
    }
    if (found < 0 || paml_tf_meta_graph_read(graph, model) < 0) {
        paml_fail(err, model->arena.failed ? PAML_ERR_MEMORY : PAML_ERR_LOAD,
                  "%.400s: %s", path,
                  model->arena.failed ? "no memory to read it"
                                      : "is damaged or truncated");
        goto fail;
    }
    free(bytes);
    free(path);
    return model;

fail:
    free(bytes);
    free(path);
    paml_tf_saved_model_free(model);
    return NULL;
}

void
paml_tf_saved_model_free(struct paml_tf_saved_model *model)
{
    if (model != NULL) {
        paml_tf_arena_free(&model->arena);
        free(model);
    }
}

/* "serving_default, train_step" */
static void
names_text(const struct paml_tf_saved_model *model, char *text, size_t size)
{
    size_t length = 0;

    snprintf(text, size, "none");
    for (uint32_t i = 0; i < model->n_signatures && length < size; i++) {
        length += (size_t)snprintf(text + length, size - length, "%s%s",
                                   i > 0 ? ", " : "", model->signatures[i].entry.name);
    }
}

static const struct paml_tf_signature *
find_signature(const struct paml_tf_saved_model *model, const char *name)
{
    for (uint32_t i = 0; i < model->n_signatures; i++) {
        if (strcmp(model->signatures[i].entry.name, name) == 0) {
            return &model->signatures[i];
        }
    }
    return NULL;
}

const struct paml_tf_signature *
paml_tf_saved_model_find(const struct paml_tf_saved_model *model, const char *name,
                         struct paml_error *err)
{
    const struct paml_tf_signature *found;
    char names[512];

    found = find_signature(model, name != NULL ? name : "serving_default");
    if (found == NULL && name == NULL && model->n_signatures == 1) {
        found = &model->signatures[0];
    }
    if (found == NULL) {
        names_text(model, names, sizeof(names));
        paml_fail(err, PAML_ERR_LOAD,
                  "the SavedModel has no signature '%.100s'; it has: %s (entry= names "
                  "one)",
                  name != NULL ? name : "serving_default", names);
        return NULL;
    }
    if (found->refusal != NULL) {
        paml_fail(err, PAML_ERR_LOAD, "signature '%.100s' can't be served: %.600s",
                  found->entry.name, found->refusal);
        return NULL;
    }
    return found;
}
