/* What a SavedModel says about itself: its signatures, read from saved_model.pb.
 *
 * Owner: whoever read it; it is one tree of memory, freed whole, and read-only.
 */
#ifndef PAML_TF_SAVED_MODEL_H
#define PAML_TF_SAVED_MODEL_H

#include <stdbool.h>

#include "arena.h"
#include "backend.h"

/* An input or output of a signature: an output of an operation of the graph. */
struct paml_tf_place {
    const char *operation;
    int index;
    int type; /* TF_DataType */
};

struct paml_tf_signature {
    struct paml_entry entry;
    const struct paml_tf_place *inputs, *outputs; /* as the entry has them */
    const char *refusal; /* why it can't be served; NULL: it can */
    bool keeps_inputs;   /* a run may leave its inputs' memory in TensorFlow's hands */
};

struct paml_tf_saved_model {
    struct paml_tf_arena arena;
    uint32_t n_signatures, n_tags;
    struct paml_tf_signature *signatures; /* in the order of their names */
    const char *const *tags;              /* of the graph that is served */
    /* The operations that save and restore the variables; NULL where there are none. */
    struct paml_tf_place save_path, save;
    const char *restore;
};

/* NULL: see `err`, a PAML_ERR_LOAD or PAML_ERR_MEMORY. */
struct paml_tf_saved_model *paml_tf_saved_model_read(const char *folder,
                                                     struct paml_error *err);
void paml_tf_saved_model_free(struct paml_tf_saved_model *model);

/* The signature of that name; of no name: serving_default, or the only one there is.
   NULL: see `err`. */
const struct paml_tf_signature *
paml_tf_saved_model_find(const struct paml_tf_saved_model *model, const char *name,
                         struct paml_error *err);

#endif
