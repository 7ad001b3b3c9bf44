/* The inputs of a run as TensorFlow's tensors.
 *
 * A tensor in aligned, contiguous host memory is lent as it is, to signatures that
 * can't keep it (keeping.h); others are copied into buffers that are used again in the
 * next run. Either way TensorFlow says when it is done with the memory, through a
 * block's count of references; after a run that should be so, and a buffer that isn't
 * given back (a variable that was assigned from it) stays TensorFlow's, which frees it
 * then.
 *
 * Owner: an instance, its thread only; TensorFlow may give a block back on any thread.
 */
#ifndef PAML_TF_INPUTS_H
#define PAML_TF_INPUTS_H

#include "backend.h"
#include "library.h"
#include "saved_model.h"

struct paml_tf_block;

struct paml_tf_input {
    const struct paml_spec *spec;
    int type; /* TF_DataType */
    bool may_lend;
    struct paml_tf_block *loan, *buffer; /* used again and again; NULL: none yet */
    struct paml_tf_block *block;         /* of this run: one of them, or NULL */
};

/* Makes the tensor of a top-level value of a run. NULL: see `err`. */
TF_Tensor *paml_tf_input_new(struct paml_tf_input *input,
                             const struct paml_value *value, struct paml_error *err);

/* After a run, when its tensor is deleted. PAML_OK, or PAML_ERR_BACKEND: TensorFlow
   still has memory that was lent to it. */
int paml_tf_input_end(struct paml_tf_input *input, struct paml_error *err);

/* Before the instance goes. */
void paml_tf_input_clear(struct paml_tf_input *input);

#endif
