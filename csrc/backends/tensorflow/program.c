#include "program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "errors.h"

struct paml_tf_program *
paml_tf_program_new(const char *folder)
{
    size_t size = strlen(folder) + 1;
    struct paml_tf_program *program = calloc(1, sizeof(*program) + size);

    if (program != NULL) {
        atomic_init(&program->refs, 1);
        program->process = getpid();
        pthread_mutex_init(&program->lock, NULL);
        memcpy(program->folder, folder, size);
    }
    return program;
}

/* Thread: any. Locks: none. */
void
paml_tf_program_ref(struct paml_tf_program *program)
{
    atomic_fetch_add_explicit(&program->refs, 1, memory_order_relaxed);
}

static void
session_free(struct paml_tf_session *session)
{
    TF_Status *status = tf.NewStatus();

    if (session->session != NULL) {
        tf.CloseSession(session->session, status);
        tf.DeleteSession(session->session, status);
    }
    if (session->graph != NULL) {
        tf.DeleteGraph(session->graph);
    }
    tf.DeleteStatus(status);
    free(session);
}

/* Thread: any. Locks: none. */
void
paml_tf_program_unref(struct paml_tf_program *program)
{
    struct paml_tf_session *session;

    /* acq_rel: what other holders did happens before the end. */
    if (atomic_fetch_sub_explicit(&program->refs, 1, memory_order_acq_rel) != 1 ||
        program->process != getpid()) {
        return;
    }
    while ((session = program->sessions) != NULL) {
        program->sessions = session->next;
        session_free(session);
    }
    paml_tf_saved_model_free(program->model);
    pthread_mutex_destroy(&program->lock);
    free(program);
}

/* Thread: any. GIL: not held. Locks: takes the program's. */
const struct paml_tf_saved_model *
paml_tf_program_read(struct paml_tf_program *program, struct paml_error *err)
{
    const struct paml_tf_saved_model *model;

    pthread_mutex_lock(&program->lock);
    if (program->model == NULL) {
        program->model = paml_tf_saved_model_read(program->folder, err);
    }
    model = program->model;
    pthread_mutex_unlock(&program->lock);
    return model;
}

/* Whether the session got the GPU that it is for. */
static int
check_device(struct paml_tf_session *session, TF_Status *status, struct paml_error *err)
{
    TF_DeviceList *devices = tf.SessionListDevices(session->session, status);
    char text[64], names[256] = "nothing";
    size_t length = 0;
    int found = 0;

    for (int i = 0; devices != NULL && i < tf.DeviceListCount(devices); i++) {
        const char *type = tf.DeviceListType(devices, i, status);
        const char *name = tf.DeviceListName(devices, i, status), *end;

        found = found || (type != NULL && strcmp(type, "GPU") == 0);
        if (name != NULL && length < sizeof(names)) {
            /* "/job:localhost/replica:0/task:0/device:CPU:0" */
            end = strstr(name, "device:");
            length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                       length > 0 ? ", " : "",
                                       end != NULL ? end + strlen("device:") : name);
        }
    }
    if (devices != NULL) {
        tf.DeleteDeviceList(devices);
    }
    return found ? PAML_OK
                 : paml_fail(err, PAML_ERR_LOAD,
                             "device='%s': the TensorFlow that is installed, %.40s, "
                             "finds no GPU here; it has %s",
                             paml_device_name(session->device, text, sizeof(text)),
                             tf.Version(), names);
}

/* What failed to load: on a device other than the CPU, that may be why. */
static const char *
what_failed(const char *folder, DLDevice device, char *text, size_t size)
{
    char name[64];

    if (device.device_type == kDLCPU) {
        return folder;
    }
    snprintf(text, size, "%.100s, device='%s'", folder,
             paml_device_name(device, name, sizeof(name)));
    return text;
}

/* Loads the SavedModel. Lock: the program's is held. */
static struct paml_tf_session *
session_new(struct paml_tf_program *program, DLDevice device, int threads,
            struct paml_error *err)
{
    struct paml_tf_session *session = calloc(1, sizeof(*session));
    TF_SessionOptions *options = tf.NewSessionOptions();
    TF_Status *status = tf.NewStatus();
    uint8_t config[PAML_TF_CONFIG_MOST];
    char what[200];
    size_t size = paml_tf_config(device, threads, config);

    if (session == NULL) {
        paml_fail(err, PAML_ERR_MEMORY, "no memory for a session");
        goto fail;
    }
    session->device = device;
    session->graph = tf.NewGraph();
    tf.SetConfig(options, config, size, status);
    if (tf.GetCode(status) == TF_OK) {
        session->session = tf.LoadSessionFromSavedModel(
            options, NULL, program->folder, program->model->tags,
            (int)program->model->n_tags, session->graph, NULL, status);
    }
    if (tf.GetCode(status) != TF_OK) {
        paml_tf_fail(status, PAML_ERR_LOAD,
                     what_failed(program->folder, device, what, sizeof(what)), err);
        goto fail;
    }
    if (device.device_type != kDLCPU && check_device(session, status, err) != PAML_OK) {
        goto fail;
    }
    tf.DeleteSessionOptions(options);
    tf.DeleteStatus(status);
    return session;

fail:
    if (session != NULL) {
        session_free(session);
    }
    tf.DeleteSessionOptions(options);
    tf.DeleteStatus(status);
    return NULL;
}

/* Thread: any. GIL: not held. Locks: takes the program's, while TensorFlow loads. */
const struct paml_tf_session *
paml_tf_program_session(struct paml_tf_program *program, DLDevice device, int threads,
                        struct paml_error *err)
{
    struct paml_tf_session *session;

    pthread_mutex_lock(&program->lock);
    for (session = program->sessions; session != NULL; session = session->next) {
        if (session->device.device_type == device.device_type &&
            session->device.device_id == device.device_id) {
            break;
        }
    }
    if (session == NULL &&
        (session = session_new(program, device, threads, err)) != NULL) {
        session->next = program->sessions;
        program->sessions = session;
    }
    pthread_mutex_unlock(&program->lock);
    return session;
}

/* Thread: any. Locks: none. */
int
paml_tf_session_find(const struct paml_tf_session *session,
                     const struct paml_tf_place *place, TF_Output *output,
                     struct paml_error *err)
{
    output->operation = tf.GraphOperationByName(session->graph, place->operation);
    output->index = place->index;
    if (output->operation == NULL || place->index < 0 ||
        place->index >= tf.OperationNumOutputs(output->operation)) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "the SavedModel's graph has no '%.200s:%d', which its "
                         "signature names",
                         place->operation, place->index);
    }
    if (tf.OperationOutputType(*output) != place->type) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "'%.200s:%d' of the SavedModel's graph isn't of the type that "
                         "its signature names",
                         place->operation, place->index);
    }
    return PAML_OK;
}
