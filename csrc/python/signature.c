#include "signature.h"

#include <string.h>

#include "string_values.h"

static PyObject *
describe_spec(const struct paml_spec *spec, bool made)
{
    PyObject *shape, *kinds;
    char dtype[64];

    if (spec->ndim < 0 || spec->shape == NULL) {
        shape = Py_NewRef(Py_None);
    } else {
        shape = PyTuple_New(spec->ndim);
        for (int32_t i = 0; shape != NULL && i < spec->ndim; i++) {
            PyObject *size = spec->shape[i] < 0 ? Py_NewRef(Py_None)
                                                : PyLong_FromLongLong(spec->shape[i]);
            if (size == NULL) {
                Py_CLEAR(shape);
                break;
            }
            PyTuple_SET_ITEM(shape, i, size);
        }
    }
    if (shape == NULL) {
        return NULL;
    }
    kinds = PyLong_FromUnsignedLong(spec->kinds);
    return Py_BuildValue("(zzNzNi)", spec->name, spec->type, kinds,
                         spec->dtype.bits != 0
                             ? paml_dtype_name(spec->dtype, dtype, sizeof(dtype))
                             : NULL,
                         shape, made || spec->optional);
}

static PyObject *
describe_specs(const struct paml_spec *specs, uint32_t count, int32_t made)
{
    PyObject *list = PyTuple_New(count);

    for (uint32_t i = 0; list != NULL && i < count; i++) {
        PyObject *spec = describe_spec(&specs[i], (int32_t)i == made);
        if (spec == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyTuple_SET_ITEM(list, i, spec);
    }
    return list;
}

static int
copy_spec(struct input_spec *to, const struct paml_spec *from)
{
    to->utf8 = "?"; /* by position only */
    to->kinds = from->kinds;
    to->dtype = from->dtype;
    to->ndim = from->ndim;
    to->optional = (int)from->optional;
    if (from->name != NULL) {
        to->name = PyUnicode_InternFromString(from->name);
        to->utf8 = to->name != NULL ? PyUnicode_AsUTF8(to->name) : NULL;
        if (to->utf8 == NULL) {
            return -1;
        }
    }
    if (from->ndim > 0 && from->shape != NULL) {
        to->shape = PyMem_New(int64_t, from->ndim);
        if (to->shape == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(to->shape, from->shape, (size_t)from->ndim * sizeof(int64_t));
    }
    return 0;
}

struct signature *
paml_signature_new(const struct paml_entry *entry, int32_t made)
{
    struct signature *signature = PyMem_Calloc(1, sizeof(*signature));
    PyObject *inputs, *outputs;

    if (signature == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    signature->variadic = (int)entry->variadic;
    signature->inputs = PyMem_Calloc(entry->n_inputs + 1, sizeof(*signature->inputs));
    if (signature->inputs == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (; signature->n_inputs < entry->n_inputs; signature->n_inputs++) {
        if (copy_spec(&signature->inputs[signature->n_inputs],
                      &entry->inputs[signature->n_inputs]) < 0) {
            goto fail;
        }
    }
    if (made >= 0 && (uint32_t)made < signature->n_inputs) {
        signature->inputs[made].optional = 1;
    }
    inputs = describe_specs(entry->inputs, entry->n_inputs, made);
    outputs = describe_specs(entry->outputs, entry->n_outputs, -1);
    if (inputs != NULL && outputs != NULL) {
        signature->described =
            Py_BuildValue("(sOOii)", entry->name, inputs, outputs, (int)entry->variadic,
                          (int)entry->stateful);
    }
    Py_XDECREF(inputs);
    Py_XDECREF(outputs);
    if (signature->described == NULL) {
        goto fail;
    }
    return signature;

fail:
    paml_signature_free(signature);
    return NULL;
}

void
paml_signature_free(struct signature *signature)
{
    if (signature == NULL) {
        return;
    }
    for (uint32_t i = 0; signature->inputs != NULL && i < signature->n_inputs; i++) {
        Py_XDECREF(signature->inputs[i].name);
        PyMem_Free(signature->inputs[i].shape);
    }
    PyMem_Free(signature->inputs);
    Py_XDECREF(signature->described);
    PyMem_Free(signature);
}

/* "[2, ?, 3]" */
static void
shape_text(const int64_t *shape, int32_t ndim, char *text, size_t size)
{
    size_t length = (size_t)snprintf(text, size, "[");

    for (int32_t i = 0; i < ndim && length < size - 1; i++) {
        length += (size_t)(shape[i] < 0
                               ? snprintf(text + length, size - length, i ? ", ?" : "?")
                               : snprintf(text + length, size - length,
                                          i ? ", %lld" : "%lld", (long long)shape[i]));
    }
    if (length < size - 1) {
        snprintf(text + length, size - length, "]");
    }
}

static int
check_tensor(struct module_state *state, const struct input_spec *spec,
             const DLTensor *tensor)
{
    char expected[160], got[160];
    int fits = 1;

    if (spec->dtype.bits != 0 &&
        memcmp(&spec->dtype, &tensor->dtype, sizeof(tensor->dtype)) != 0) {
        PyErr_Format(state->InputError, "input '%s': expected dtype %s, got %s",
                     spec->utf8,
                     paml_dtype_name(spec->dtype, expected, sizeof(expected)),
                     paml_dtype_name(tensor->dtype, got, sizeof(got)));
        return -1;
    }
    if (spec->ndim < 0) {
        return 0;
    }
    fits = spec->ndim == tensor->ndim;
    for (int32_t i = 0; fits && i < tensor->ndim; i++) {
        fits = spec->shape[i] < 0 || spec->shape[i] == tensor->shape[i];
    }
    if (!fits) {
        shape_text(spec->shape, spec->ndim, expected, sizeof(expected));
        shape_text(tensor->shape, tensor->ndim, got, sizeof(got));
        PyErr_Format(state->InputError, "input '%s': expected shape %s, got %s",
                     spec->utf8, expected, got);
        return -1;
    }
    return 0;
}

Py_ssize_t
paml_signature_find(const struct signature *signature, PyObject *name)
{
    for (uint32_t i = 0; i < signature->n_inputs; i++) {
        if (signature->inputs[i].name == name) {
            return i;
        }
    }
    for (uint32_t i = 0; i < signature->n_inputs; i++) {
        if (signature->inputs[i].name != NULL &&
            PyUnicode_Compare(signature->inputs[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

static void
names_text(const struct signature *signature, char *text, size_t size)
{
    size_t length = 0;

    text[0] = '\0';
    for (uint32_t i = 0; i < signature->n_inputs && length < size; i++) {
        const char *name = signature->inputs[i].utf8;
        length += (size_t)snprintf(text + length, size - length, "%s%s",
                                   i > 0 ? ", " : "", name != NULL ? name : "?");
    }
}

static int
refuse_call(struct module_state *state, const struct signature *signature,
            const char *format, PyObject *argument)
{
    char names[512];
    PyObject *what = PyUnicode_FromFormat(format, argument);

    if (what != NULL) {
        names_text(signature, names, sizeof(names));
        PyErr_Format(state->InputError, "%U; the model takes (%s)", what, names);
        Py_DECREF(what);
    }
    return -1;
}

/* Any number of inputs of any kind, all by position. */
static int
bind_variadic(struct module_state *state, const struct signature *signature,
              struct paml_request *request, PyObject *const *positional,
              Py_ssize_t n_positional, PyObject *const *names, Py_ssize_t n_named,
              struct tensor_census *census)
{
    if (n_named > 0) {
        return refuse_call(state, signature, "there is no input named %R", names[0]);
    }
    for (Py_ssize_t i = 0; i < n_positional; i++) {
        struct input_name name = {NULL, i};
        if (paml_value_append(state, request, positional[i], PAML_KIND_ANY, &name,
                              census) < 0) {
            return -1;
        }
        request->op.n_arguments++;
    }
    return 0;
}

/* Which of the session's states the input is; -1: none. */
static int
state_at(const struct paml_session *session, Py_ssize_t argument)
{
    for (uint32_t k = 0; session != NULL && k < session->n_states; k++) {
        if ((Py_ssize_t)session->arguments[k] == argument) {
            return (int)k;
        }
    }
    return -1;
}

/* What was given for one input. */
static int
append_input(struct module_state *state, struct paml_request *request,
             const struct input_spec *spec, PyObject *object,
             const struct input_name *name, struct tensor_census *census)
{
    const uint32_t scalar = PAML_KIND_BIT(PAML_TENSOR) | PAML_KIND_BIT(PAML_INT);

    if (paml_dtype_is_strings(spec->dtype)) {
        return paml_strings_append(state, request, object, spec->dtype.code, name);
    }
    if (spec->dtype.code == kDLUInt && spec->dtype.bits == 64 &&
        (spec->kinds & scalar) == scalar) {
        int status = paml_value_append_large(state, request, object, name);
        if (status != 0) {
            return status;
        }
    }
    return paml_value_append(state, request, object, spec->kinds, name, census);
}

/* The session's beginning, borrowed: it tells the shape. */
static int
append_state(struct paml_request *request, const struct paml_session *session, int k)
{
    struct paml_value *value = paml_request_input(request);

    if (value == NULL) {
        return -1;
    }
    *value = session->initial[k];
    value->owner = NULL;
    value->release = NULL;
    request->op.slots[k] = request->op.n_inputs - 1;
    return 0;
}

int
paml_signature_bind(struct module_state *state, const struct signature *signature,
                    struct paml_request *request, const struct paml_session *session,
                    PyObject *const *positional, Py_ssize_t n_positional,
                    PyObject *const *named, PyObject *const *names, Py_ssize_t n_named,
                    struct tensor_census *census)
{
    PyObject *few[8] = {NULL}, **bound = few;
    struct paml_value *value;
    Py_ssize_t last = 0, at = 0;
    uint32_t n_states = session != NULL ? session->n_states : 0;
    int status = -1;

    if (signature->variadic) {
        return bind_variadic(state, signature, request, positional, n_positional, names,
                             n_named, census);
    }
    if (n_positional > (Py_ssize_t)(signature->n_inputs - n_states)) {
        PyObject *count = PyLong_FromSsize_t(n_positional);
        refuse_call(state, signature,
                    n_states > 0 ? "%S inputs were given besides the session's state"
                                 : "%S inputs were given",
                    count);
        Py_XDECREF(count);
        return -1;
    }
    if (signature->n_inputs > 8 &&
        (bound = PyMem_Calloc(signature->n_inputs, sizeof(*bound))) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n_positional; i++, at++) {
        while (state_at(session, at) >= 0) {
            at++;
        }
        bound[at] = positional[i];
        last = at + 1;
    }
    for (uint32_t k = 0; k < n_states; k++) {
        at = session->arguments[k];
        last = at + 1 > last ? at + 1 : last;
    }
    for (Py_ssize_t i = 0; i < n_named; i++) {
        at = paml_signature_find(signature, names[i]);
        if (at >= 0 && state_at(session, at) >= 0) {
            refuse_call(state, signature, "input %R is the session's state", names[i]);
            goto done;
        }
        if (at < 0) {
            refuse_call(state, signature, "there is no input named %R", names[i]);
            goto done;
        }
        if (bound[at] != NULL) {
            refuse_call(state, signature, "input %R was given twice", names[i]);
            goto done;
        }
        bound[at] = named[i];
        last = at + 1 > last ? at + 1 : last;
    }
    for (Py_ssize_t i = 0; i < (Py_ssize_t)signature->n_inputs; i++) {
        const struct input_spec *spec = &signature->inputs[i];
        struct input_name name = {spec->name != NULL ? spec->utf8 : NULL, i};
        uint32_t first = request->op.n_inputs;

        if (state_at(session, i) >= 0) {
            if (append_state(request, session, state_at(session, i)) < 0) {
                goto done;
            }
            request->op.n_arguments++;
            continue;
        }
        if (bound[i] == NULL && !spec->optional) {
            refuse_call(state, signature, "input %R is missing",
                        spec->name != NULL ? spec->name : Py_None);
            goto done;
        }
        if (bound[i] == NULL && i >= last) {
            continue; /* the backend fills in trailing defaults */
        }
        if (bound[i] == NULL) {
            if ((value = paml_request_input(request)) == NULL) {
                goto done;
            }
            value->count = PAML_ABSENT;
        } else if (append_input(state, request, spec, bound[i], &name, census) < 0) {
            goto done;
        } else if (request->op.inputs[first].kind == PAML_TENSOR &&
                   check_tensor(state, spec, &request->op.inputs[first].tensor) < 0) {
            goto done;
        }
        request->op.n_arguments++;
    }
    status = 0;

done:
    if (bound != few) {
        PyMem_Free(bound);
    }
    return status;
}
