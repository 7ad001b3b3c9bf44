/* Whether a run may leave something behind: does a signature change state, and may it
 * keep the memory of its inputs?
 *
 * An input that is assigned to a variable, or put into a queue, is not copied by
 * TensorFlow: the variable points to the caller's memory from then on. So inputs are
 * lent only to signatures that can't do that. What can is known from the operations
 * that a signature reaches, through the functions it calls: only one that TensorFlow
 * marks as stateful, or that takes a resource, outlives the run, and of these the ones
 * that are known to keep nothing are named here. One that isn't known is taken to keep.
 */
#ifndef PAML_TF_KEEPING_H
#define PAML_TF_KEEPING_H

#include <stdbool.h>

#include "saved_model.h"
#include "wire.h"

struct paml_tf_keeping;

/* Reads a GraphDef, whose bytes must outlive this; the rest is in the arena. NULL: it
   is damaged, or memory ran out. */
struct paml_tf_keeping *paml_tf_keeping_new(struct paml_tf_arena *arena,
                                            struct wire graph);

/* Sets signature->keeps_inputs. -1: the graph is damaged, or memory ran out. */
int paml_tf_keeping_find(struct paml_tf_keeping *keeping,
                         struct paml_tf_signature *signature, bool *changes_state);

#endif
