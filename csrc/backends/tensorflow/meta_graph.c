#include "meta_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "argument_order.h"
#include "dtypes.h"
#include "numbers.h"
#include "keeping.h"

/* Numbers of fields, from TensorFlow's meta_graph.proto, saver.proto and
   tensor_shape.proto. */
enum { GRAPH_INFO = 1, GRAPH_GRAPH = 2, GRAPH_SAVER = 3, GRAPH_SIGNATURES = 5 };
enum { GRAPH_OBJECTS = 7 };
enum { INFO_TAGS = 4 };
enum { MAP_KEY = 1, MAP_VALUE = 2 };
enum { SIGNATURE_INPUTS = 1, SIGNATURE_OUTPUTS = 2 };
enum { TENSOR_NAME = 1, TENSOR_TYPE = 2, TENSOR_SHAPE = 3, TENSOR_SPARSE = 4 };
enum { TENSOR_COMPOSITE = 5 };
enum { SHAPE_DIM = 2, SHAPE_UNKNOWN_RANK = 3, DIM_SIZE = 1 };
enum { SAVER_PATH = 1, SAVER_SAVE = 2, SAVER_RESTORE = 3 };

struct named {
    struct wire name, value;
};

/* What a reading works with. */
struct reading {
    struct paml_tf_saved_model *model;
    struct paml_tf_arena *arena;
    struct wire objects; /* empty where there are none */
    struct paml_tf_keeping *keeping;
};

/* How many fields of that number a message has, all of them messages or strings. -1:
   it is damaged. */
static int64_t
count_fields(struct wire message, uint32_t number)
{
    struct wire_field field;
    int64_t count = 0;
    int status;

    while ((status = wire_next(&message, &field)) > 0) {
        if (field.number == number) {
            if (!field.is_bytes) {
                return -1;
            }
            count++;
        }
    }
    return status < 0 ? -1 : count;
}

/* The last field of that number, as protobuf has it; empty where there is none. -1: it
   is damaged. */
static int
find_field(struct wire message, uint32_t number, struct wire *found)
{
    struct wire_field field;
    int status;

    *found = (struct wire){NULL, NULL};
    while ((status = wire_next(&message, &field)) > 0) {
        if (field.number == number) {
            if (!field.is_bytes) {
                return -1;
            }
            *found = field.bytes;
        }
    }
    return status;
}

/* --- tags --- */

int
paml_tf_meta_graph_rank(struct wire graph)
{
    struct wire info;
    struct wire_field field;
    int status, tags = 0;
    bool serves = false;

    if (find_field(graph, GRAPH_INFO, &info) < 0) {
        return -1;
    }
    while ((status = wire_next(&info, &field)) > 0) {
        if (field.number == INFO_TAGS && field.is_bytes) {
            tags++;
            serves = serves || wire_equals(field.bytes, "serve");
        }
    }
    return status < 0 ? -1 : !serves ? 1 : tags == 1 ? 3 : 2;
}

static int
read_tags(const struct reading *reading, struct wire graph)
{
    struct wire info;
    struct wire_field field;
    const char **tags;
    int64_t count;

    if (find_field(graph, GRAPH_INFO, &info) < 0 ||
        (count = count_fields(info, INFO_TAGS)) < 0 ||
        (tags = paml_tf_arena_new(reading->arena, (size_t)count, sizeof(*tags))) ==
            NULL) {
        return -1;
    }
    reading->model->tags = tags;
    while (wire_next(&info, &field) > 0) {
        if (field.number == INFO_TAGS) {
            tags[reading->model->n_tags++] = paml_tf_arena_text(
                reading->arena, field.bytes.at, wire_size(field.bytes));
        }
    }
    return reading->arena->failed ? -1 : 0;
}

/* --- inputs and outputs --- */

/* "operation:index" */
static void
read_place(const struct reading *reading, struct wire name, struct paml_tf_place *place)
{
    char *text = paml_tf_arena_text(reading->arena, name.at, wire_size(name));
    char *colon = text != NULL ? strrchr(text, ':') : NULL;

    if (colon != NULL) {
        *colon = '\0';
        place->index = atoi(colon + 1);
    }
    place->operation = text;
}

static int
read_shape(const struct reading *reading, struct wire shape, struct paml_spec *spec)
{
    struct wire again = shape;
    struct wire_field field, inner;
    int64_t *sizes, rank = 0;
    int status;

    while ((status = wire_next(&again, &field)) > 0) {
        if (field.number == SHAPE_UNKNOWN_RANK && field.varint != 0) {
            spec->ndim = -1;
            return 0;
        }
        rank += field.number == SHAPE_DIM && field.is_bytes;
    }
    if (status < 0 || rank > PAML_MAX_RANK) {
        return -1;
    }
    sizes = paml_tf_arena_new(reading->arena, (size_t)rank, sizeof(*sizes));
    if (sizes == NULL) {
        return -1;
    }
    spec->ndim = 0;
    spec->shape = sizes;
    while (wire_next(&shape, &field) > 0) {
        struct wire dim = field.bytes;

        if (field.number != SHAPE_DIM || !field.is_bytes) {
            continue;
        }
        while ((status = wire_next(&dim, &inner)) > 0) {
            if (inner.number == DIM_SIZE) {
                sizes[spec->ndim] = (int64_t)inner.varint;
            }
        }
        if (status < 0) {
            return -1;
        }
        if (sizes[spec->ndim] < 0) {
            sizes[spec->ndim] = -1;
        }
        spec->ndim++;
    }
    return 0;
}

/* Which Python kinds a tensor of that type and shape may come as. */
static uint32_t
kinds_of(int type, DLDataType dtype, int32_t ndim)
{
    uint32_t kinds = PAML_KIND_BIT(PAML_TENSOR);

    if (ndim > 0) {
        return kinds;
    }
    if (type == PAML_TF_STRING) {
        return kinds | PAML_KIND_BIT(PAML_STRING) | PAML_KIND_BIT(PAML_BYTES);
    }
    return kinds | paml_number_kinds(dtype);
}

static void
refuse(const struct reading *reading, struct paml_tf_signature *signature,
       const char *what, const char *name, const char *why)
{
    char text[256];

    snprintf(text, sizeof(text), "%s '%.100s' is %s", what, name, why);
    signature->refusal = paml_tf_arena_text(reading->arena, text, strlen(text));
}

/* One TensorInfo. */
static int
read_tensor(const struct reading *reading, const struct named *named, bool is_input,
            struct paml_tf_signature *signature, struct paml_spec *spec,
            struct paml_tf_place *place)
{
    const char *what = is_input ? "input" : "output";
    struct wire tensor = named->value;
    struct wire_field field;
    int status;

    spec->name =
        paml_tf_arena_text(reading->arena, named->name.at, wire_size(named->name));
    spec->ndim = -1;
    spec->batch_axis = -1;
    if (spec->name == NULL) {
        return -1;
    }
    while ((status = wire_next(&tensor, &field)) > 0) {
        if (field.number == TENSOR_NAME && field.is_bytes) {
            read_place(reading, field.bytes, place);
        } else if (field.number == TENSOR_TYPE && !field.is_bytes) {
            place->type = (int)field.varint;
        } else if (field.number == TENSOR_SHAPE && field.is_bytes) {
            if (read_shape(reading, field.bytes, spec) < 0) {
                return -1;
            }
        } else if (field.number == TENSOR_SPARSE || field.number == TENSOR_COMPOSITE) {
            refuse(reading, signature, what, spec->name,
                   "no dense tensor (sparse and ragged ones must be made inside)");
        }
    }
    if (status < 0 || reading->arena->failed) {
        return -1;
    }
    spec->type = paml_tf_type_name(place->type);
    spec->dtype = paml_tf_dtype_of(place->type);
    spec->kinds = is_input ? kinds_of(place->type, spec->dtype, spec->ndim)
                           : PAML_KIND_BIT(PAML_TENSOR);
    if (spec->dtype.bits == 0 && signature->refusal == NULL) {
        char why[80];
        snprintf(why, sizeof(why), "a %s, which does not exist outside TensorFlow",
                 spec->type);
        refuse(reading, signature, what, spec->name, why);
    }
    if (place->operation == NULL && signature->refusal == NULL) {
        refuse(reading, signature, what, spec->name, "at no place of the graph");
    }
    return 0;
}

/* The "loss" first, the others by name, and output_10 after output_2. */
static int
compare_outputs(const void *a, const void *b)
{
    const struct paml_spec *left = a, *right = b;
    bool left_is_loss = strcmp(left->name, "loss") == 0;
    bool right_is_loss = strcmp(right->name, "loss") == 0;

    return left_is_loss != right_is_loss ? right_is_loss - left_is_loss
                                         : strverscmp(left->name, right->name);
}

static int
compare_named(const void *a, const void *b)
{
    return wire_compare(((const struct named *)a)->name,
                        ((const struct named *)b)->name);
}

/* The items of a map<string, message> field, by name; one given twice is damage. */
static struct named *
read_map(const struct reading *reading, struct wire message, uint32_t number,
         uint32_t *count)
{
    int64_t fields = count_fields(message, number);
    struct wire_field field, inner;
    struct named *items;

    if (fields < 0 || fields > UINT16_MAX ||
        (items = paml_tf_arena_new(reading->arena, (size_t)fields, sizeof(*items))) ==
            NULL) {
        return NULL;
    }
    *count = 0;
    while (wire_next(&message, &field) > 0) {
        struct wire item = field.bytes;
        int status;

        if (field.number != number) {
            continue;
        }
        while ((status = wire_next(&item, &inner)) > 0) {
            if (inner.number == MAP_KEY && inner.is_bytes) {
                items[*count].name = inner.bytes;
            } else if (inner.number == MAP_VALUE && inner.is_bytes) {
                items[*count].value = inner.bytes;
            }
        }
        if (status < 0 || wire_has_nul(items[*count].name)) {
            return NULL;
        }
        ++*count;
    }
    qsort(items, *count, sizeof(*items), compare_named);
    for (uint32_t i = 1; i < *count; i++) {
        if (wire_compare(items[i - 1].name, items[i].name) == 0) {
            return NULL;
        }
    }
    return items;
}

/* Reads the inputs or outputs. -1: damaged. */
static int
read_tensors(const struct reading *reading, struct wire message, bool is_input,
             struct paml_tf_signature *signature)
{
    struct paml_entry *entry = &signature->entry;
    struct paml_tf_place *places;
    struct paml_spec *specs;
    struct named *items;
    uint32_t count;

    items = read_map(reading, message, is_input ? SIGNATURE_INPUTS : SIGNATURE_OUTPUTS,
                     &count);
    if (items == NULL) {
        return -1;
    }
    specs = paml_tf_arena_new(reading->arena, count, sizeof(*specs));
    places = paml_tf_arena_new(reading->arena, count, sizeof(*places));
    if (specs == NULL || places == NULL) {
        return -1;
    }
    if (is_input && paml_tf_argument_order(reading->objects, &items[0].name,
                                           sizeof(*items), count) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (read_tensor(reading, &items[i], is_input, signature, &specs[i],
                        &places[i]) < 0) {
            return -1;
        }
    }
    if (is_input) {
        entry->n_inputs = count;
        entry->inputs = specs;
        signature->inputs = places;
        return 0;
    }
    /* Places go along with their specs. */
    for (uint32_t i = 1; i < count; i++) {
        for (uint32_t j = i; j > 0 && compare_outputs(&specs[j], &specs[j - 1]) < 0;
             j--) {
            struct paml_spec spec = specs[j];
            struct paml_tf_place place = places[j];
            specs[j] = specs[j - 1];
            places[j] = places[j - 1];
            specs[j - 1] = spec;
            places[j - 1] = place;
        }
    }
    entry->n_outputs = count;
    entry->outputs = specs;
    signature->outputs = places;
    return 0;
}

/* --- signatures --- */

static int
read_signature(const struct reading *reading, const struct named *named,
               struct paml_tf_signature *signature)
{
    signature->entry.name =
        paml_tf_arena_text(reading->arena, named->name.at, wire_size(named->name));
    if (signature->entry.name == NULL ||
        read_tensors(reading, named->value, true, signature) < 0 ||
        read_tensors(reading, named->value, false, signature) < 0) {
        return -1;
    }
    if (signature->entry.n_outputs == 0 && signature->refusal == NULL) {
        signature->refusal = "it has no outputs";
    }
    if (signature->refusal == NULL) {
        bool changes_state;
        if (paml_tf_keeping_find(reading->keeping, signature, &changes_state) < 0) {
            return -1;
        }
        signature->entry.stateful = changes_state;
    }
    return 0;
}

/* Signatures of TensorFlow's own, for its loader. */
static bool
is_internal(struct wire name)
{
    static const char prefix[] = "__saved_model_";

    return wire_size(name) >= sizeof(prefix) - 1 &&
           memcmp(name.at, prefix, sizeof(prefix) - 1) == 0;
}

static int
read_signatures(const struct reading *reading, struct wire graph)
{
    struct paml_tf_saved_model *model = reading->model;
    struct named *items;
    uint32_t count;

    items = read_map(reading, graph, GRAPH_SIGNATURES, &count);
    if (items == NULL) {
        return -1;
    }
    model->signatures =
        paml_tf_arena_new(reading->arena, count, sizeof(*model->signatures));
    for (uint32_t i = 0; model->signatures != NULL && i < count; i++) {
        if (!is_internal(items[i].name) &&
            read_signature(reading, &items[i],
                           &model->signatures[model->n_signatures++]) < 0) {
            return -1;
        }
    }
    return reading->arena->failed ? -1 : 0;
}

static int
read_saver(const struct reading *reading, struct wire graph)
{
    struct paml_tf_saved_model *model = reading->model;
    struct wire saver;
    struct wire_field field;
    int status;

    if (find_field(graph, GRAPH_SAVER, &saver) < 0) {
        return -1;
    }
    while ((status = wire_next(&saver, &field)) > 0) {
        if (!field.is_bytes) {
            continue;
        }
        if (field.number == SAVER_PATH) {
            read_place(reading, field.bytes, &model->save_path);
        } else if (field.number == SAVER_SAVE) {
            read_place(reading, field.bytes, &model->save);
        } else if (field.number == SAVER_RESTORE) {
            model->restore = paml_tf_arena_text(reading->arena, field.bytes.at,
                                                wire_size(field.bytes));
        }
    }
    return status < 0 || reading->arena->failed ? -1 : 0;
}

int
paml_tf_meta_graph_read(struct wire graph, struct paml_tf_saved_model *model)
{
    struct reading reading = {.model = model, .arena = &model->arena};
    struct wire nodes;
    int status = -1;

    if (find_field(graph, GRAPH_GRAPH, &nodes) < 0 ||
        find_field(graph, GRAPH_OBJECTS, &reading.objects) < 0 ||
        (reading.keeping = paml_tf_keeping_new(reading.arena, nodes)) == NULL) {
        return -1;
    }
    if (read_tags(&reading, graph) == 0 && read_saver(&reading, graph) == 0) {
        status = read_signatures(&reading, graph);
    }
    return status;
}
