/* One worker's way into a session: where a signature's inputs and outputs are in its
 * graph, and what the worker makes its inputs in. Owner: the worker, and its thread
 * only. */
#ifndef PAML_TF_INSTANCE_H
#define PAML_TF_INSTANCE_H

#include "inputs.h"
#include "program.h"

struct paml_tf_instance;

/* NULL: see `err`. Both outlive the instance. */
struct paml_tf_instance *paml_tf_instance_new(const struct paml_tf_session *session,
                                              const struct paml_tf_signature *signature,
                                              struct paml_error *err);
int paml_tf_instance_run(struct paml_tf_instance *instance, struct paml_run *run,
                         struct paml_error *err);
void paml_tf_instance_free(struct paml_tf_instance *instance);

#endif
