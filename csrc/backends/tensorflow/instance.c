#include "instance.h"

#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "outputs.h"

struct paml_tf_instance {
    const struct paml_tf_session *session;
    const struct paml_tf_signature *signature;
    uint32_t n_inputs, n_outputs;
    struct paml_tf_input *inputs;
    TF_Output *input_places, *output_places;
    TF_Tensor **input_tensors, **output_tensors; /* of the run under way */
};

/* Finds inputs or outputs in the graph. */
static int
find_places(const struct paml_tf_session *session, const struct paml_tf_place *places,
            uint32_t count, TF_Output *found, struct paml_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        if (paml_tf_session_find(session, &places[i], &found[i], err) != PAML_OK) {
            return err->code;
        }
    }
    return PAML_OK;
}

/* Thread: worker. GIL: not held, not taken. Locks: none. (Of all functions here.) */
struct paml_tf_instance *
paml_tf_instance_new(const struct paml_tf_session *session,
                     const struct paml_tf_signature *signature, struct paml_error *err)
{
    struct paml_tf_instance *instance = calloc(1, sizeof(*instance));
    uint32_t n_inputs = signature->entry.n_inputs;
    uint32_t n_outputs = signature->entry.n_outputs;

    if (instance == NULL) {
        goto no_memory;
    }
    instance->session = session;
    instance->signature = signature;
    instance->n_inputs = n_inputs;
    instance->n_outputs = n_outputs;
    instance->inputs = calloc(n_inputs + 1, sizeof(*instance->inputs));
    instance->input_places = calloc(n_inputs + 1, sizeof(TF_Output));
    instance->output_places = calloc(n_outputs + 1, sizeof(TF_Output));
    instance->input_tensors = calloc(n_inputs + 1, sizeof(TF_Tensor *));
    instance->output_tensors = calloc(n_outputs + 1, sizeof(TF_Tensor *));
    if (instance->inputs == NULL || instance->input_places == NULL ||
        instance->output_places == NULL || instance->input_tensors == NULL ||
        instance->output_tensors == NULL) {
        goto no_memory;
    }
    if (find_places(session, signature->inputs, n_inputs, instance->input_places,
                    err) != PAML_OK ||
        find_places(session, signature->outputs, n_outputs, instance->output_places,
                    err) != PAML_OK) {
        paml_tf_instance_free(instance);
        return NULL;
    }
    for (uint32_t i = 0; i < n_inputs; i++) {
        instance->inputs[i].spec = &signature->entry.inputs[i];
        instance->inputs[i].type = signature->inputs[i].type;
        instance->inputs[i].may_lend = !signature->keeps_inputs;
    }
    return instance;

no_memory:
    paml_tf_instance_free(instance);
    paml_fail(err, PAML_ERR_MEMORY, "no memory for an instance");
    return NULL;
}

void
paml_tf_instance_free(struct paml_tf_instance *instance)
{
    if (instance == NULL) {
        return;
    }
    for (uint32_t i = 0; instance->inputs != NULL && i < instance->n_inputs; i++) {
        paml_tf_input_clear(&instance->inputs[i]);
    }
    free(instance->inputs);
    free(instance->input_places);
    free(instance->output_places);
    free(instance->input_tensors);
    free(instance->output_tensors);
    free(instance);
}

/* Makes the tensors of the inputs. */
static int
make_inputs(struct paml_tf_instance *instance, const struct paml_run *run,
            struct paml_error *err)
{
    if (run->n_arguments != instance->n_inputs || run->n_inputs != run->n_arguments) {
        return paml_fail(
            err, PAML_ERR_INPUT, "signature '%.200s' takes %u %s; it got %u",
            instance->signature->entry.name, instance->n_inputs,
            instance->n_inputs == 1 ? "input" : "inputs, tensors", run->n_arguments);
    }
    for (uint32_t i = 0; i < instance->n_inputs; i++) {
        instance->input_tensors[i] =
            paml_tf_input_new(&instance->inputs[i], &run->inputs[i], err);
        if (instance->input_tensors[i] == NULL) {
            return err->code;
        }
    }
    return PAML_OK;
}

/* Gives up the tensors of the inputs, and looks whether TensorFlow has done so too. */
static int
drop_inputs(struct paml_tf_instance *instance, const struct paml_run *run,
            struct paml_error *err)
{
    int code = PAML_OK;

    for (uint32_t i = 0; i < instance->n_inputs; i++) {
        if (instance->input_tensors[i] != NULL) {
            tf.DeleteTensor(instance->input_tensors[i]);
            instance->input_tensors[i] = NULL;
        }
    }
    for (uint32_t i = 0; i < instance->n_inputs; i++) {
        if (paml_tf_input_end(&instance->inputs[i], err) != PAML_OK) {
            /* It was sure not to happen (keeping.h). Better a leak than a variable that
               points to what was freed. */
            ((struct paml_value *)run->inputs)[i].release = NULL;
            code = err->code;
        }
    }
    return code;
}

/* One output as it is; several as a dict by their names. */
static int
hand_over(struct paml_tf_instance *instance, struct paml_outputs *outputs,
          struct paml_error *err)
{
    const struct paml_spec *specs = instance->signature->entry.outputs;
    bool is_dict = instance->n_outputs > 1;
    uint32_t count = is_dict ? 1 + 2 * instance->n_outputs : 1;
    struct paml_value *values = paml_outputs_append(outputs, count);
    int code = PAML_OK;

    if (values == NULL) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the outputs");
    } else if (is_dict) {
        values->kind = PAML_DICT;
        values->count = instance->n_outputs;
        values++;
    }
    for (uint32_t i = 0; i < instance->n_outputs; i++) {
        TF_Tensor *tensor = instance->output_tensors[i];

        instance->output_tensors[i] = NULL;
        if (code != PAML_OK) {
            tf.DeleteTensor(tensor);
            continue;
        }
        if (is_dict) {
            /* The signature outlives the outputs no longer than the program: a copy. */
            char *name = strdup(specs[i].name);
            if (name == NULL) {
                tf.DeleteTensor(tensor);
                code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the outputs");
                continue;
            }
            values->kind = PAML_STRING;
            values->string.data = name;
            values->string.size = strlen(name);
            values->owner = name;
            values->release = free;
            values++;
        }
        code = paml_tf_output(tensor, specs[i].name, values++, err);
    }
    return code;
}

int
paml_tf_instance_run(struct paml_tf_instance *instance, struct paml_run *run,
                     struct paml_error *err)
{
    TF_Status *status = tf.NewStatus();
    struct paml_error ended;
    int code = make_inputs(instance, run, err);

    if (code == PAML_OK) {
        tf.SessionRun(instance->session->session, NULL, instance->input_places,
                      instance->input_tensors, (int)instance->n_inputs,
                      instance->output_places, instance->output_tensors,
                      (int)instance->n_outputs, NULL, 0, NULL, status);
        code = tf.GetCode(status) == TF_OK
                   ? hand_over(instance, run->outputs, err)
                   : paml_tf_fail(status, PAML_ERR_BACKEND, "", err);
    }
    tf.DeleteStatus(status);
    if (drop_inputs(instance, run, &ended) != PAML_OK && code == PAML_OK) {
        *err = ended;
        code = ended.code;
    }
    return code;
}
