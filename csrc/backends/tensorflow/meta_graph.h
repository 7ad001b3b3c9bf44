/* One MetaGraphDef of a SavedModel: tags, signatures, and the saver's operations. */
#ifndef PAML_TF_META_GRAPH_H
#define PAML_TF_META_GRAPH_H

#include "saved_model.h"
#include "wire.h"

/* How well it suits serving: 3 is tagged "serve" alone, 2 "serve" and others, 1 isn't.
   -1: it is damaged. */
int paml_tf_meta_graph_rank(struct wire graph);

/* Fills the model in. -1: it is damaged, or memory ran out (see the model's arena). */
int paml_tf_meta_graph_read(struct wire graph, struct paml_tf_saved_model *model);

#endif
