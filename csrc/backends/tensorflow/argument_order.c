#include "argument_order.h"

#include <string.h>

/* Numbers of fields, from TensorFlow's saved_object_graph.proto. */
enum { OBJECTS_NODE = 1, NODE_BARE_FUNCTION = 8 };
enum { FUNCTION_ARGUMENT = 2, FUNCTION_POSITIONAL = 3 };

/* More arguments than this are left as they are. */
#define ARGUMENTS_MOST 64

struct order {
    uint32_t places[ARGUMENTS_MOST]; /* of each argument among the items */
};

static struct wire
name_at(const void *items, size_t item_size, uint32_t i)
{
    struct wire name;

    memcpy(&name, (const char *)items + i * item_size, sizeof(name));
    return name;
}

/* 1: the function takes the items by position, in this order. 0: not. -1: damaged. */
static int
order_of_function(struct wire function, const void *items, size_t item_size,
                  uint32_t count, struct order *order)
{
    struct wire_field field;
    uint64_t positional = 0, seen = 0;
    uint32_t arguments = 0;
    int status;

    while ((status = wire_next(&function, &field)) > 0) {
        uint32_t i = 0;

        if (field.number == FUNCTION_POSITIONAL && !field.is_bytes) {
            positional = field.varint;
        }
        if (field.number != FUNCTION_ARGUMENT || !field.is_bytes) {
            continue;
        }
        while (i < count &&
               wire_compare(name_at(items, item_size, i), field.bytes) != 0) {
            i++;
        }
        if (i == count || (seen & (uint64_t)1 << i) != 0) {
            return 0;
        }
        seen |= (uint64_t)1 << i;
        order->places[arguments++] = i;
    }
    return status < 0 ? -1 : arguments == count && positional == count;
}

int
paml_tf_argument_order(struct wire objects, void *items, size_t item_size,
                       uint32_t count)
{
    struct order order, first;
    struct wire_field node, function;
    bool found = false;
    char sorted[ARGUMENTS_MOST * 64];
    int status;

    if (count < 2 || count > ARGUMENTS_MOST || item_size > 64) {
        return 0;
    }
    while ((status = wire_next(&objects, &node)) > 0) {
        struct wire object = node.bytes;

        if (node.number != OBJECTS_NODE || !node.is_bytes) {
            continue;
        }
        while ((status = wire_next(&object, &function)) > 0) {
            if (function.number != NODE_BARE_FUNCTION || !function.is_bytes) {
                continue;
            }
            status = order_of_function(function.bytes, items, item_size, count, &order);
            if (status < 0) {
                return -1;
            }
            if (status == 0) {
                continue;
            }
            if (found && memcmp(order.places, first.places,
                                count * sizeof(order.places[0])) != 0) {
                return 0; /* two opinions are none */
            }
            first = order;
            found = true;
        }
        if (status < 0) {
            return -1;
        }
    }
    for (uint32_t i = 0; found && i < count; i++) {
        memcpy(sorted + i * item_size, (char *)items + first.places[i] * item_size,
               item_size);
    }
    if (found) {
        memcpy(items, sorted, count * item_size);
    }
    return status;
}
