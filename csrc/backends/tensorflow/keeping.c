#include "keeping.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

/* Numbers of fields, from TensorFlow's graph.proto, node_def.proto, function.proto,
   attr_value.proto and op_def.proto. */
enum { GRAPH_NODE = 1, GRAPH_LIBRARY = 2, LIBRARY_FUNCTION = 1 };
enum { NODE_NAME = 1, NODE_OPERATION = 2, NODE_INPUT = 3, NODE_ATTRIBUTE = 5 };
enum { FUNCTION_SIGNATURE = 1, FUNCTION_NODE = 3 };
enum { MAP_VALUE = 2, VALUE_LIST = 1, VALUE_FUNCTION = 10, LIST_FUNCTION = 9 };
enum { FUNCTION_NAME = 1 };
enum { OPERATIONS_OPERATION = 1, OPERATION_NAME = 1, OPERATION_INPUT = 2 };
enum { OPERATION_STATEFUL = 17, INPUT_TYPE = 3, INPUT_IS_REFERENCE = 16 };
#define TYPE_RESOURCE 20

/* --- operations --- */

/* They take a resource, or are stateful, and keep no input. */
static const char *const harmless[] = {
    "Assert",
    "Case",
    "CheckNumerics",
    "CheckNumericsV2",
    "DisableCopyOnRead",
    "HashTable",
    "HashTableV2",
    "If",
    "IsVariableInitialized",
    "LookupTableFind",
    "LookupTableFindV2",
    "LookupTableSize",
    "LookupTableSizeV2",
    "Multinomial",
    "NonDeterministicInts",
    "ParameterizedTruncatedNormal",
    "Print",
    "PrintV2",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "ReadVariableOp",
    "RefIdentity",
    "ResourceGather",
    "ResourceGatherNd",
    "StatefulPartitionedCall",
    "StatelessRandomGetAlg",
    "TruncatedNormal",
    "VarHandleOp",
    "VarIsInitializedOp",
    "Variable",
    "VariableShape",
    "VariableV2",
    "While",
};

/* Their resources don't outlive the run, though what is put in may be kept in it. */
static const char *const of_one_run[] = {"Stack", "TensorArray"};

enum effect { NONE, KEEPS, CHANGES_STATE };

/* The operations that do more than compute, by name. */
static struct {
    pthread_mutex_t lock;
    TF_Buffer *list; /* the names are in it */
    struct operation {
        struct wire name;
        enum effect effect;
    } *rows;
    size_t count;
} operations = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int
compare_names(const void *a, const void *b)
{
    return wire_compare(*(const struct wire *)a, *(const struct wire *)b);
}

static bool
is_harmless(struct wire name)
{
    for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++) {
        if (wire_equals(name, harmless[i])) {
            return true;
        }
    }
    return false;
}

static bool
is_of_one_run(struct wire name)
{
    for (size_t i = 0; i < sizeof(of_one_run) / sizeof(of_one_run[0]); i++) {
        size_t size = strlen(of_one_run[i]);
        if (wire_size(name) >= size && memcmp(name.at, of_one_run[i], size) == 0) {
            return true;
        }
    }
    return false;
}

/* What an OpDef says. */
static struct operation
read_operation(struct wire message)
{
    struct operation operation = {.effect = NONE};
    bool stateful = false, takes_resource = false;
    struct wire_field field, inner;

    while (wire_next(&message, &field) > 0) {
        struct wire argument = field.bytes;

        if (field.number == OPERATION_NAME && field.is_bytes) {
            operation.name = field.bytes;
        } else if (field.number == OPERATION_STATEFUL) {
            stateful = field.varint != 0;
        } else if (field.number == OPERATION_INPUT && field.is_bytes) {
            while (wire_next(&argument, &inner) > 0) {
                takes_resource =
                    takes_resource ||
                    (inner.number == INPUT_TYPE && inner.varint == TYPE_RESOURCE) ||
                    (inner.number == INPUT_IS_REFERENCE && inner.varint != 0);
            }
        }
    }
    if ((stateful || takes_resource) && !is_harmless(operation.name)) {
        operation.effect =
            takes_resource && !is_of_one_run(operation.name) ? CHANGES_STATE : KEEPS;
    }
    return operation;
}

/* Fills the table, once a process; it is never freed. -1: memory ran out.
   Thread: any. Locks: takes the table's. */
static int
operations_read(void)
{
    TF_Buffer *list;
    struct wire message, again;
    struct wire_field field;
    size_t count = 0;
    int status = 0;

    pthread_mutex_lock(&operations.lock);
    if (operations.rows != NULL) {
        goto done;
    }
    list = tf.GetAllOpList();
    if (list == NULL) {
        status = -1;
        goto done;
    }
    message.at = list->data;
    message.end = message.at + list->length;
    again = message;
    while (wire_next(&again, &field) > 0) {
        count += field.number == OPERATIONS_OPERATION && field.is_bytes;
    }
    operations.rows = calloc(count + 1, sizeof(*operations.rows));
    if (operations.rows == NULL) {
        tf.DeleteBuffer(list);
        status = -1;
        goto done;
    }
    operations.list = list;
    while (wire_next(&message, &field) > 0) {
        if (field.number == OPERATIONS_OPERATION && field.is_bytes) {
            operations.rows[operations.count++] = read_operation(field.bytes);
        }
    }
    qsort(operations.rows, operations.count, sizeof(*operations.rows), compare_names);

done:
    pthread_mutex_unlock(&operations.lock);
    return status;
}

static enum effect
effect_of(struct wire name)
{
    const struct operation *found = bsearch(&name, operations.rows, operations.count,
                                            sizeof(*operations.rows), compare_names);

    return found != NULL ? found->effect : KEEPS;
}

/* --- the graph --- */

/* A node of the graph, or a function of its library. */
struct part {
    struct wire name; /* first: parts are sorted by it */
    struct wire message;
    uint32_t seen; /* the search that came by last */
};

struct parts {
    struct part *items;
    size_t count;
};

struct paml_tf_keeping {
    struct parts nodes, functions;
    struct part **waiting; /* to be looked at; room for all of them */
    size_t n_waiting;
    uint32_t search;
};

static struct wire
name_of_function(struct wire function)
{
    struct wire name = {NULL, NULL};
    struct wire_field field, inner;

    while (wire_next(&function, &field) > 0) {
        struct wire signature = field.bytes;

        if (field.number != FUNCTION_SIGNATURE || !field.is_bytes) {
            continue;
        }
        while (wire_next(&signature, &inner) > 0) {
            if (inner.number == OPERATION_NAME && inner.is_bytes) {
                name = inner.bytes;
            }
        }
    }
    return name;
}

static struct wire
name_of_node(struct wire node)
{
    struct wire name = {NULL, NULL};
    struct wire_field field;

    while (wire_next(&node, &field) > 0) {
        if (field.number == NODE_NAME && field.is_bytes) {
            name = field.bytes;
        }
    }
    return name;
}

static int
read_parts(struct paml_tf_arena *arena, struct wire message, uint32_t number,
           struct wire (*name_of)(struct wire), struct parts *parts)
{
    struct wire again = message;
    struct wire_field field;
    size_t count = 0;
    int status;

    while ((status = wire_next(&again, &field)) > 0) {
        count += field.number == number && field.is_bytes;
    }
    parts->items = paml_tf_arena_new(arena, count, sizeof(*parts->items));
    if (status < 0 || parts->items == NULL) {
        return -1;
    }
    while (wire_next(&message, &field) > 0) {
        if (field.number == number && field.is_bytes) {
            struct part *part = &parts->items[parts->count++];
            part->message = field.bytes;
            part->name = name_of(field.bytes);
        }
    }
    qsort(parts->items, parts->count, sizeof(*parts->items), compare_names);
    return 0;
}

struct paml_tf_keeping *
paml_tf_keeping_new(struct paml_tf_arena *arena, struct wire graph)
{
    struct paml_tf_keeping *keeping = paml_tf_arena_new(arena, 1, sizeof(*keeping));
    struct wire again = graph, library = {NULL, NULL};
    struct wire_field field;

    if (keeping == NULL || operations_read() < 0 ||
        read_parts(arena, graph, GRAPH_NODE, name_of_node, &keeping->nodes) < 0) {
        return NULL;
    }
    while (wire_next(&again, &field) > 0) {
        if (field.number == GRAPH_LIBRARY && field.is_bytes) {
            library = field.bytes;
        }
    }
    if (read_parts(arena, library, LIBRARY_FUNCTION, name_of_function,
                   &keeping->functions) < 0) {
        return NULL;
    }
    keeping->waiting = paml_tf_arena_new(
        arena, keeping->nodes.count + keeping->functions.count, sizeof(struct part *));
    return keeping->waiting != NULL ? keeping : NULL;
}

/* Puts a part on the list, unless it is unknown or has been there. 1: it is known. */
static int
visit(struct paml_tf_keeping *keeping, struct parts *parts, struct wire name)
{
    struct part *part = bsearch(&name, parts->items, parts->count,
                                sizeof(*parts->items), compare_names);

    if (part == NULL) {
        return 0;
    }
    if (part->seen != keeping->search) {
        part->seen = keeping->search;
        keeping->waiting[keeping->n_waiting++] = part;
    }
    return 1;
}

/* The functions that an attribute's value names. */
static int
visit_functions(struct paml_tf_keeping *keeping, struct wire value, bool in_list)
{
    struct wire_field field, inner;
    int status;

    while ((status = wire_next(&value, &field)) > 0) {
        struct wire message = field.bytes;

        if (!field.is_bytes) {
            continue;
        }
        if (!in_list && field.number == VALUE_LIST) {
            if (visit_functions(keeping, message, true) < 0) {
                return -1;
            }
        } else if (field.number == (in_list ? LIST_FUNCTION : VALUE_FUNCTION)) {
            while ((status = wire_next(&message, &inner)) > 0) {
                if (inner.number == FUNCTION_NAME && inner.is_bytes) {
                    visit(keeping, &keeping->functions, inner.bytes);
                }
            }
            if (status < 0) {
                return -1;
            }
        }
    }
    return status;
}

/* "^node", "node:1", "node" */
static void
visit_input(struct paml_tf_keeping *keeping, struct wire name)
{
    const char *colon;

    if (wire_size(name) > 0 && *name.at == '^') {
        name.at++;
    }
    colon = wire_size(name) > 0 ? memchr(name.at, ':', wire_size(name)) : NULL;
    if (colon != NULL) {
        name.end = colon;
    }
    visit(keeping, &keeping->nodes, name);
}

static int
read_node(struct paml_tf_keeping *keeping, struct wire node, bool in_function,
          enum effect *effect)
{
    struct wire_field field, inner;
    int status;

    while ((status = wire_next(&node, &field)) > 0) {
        struct wire attribute = field.bytes;

        if (!field.is_bytes) {
            continue;
        }
        if (field.number == NODE_OPERATION) {
            /* A function may be called as if it were an operation. */
            if (!visit(keeping, &keeping->functions, field.bytes)) {
                enum effect own = effect_of(field.bytes);
                *effect = own > *effect ? own : *effect;
            }
        } else if (field.number == NODE_INPUT && !in_function) {
            visit_input(keeping, field.bytes);
        } else if (field.number == NODE_ATTRIBUTE) {
            while ((status = wire_next(&attribute, &inner)) > 0) {
                if (inner.number == MAP_VALUE && inner.is_bytes &&
                    visit_functions(keeping, inner.bytes, false) < 0) {
                    return -1;
                }
            }
            if (status < 0) {
                return -1;
            }
        }
    }
    return status;
}

int
paml_tf_keeping_find(struct paml_tf_keeping *keeping,
                     struct paml_tf_signature *signature, bool *changes_state)
{
    enum effect effect = NONE;

    keeping->search++;
    for (uint32_t i = 0; i < signature->entry.n_outputs; i++) {
        const char *name = signature->outputs[i].operation;
        struct wire operation = {name, name + strlen(name)};
        visit(keeping, &keeping->nodes, operation);
    }
    while (keeping->n_waiting > 0) {
        struct part *part = keeping->waiting[--keeping->n_waiting];
        bool is_node = part >= keeping->nodes.items &&
                       part < keeping->nodes.items + keeping->nodes.count;
        struct wire message = part->message;
        struct wire_field field;
        int status = 0;

        if (is_node) {
            status = read_node(keeping, message, false, &effect);
        } else {
            while ((status = wire_next(&message, &field)) > 0) {
                if (field.number == FUNCTION_NODE && field.is_bytes &&
                    read_node(keeping, field.bytes, true, &effect) < 0) {
                    status = -1;
                    break;
                }
            }
        }
        if (status < 0) {
            return -1;
        }
    }
    signature->keeps_inputs = effect != NONE;
    *changes_state = effect == CHANGES_STATE;
    return 0;
}
