/* The table of C functions. */
#include <stdlib.h>
#include <string.h>

#include "instance.h"
#include "program.h"
#include "tensorflow_backend.h"

/* What one model has of a program. */
struct view {
    struct paml_tf_program *program;
    const struct paml_tf_signature *signature;
};

/* Thread: worker. GIL: not held, not taken. (Of all functions here but `devices`.) */
static void
tensorflow_unload(void *program)
{
    struct view *view = program;

    paml_tf_program_unref(view->program);
    free(view);
}

/* Not every message of what is wrong with a SavedModel names it. */
static int
name_folder(const struct paml_tf_program *program, struct paml_error *err)
{
    char message[PAML_MESSAGE_SIZE];

    if (err->code == PAML_ERR_LOAD && strstr(err->message, program->folder) == NULL) {
        memcpy(message, err->message, sizeof(message));
        paml_fail(err, err->code, "%.400s: %.600s", program->folder, message);
    }
    return err->code;
}

static int
tensorflow_load(const struct paml_load_spec *spec, void **program,
                struct paml_error *err)
{
    const struct paml_tf_saved_model *model;
    struct view *view = calloc(1, sizeof(*view));

    if (view != NULL && spec->options != NULL) {
        view->program = spec->options;
        paml_tf_program_ref(view->program);
    } else if (view != NULL && spec->path != NULL) {
        view->program = paml_tf_program_new(spec->path);
    }
    if (view == NULL || view->program == NULL) {
        free(view);
        return paml_fail(err, PAML_ERR_MEMORY, "no memory to load a SavedModel");
    }
    model = paml_tf_program_read(view->program, err);
    if (model != NULL) {
        view->signature = paml_tf_saved_model_find(model, spec->entry, err);
    }
    if (view->signature == NULL) {
        name_folder(view->program, err);
        tensorflow_unload(view);
        return err->code;
    }
    *program = view;
    return PAML_OK;
}

static const struct paml_entry *
tensorflow_describe(void *program)
{
    return &((struct view *)program)->signature->entry;
}

static int
tensorflow_open(void *program, DLDevice device, int threads, void **instance,
                struct paml_error *err)
{
    struct view *view = program;
    const struct paml_tf_session *session;
    char text[64];

    if (device.device_type != kDLCPU && device.device_type != kDLCUDA) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "device='%s': a SavedModel runs on 'cpu' or a GPU, 'cuda:0' "
                         "or another number",
                         paml_device_name(device, text, sizeof(text)));
    }
    session =
        paml_tf_program_session(view->program, device, threads > 0 ? threads : 1, err);
    *instance =
        session != NULL ? paml_tf_instance_new(session, view->signature, err) : NULL;
    return *instance != NULL ? PAML_OK : name_folder(view->program, err);
}

static int
tensorflow_run(void *instance, struct paml_run *run, struct paml_error *err)
{
    return paml_tf_instance_run(instance, run, err);
}

static void
tensorflow_close(void *instance)
{
    paml_tf_instance_free(instance);
}

/* Only what is sure: to ask TensorFlow for its GPUs is to take their memory.
   Thread: any. GIL: either way. */
static int
tensorflow_devices(struct paml_device_info *infos, int capacity)
{
    if (capacity < 1) {
        return 0;
    }
    memset(infos, 0, sizeof(*infos));
    infos->device = (DLDevice){kDLCPU, 0};
    strcpy(infos->name, "cpu");
    infos->memory = paml_host_memory();
    return 1;
}

/* Not const: the version is known once the library is there. */
struct paml_backend paml_tensorflow_backend = {
    .abi_version = PAML_ABI_VERSION,
    .struct_size = sizeof(struct paml_backend),
    .name = "tensorflow",
    .version = "",
    .load = tensorflow_load,
    .unload = tensorflow_unload,
    .describe = tensorflow_describe,
    .open = tensorflow_open,
    .run = tensorflow_run,
    .close = tensorflow_close,
    .devices = tensorflow_devices,
    .computes = 1,
};
