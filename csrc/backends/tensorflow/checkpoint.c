#include "checkpoint.h"

#include <string.h>

#include "dtypes.h"
#include "errors.h"
#include "strings_in.h"

/* The first that was made, or of those on `device` the only one; NULL: there is none.
   Thread: any. Locks: takes the program's. */
static const struct paml_tf_session *
find_session(struct paml_tf_program *program, const DLDevice *device)
{
    const struct paml_tf_session *found = NULL;

    pthread_mutex_lock(&program->lock);
    for (const struct paml_tf_session *session = program->sessions; session != NULL;
         session = session->next) {
        if (device == NULL || (session->device.device_type == device->device_type &&
                               session->device.device_id == device->device_id)) {
            found = session; /* the list begins with the last */
        }
    }
    pthread_mutex_unlock(&program->lock);
    return found;
}

/* At least one session: on the CPU where there is none. PAML_OK or see `err`.
   Thread: any. GIL: not held. Locks: takes the program's. */
static int
need_session(struct paml_tf_program *program, struct paml_error *err)
{
    if (find_session(program, NULL) == NULL &&
        paml_tf_program_session(program, (DLDevice){kDLCPU, 0}, 1, err) == NULL) {
        return err->code;
    }
    return PAML_OK;
}

/* Runs the saver with the path: `fetched` is an output of it, or `target` an operation.
   Thread: any. GIL: not held. Locks: none while it runs. */
static int
run_saver(struct paml_tf_program *program, const struct paml_tf_session *session,
          bool saves, const char *prefix, struct paml_error *err)
{
    const struct paml_tf_saved_model *model = program->model;
    struct paml_string string = {prefix, strlen(prefix)};
    DLTensor scalar = {.data = &string,
                       .device = {kDLCPU, 0},
                       .dtype = paml_tf_dtype_of(PAML_TF_STRING)};
    TF_Output path, fetched = {NULL, 0};
    const TF_Operation *target = NULL;
    TF_Tensor *input, *output = NULL;
    TF_Status *status;
    int code = PAML_OK;

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
paml_tf_save(struct paml_tf_program *program, const DLDevice *device,
             const char *prefix, struct paml_error *err)
{
    const struct paml_tf_session *session;
    char text[64];

    if (paml_tf_program_read(program, err) == NULL ||
        ((device == NULL || device->device_type == kDLCPU) &&
         need_session(program, err) != PAML_OK)) {
        return err->code;
    }
    session = find_session(program, device);
    if (session == NULL) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "%.400s: no model of this program runs on %s, whose variables "
                         "are to be saved",
                         program->folder,
                         paml_device_name(*device, text, sizeof(text)));
    }
    return run_saver(program, session, true, prefix, err);
}

int
paml_tf_restore(struct paml_tf_program *program, const char *prefix,
                struct paml_error *err)
{
    const struct paml_tf_session *session;
    int code = PAML_OK;

    if (paml_tf_program_read(program, err) == NULL ||
        need_session(program, err) != PAML_OK) {
        return err->code;
    }
    pthread_mutex_lock(&program->lock);
    session = program->sessions;
    pthread_mutex_unlock(&program->lock);
    /* What is in the list stays, and new ones come before it. */
    for (; session != NULL && code == PAML_OK; session = session->next) {
        code = run_saver(program, session, false, prefix, err);
    }
    return code;
}
