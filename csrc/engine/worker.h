/* A worker thread: opens one instance, serves the model's queue with it, closes it.
 *
 * It never takes the GIL, never touches a Python object, and holds no lock while the
 * backend runs. */
#ifndef PAML_WORKER_H
#define PAML_WORKER_H

#include "model.h"

void paml_worker_main(void *worker);

/* What workers tell their model (model.c). */
void paml_model_failed(struct paml_model *model, const struct paml_error *error);
void paml_model_note_failure(struct paml_model *model, const struct paml_error *error);
/* The worker's device is lost, and with it all workers on it: nothing that they haven't
   begun is theirs any more. */
void paml_model_lost(struct paml_worker *worker, const struct paml_error *error);
void paml_model_opened(struct paml_model *model);
void paml_model_left(struct paml_model *model, int count, bool on_worker);

#endif
