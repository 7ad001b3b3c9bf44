#include "checkpoint.h"

#include <string.h>

#include "dtypes.h"
#include "errors.h"
#include "strings_in.h"

/* The session whose variables are meant: the first that was made. */
static const struct paml_tf_session *
session_of(struct paml_tf_program *program, struct paml_error *err)
{
    const struct paml_tf_session *session;

    pthread_mutex_lock(&program->lock);
    session = program->sessions;
    while (session != NULL && session->next != NULL) {
        session = session->next;
    }
    pthread_mutex_unlock(&program->lock);
    return session != NULL
               ? session
               : paml_tf_program_session(program, (DLDevice){kDLCPU, 0}, 1, err);
}

/* Runs the saver with the path: `fetched` is an output of it, or `target` an operation.
   Thread: any. GIL: not held. Locks: none while it runs. */
static int
run_saver(struct paml_tf_program *program, bool saves, const char *prefix,
          struct paml_error *err)
{
    const struct paml_tf_saved_model *model = paml_tf_program_read(program, err);
    const struct paml_tf_session *session;
    struct paml_string string = {prefix, strlen(prefix)};
    DLTensor scalar = {.data = &string,
                       .device = {kDLCPU, 0},
                       .dtype = paml_tf_dtype_of(PAML_TF_STRING)};
    TF_Output path, fetched = {NULL, 0};
    const TF_Operation *target = NULL;
    TF_Tensor *input, *output = NULL;
    TF_Status *status;
    int code = PAML_OK;

    if (model == NULL || (session = session_of(program, err)) == NULL) {
        return err->code;
    }
    path.operation = fetched.operation = NULL;
    if (model->save_path.operation != NULL && model->save.operation != NULL &&
        model->restore != NULL) {
        path.operation =
            tf.GraphOperationByName(session->graph, model->save_path.operation);
        path.index = model->save_path.index;
        fetched.operation =
            tf.GraphOperationByName(session->graph, model->save.operation);
        fetched.index = model->save.index;
        target = tf.GraphOperationByName(session->graph, model->restore);
    }
    if (path.operation == NULL || fetched.operation == NULL || target == NULL) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "%.400s: the SavedModel has no operations that save and "
                         "restore its variables",
                         program->folder);
    }
    input = paml_tf_strings_in(&scalar);
    if (input == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a checkpoint's path");
    }
    status = tf.NewStatus();
    tf.SessionRun(session->session, NULL, &path, &input, 1, &fetched, &output,
                  saves ? 1 : 0, &target, saves ? 0 : 1, NULL, status);
    if (tf.GetCode(status) != TF_OK) {
        code = paml_tf_fail(status, PAML_ERR_BACKEND, prefix, err);
    } else if (output != NULL) {
        tf.DeleteTensor(output);
    }
    tf.DeleteTensor(input);
    tf.DeleteStatus(status);
    return code;
}

int
paml_tf_save(struct paml_tf_program *program, const char *prefix,
             struct paml_error *err)
{
    return run_saver(program, true, prefix, err);
}

int
paml_tf_restore(struct paml_tf_program *program, const char *prefix,
                struct paml_error *err)
{
    return run_saver(program, false, prefix, err);
}
