/* infer() and its relatives: from a call's arguments to an op in the queue.
 *
 * Thread: any with a running loop, GIL held. Locks: the queue's, briefly, to take an op
 * back.
 */
#include "axes.h"
#include "clock.h"
#include "model_object.h"

/* --- what happens to these requests --- */

static int
infer_remove(struct paml_request *request)
{
    return paml_queue_remove(&request->served->model->queue, &request->op);
}

static void
infer_given_up(struct paml_request *request, int code)
{
    struct paml_model *model = request->served->model;

    atomic_fetch_add_explicit(code == PAML_OK ? &model->cancelled : &model->expired, 1,
                              memory_order_relaxed);
}

static void
infer_arrived(struct paml_request *request)
{
    paml_inline_note(paml_model_of(request), request);
}

static PyObject *
infer_convert(struct module_state *state, struct paml_request *request)
{
    return paml_outputs_to_object(state, &request->op.outputs, request->flavour);
}

static const struct request_kind infer_kind = {
    .remove = infer_remove,
    .given_up = infer_given_up,
    .arrived = infer_arrived,
    .convert = infer_convert,
};

/* Of models whose outputs go through Python: what the request keeps is not the model,
   but what finishes them. */
static void
finished_arrived(struct paml_request *request)
{
    PyObject *model = request->owner;

    infer_arrived(request);
    request->owner = Py_XNewRef(paml_model_of(request)->finish);
    Py_DECREF(model);
}

static PyObject *
finished_convert(struct module_state *state, struct paml_request *request)
{
    PyObject *outputs = infer_convert(state, request), *finished;

    if (outputs == NULL || request->owner == NULL) {
        return outputs;
    }
    finished = PyObject_CallOneArg(request->owner, outputs);
    Py_DECREF(outputs);
    return finished;
}

static const struct request_kind finished_kind = {
    .remove = infer_remove,
    .given_up = infer_given_up,
    .needs_owner = 1,
    .arrived = finished_arrived,
    .convert = finished_convert,
};

/* --- arguments --- */

/* Inputs of a live module or of call(): opaque to the engine. All stolen but context
   and the function. */
int
paml_append_call(struct paml_request *request, PyObject *function, PyObject *args,
                 PyObject *kwargs)
{
    PyObject *context = PyContext_CopyCurrent();
    int status = -1;

    if (args != NULL && kwargs != NULL && context != NULL) {
        /* Every reference is taken over, also where one of these fails. */
        status = paml_value_append_object(request, Py_NewRef(function));
        status |= paml_value_append_object(request, Py_NewRef(args));
        status |= paml_value_append_object(request, Py_NewRef(kwargs));
        status |= paml_value_append_object(request, Py_NewRef(context));
        request->op.n_arguments = 4;
    }
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(context);
    return status;
}

PyObject *
paml_tuple_of(PyObject *const *items, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);

    for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(items[i]));
    }
    return tuple;
}

/* None where there are no keywords. */
static PyObject *
dict_of(PyObject *const *names, PyObject *const *values, Py_ssize_t count)
{
    PyObject *dict;

    if (count == 0) {
        return Py_NewRef(Py_None);
    }
    dict = PyDict_New();
    for (Py_ssize_t i = 0; dict != NULL && i < count; i++) {
        if (PyDict_SetItem(dict, names[i], values[i]) < 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static int
parse_timeout(PyObject *timeout, struct paml_request *request)
{
    double seconds;

    if (timeout == Py_None) {
        return 0;
    }
    seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) {
            return -1;
        }
        PyErr_Format(PyExc_TypeError, "timeout: expected seconds or None, got %s",
                     Py_TYPE(timeout)->tp_name);
        return -1;
    }
    if (!(seconds >= 0.0)) {
        PyErr_Format(PyExc_ValueError, "timeout: expected seconds, 0 or more, got %R",
                     timeout);
        return -1;
    }
    if (seconds < 1e9) { /* 30 years are for ever */
        request->timeout_ns = (int64_t)(seconds * PAML_SECOND);
        request->expired = request->timeout_ns == 0;
    }
    return 0;
}

static int
parse_priority(PyObject *priority, int32_t *to)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(priority, &overflow);

    if (value == -1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) {
            return -1;
        }
        PyErr_Format(PyExc_TypeError, "priority: expected an int, got %s",
                     Py_TYPE(priority)->tp_name);
        return -1;
    }
    if (overflow != 0 || value > INT32_MAX || value < INT32_MIN) {
        PyErr_Format(PyExc_ValueError, "priority: expected an int of 32 bits, got %R",
                     priority);
        return -1;
    }
    *to = (int32_t)value;
    return 0;
}

/* Takes timeout= and priority= out of a call's keywords; what is left (`names`, with
   room for all) is named inputs. Returns how many are left, or -1. */
static Py_ssize_t
parse_keywords(struct module_state *state, struct paml_request *request,
               PyObject *kwnames, PyObject *const *values, PyObject **names,
               PyObject **named)
{
    Py_ssize_t count = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0, left = 0;

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (name == state->str_timeout ||
            PyUnicode_Compare(name, state->str_timeout) == 0) {
            if (parse_timeout(values[i], request) < 0) {
                return -1;
            }
        } else if (name == state->str_priority ||
                   PyUnicode_Compare(name, state->str_priority) == 0) {
            if (parse_priority(values[i], &request->op.priority) < 0) {
                return -1;
            }
        } else {
            names[left] = name;
            named[left++] = values[i];
        }
    }
    return left;
}

/* "cpu", "cuda:0 and cuda:1", …; cut off where there is no room for all. */
static const char *
names_of_devices(const ModelObj *self, char *text, size_t size)
{
    char name[64];
    int length = 0;

    for (int d = 0; d < self->n_devices && (size_t)length < size; d++) {
        length += snprintf(text + length, size - (size_t)length, "%s%s",
                           d == 0                     ? ""
                           : d + 1 == self->n_devices ? " and "
                                                      : ", ",
                           paml_device_name(self->devices[d], name, sizeof(name)));
    }
    return text;
}

static int
check_inputs_reachable(ModelObj *self, struct paml_request *request)
{
    const struct signature *signature = self->signature;
    struct paml_op *op = &request->op;
    struct paml_walk walk = {0, 1, false};
    char input[64], model[256], which[32];

    for (uint32_t i = 0; i < op->n_inputs; i++) {
        const struct paml_value *value = &op->inputs[i];
        int here =
            value->kind != PAML_TENSOR || value->tensor.device.device_type == kDLCPU;

        for (int d = 0; !here && d < self->n_devices; d++) {
            here = value->tensor.device.device_type == self->devices[d].device_type &&
                   value->tensor.device.device_id == self->devices[d].device_id;
        }
        if (!here) {
            const char *name = NULL;
            if (!signature->variadic && walk.argument < signature->n_inputs) {
                name = signature->inputs[walk.argument].utf8;
            }
            snprintf(which, sizeof(which), "%u", walk.argument);
            PyErr_Format(self->state->InputError,
                         "input %s%s%s: it is on %s, the model runs on %s",
                         name != NULL ? "'" : "", name != NULL ? name : which,
                         name != NULL ? "'" : "",
                         paml_device_name(value->tensor.device, input, sizeof(input)),
                         names_of_devices(self, model, sizeof(model)));
            return -1;
        }
        if (value->kind == PAML_TENSOR && value->tensor.device.device_type != kDLCPU &&
            paml_backend_orders(self->model->backend)) {
            self->model->backend->order(value->tensor.device);
        }
        op->bytes += paml_value_nbytes(value);
        paml_walk_step(&walk, value);
    }
    return 0;
}

/* What of its inputs lets it share a run. */
static int
classify(ModelObj *self, struct paml_request *request)
{
    struct paml_error error;

    if (paml_batch_classify(&self->model->batching, &request->op, &error) != PAML_OK) {
        PyErr_SetString(self->state->InputError, error.message);
        return -1;
    }
    return 0;
}

/* The request is ready: gives it to the queue. Returns the future, a new reference;
   NULL with an error set where the call itself was wrong. */
static PyObject *
submit(ModelObj *self, struct paml_request *request)
{
    FutureObj *future = paml_request_launch(request);
    const struct paml_queue_limits *limits;
    struct paml_model *model;
    struct paml_error error;
    char message[256];
    int code, failed;

    if (future == NULL) {
        return NULL;
    }
    /* Looked at only now: what came before may have run Python code, and that may have
       reloaded the model. From here to the push none runs. */
    request->served = paml_served_use(self->served);
    model = request->served->model;
    limits = &model->queue.limits;
    if (request->expired) {
        infer_given_up(request, PAML_ERR_DEADLINE);
        paml_request_refuse(request, PAML_ERR_DEADLINE,
                            "timeout=0 leaves no time to run");
        return (PyObject *)future;
    }
    if (paml_inline_may(self, request) && paml_inline_run(self, request)) {
        return (PyObject *)future;
    }
    paml_hub_hold(request->hub, model, request->op.submitted_ns);
    code = paml_model_submit(model, &request->op);
    if (code == PAML_OK) {
        return (PyObject *)future;
    }
    if (code == PAML_ERR_QUEUE) {
        snprintf(
            message, sizeof(message),
            "the queue of model '%s' is full: it holds at most %lld rows and %lld "
            "bytes (Queue(max_rows=, max_bytes=)); this request has %u rows and %zu "
            "bytes",
            model->name, (long long)limits->max_rows, (long long)limits->max_bytes,
            request->op.rows, request->op.bytes);
        paml_request_refuse(request, code, message);
        return (PyObject *)future;
    }
    failed = paml_model_status(model, &error) == PAML_STATUS_FAILED;
    paml_request_refuse(request, code,
                        "closed"); /* and with it, its use of the model */
    future->log_tb = 0;            /* raised here instead */
    Py_DECREF(future);
    if (failed) {
        PyErr_Format(self->state->ModelClosed, "model '%U' failed to load: %s",
                     self->name, error.message);
    } else {
        PyErr_Format(self->state->ModelClosed, "model '%U' is closed", self->name);
    }
    return NULL;
}

const char Model_withdraw_doc[] = PyDoc_STR(
    "_withdraw($self, future, /)\n--\n\n"
    "Cancel the request if it has not begun. False: it has; it is left as it is.");

PyObject *
Model_withdraw(ModelObj *self, PyObject *future)
{
    if (paml_model_check(self) < 0) {
        return NULL;
    }
    if (!PyObject_TypeCheck(future, self->state->FutureType)) {
        PyErr_Format(PyExc_TypeError, "future: expected a Future, got %s",
                     Py_TYPE(future)->tp_name);
        return NULL;
    }
    if (!paml_request_withdraw((FutureObj *)future)) {
        Py_RETURN_FALSE;
    }
    future = PyObject_CallMethod(future, "cancel", NULL);
    Py_XDECREF(future);
    return future != NULL ? Py_NewRef(Py_True) : NULL;
}

const char Model_infer_doc[] = PyDoc_STR(
    "infer($self, /, *inputs, timeout=None, priority=0, **named_inputs)\n--\n\n"
    "Run the model on the inputs: a Future of its outputs.");

PyObject *
Model_infer(ModelObj *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return paml_infer(self, NULL, args, nargs, kwnames);
}

PyObject *
paml_infer(ModelObj *self, struct paml_session *session, PyObject *const *args,
           Py_ssize_t nargs, PyObject *kwnames)
{
    struct tensor_census census = {0, 0};
    Py_ssize_t n_keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0, n_named;
    PyObject *few_names[8], *few_named[8], **names = few_names, **named = few_named;
    struct paml_request *request = NULL;
    const struct request_kind *kind =
        self->finish != NULL ? &finished_kind : &infer_kind;
    HubObj *hub;
    int status = -1;

    if (paml_model_check(self) < 0 ||
        (hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, kind, (PyObject *)self)) ==
            NULL) {
        return NULL;
    }
    if (n_keywords > 8) {
        names = PyMem_New(PyObject *, 2 * n_keywords);
        if (names == NULL) {
            PyErr_NoMemory();
            goto done;
        }
        named = names + n_keywords;
    }
    n_named = parse_keywords(self->state, request, kwnames, args + nargs, names, named);
    if (n_named < 0) {
        goto done;
    }
    if (self->model->backend == &paml_python_backend) {
        PyObject *function = Py_NewRef(self->options); /* a reload may drop it */
        status = paml_append_call(request, function, paml_tuple_of(args, nargs),
                                  dict_of(names, named, n_named));
        Py_DECREF(function);
    } else if (self->signature != NULL || paml_model_learn_signature(self) == 0) {
        if (session != NULL) {
            atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);
            request->op.session = session;
        }
        status = paml_signature_bind(self->state, self->signature, request, session,
                                     args, nargs, named, names, n_named, &census);
        request->flavour =
            census.torch > 0 && census.other == 0 ? FLAVOUR_TORCH : FLAVOUR_NUMPY;
        if (status == 0) {
            status = check_inputs_reachable(self, request);
        }
        if (status == 0 && self->model->batching_options.max_rows > 0) {
            status = classify(self, request);
        }
    }

done:
    if (names != few_names) {
        PyMem_Free(names);
    }
    if (status < 0) {
        paml_request_free(request);
        return NULL;
    }
    if (session != NULL) {
        request->op.fresh = session->restart;
        session->restart = false;
    }
    return submit(self, request);
}

const char Model_call_doc[] =
    PyDoc_STR("_call($self, fn, /, *args, **kwargs)\n--\n\n"
              "Run fn(*args, **kwargs) on a worker: a Future of what it returns.");

PyObject *
Model_call(ModelObj *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t n_keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    struct paml_request *request;
    HubObj *hub;

    if (paml_model_check(self) < 0) {
        return NULL;
    }
    if (nargs < 1 || !PyCallable_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "fn: expected a callable, got %s",
                     nargs < 1 ? "nothing" : Py_TYPE(args[0])->tp_name);
        return NULL;
    }
    if ((hub = paml_hub_of_running_loop(self->state)) == NULL ||
        (request = paml_request_new(self->state, hub, &infer_kind, (PyObject *)self)) ==
            NULL) {
        return NULL;
    }
    if (paml_append_call(request, args[0], paml_tuple_of(args + 1, nargs - 1),
                         dict_of(n_keywords > 0 ? &PyTuple_GET_ITEM(kwnames, 0) : NULL,
                                 args + nargs, n_keywords)) < 0) {
        paml_request_free(request);
        return NULL;
    }
    return submit(self, request);
}

/* The same work without workers: converts, runs and converts back in the calling
   thread, as a blocking binding does. What benchmarks compare with, and debuggers step
   into. */
const char Model_run_direct_doc[] =
    PyDoc_STR("run_direct($self, /, *inputs)\n--\n\n"
              "Run the inputs in the calling thread and return the outputs.");

PyObject *
Model_run_direct(ModelObj *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct tensor_census census = {0, 0};
    struct paml_request request;
    struct paml_model *model;
    struct paml_error error = {0};
    PyThreadState *thread_state;
    void *instance = NULL;
    PyObject *result = NULL;
    int code;

    if (paml_model_check(self) < 0 ||
        (self->signature == NULL && paml_model_learn_signature(self) < 0)) {
        return NULL;
    }
    if (self->model->backend == &paml_python_backend) {
        PyErr_SetString(PyExc_TypeError,
                        "a Python callable is run directly by calling it");
        return NULL;
    }
    paml_request_borrow(&request, self->state);
    if (paml_signature_bind(self->state, self->signature, &request, NULL, args, nargs,
                            NULL, NULL, 0, &census) == 0) {
        struct paml_run run = {.inputs = request.op.inputs,
                               .n_inputs = request.op.n_inputs,
                               .n_arguments = request.op.n_arguments,
                               .outputs = &request.op.outputs};
        request.served = paml_served_use(self->served);
        model = request.served->model;
        if (paml_model_pin(model) == NULL) {
            PyErr_SetString(self->state->ModelClosed, "the model is closed");
            goto done;
        }
        thread_state = PyEval_SaveThread();
        code = model->backend->open(model->program, self->devices[0], 1, &instance,
                                    &error);
        if (code == PAML_OK) {
            code = model->backend->run(instance, &run, &error);
            model->backend->close(instance);
        }
        paml_model_unpin(model);
        PyEval_RestoreThread(thread_state);
        if (code == PAML_OK) {
            result = paml_outputs_to_object(
                self->state, &request.op.outputs,
                census.torch > 0 && census.other == 0 ? FLAVOUR_TORCH : FLAVOUR_NUMPY);
        } else {
            PyObject *exception = paml_exception_new(self->state, code, error.message);
            PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
            Py_DECREF(exception);
        }
    }
done:
    paml_request_release_inputs(&request);
    paml_op_clear(&request.op);
    paml_served_leave(request.served);
    return result;
}
