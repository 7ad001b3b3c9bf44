/* In which order a signature's inputs come by position.
 *
 * A signature is a map, so it has none. The function that it was made from often has:
 * the object graph holds it as a "bare concrete function", with the names of its
 * arguments as its author wrote them. Keras's models have the order of their inputs
 * there.
 */
#ifndef PAML_TF_ARGUMENT_ORDER_H
#define PAML_TF_ARGUMENT_ORDER_H

#include <stdint.h>

#include "wire.h"

/* Sorts `count` items of `item_size` bytes, each of which begins with its name, as the
   functions in `objects` (a SavedObjectGraph, or nothing) that take just those names
   by position have them; leaves them as they are where there is none or where two
   disagree. -1: `objects` is damaged. */
int paml_tf_argument_order(struct wire objects, void *items, size_t item_size,
                           uint32_t count);

#endif
