/* Python objects to paml_values. See values.h. */
#include "values.h"

#include <string.h>

#include "string_values.h"

#define MAX_DEPTH 32

static int append(struct module_state *, struct paml_request *, PyObject *, uint32_t,
                  const struct input_name *, struct tensor_census *, int depth);

static const char *
input_text(const struct input_name *name, char *text, size_t size)
{
    if (name->name != NULL) {
        snprintf(text, size, "input '%s'", name->name);
    } else {
        snprintf(text, size, "input %zd", name->index);
    }
    return text;
}

int
paml_input_refuse(PyObject *type, const struct input_name *name, const char *format,
                  ...)
{
    PyObject *cause_type, *cause, *traceback, *message, *exception;
    char text[128];
    va_list arguments;

    if (PyErr_Occurred() && (!PyErr_ExceptionMatches(PyExc_Exception) ||
                             PyErr_ExceptionMatches(PyExc_MemoryError))) {
        return -1; /* not about the input: KeyboardInterrupt and the like */
    }
    PyErr_Fetch(&cause_type, &cause, &traceback);
    PyErr_NormalizeException(&cause_type, &cause, &traceback);
    va_start(arguments, format);
    message = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    if (message != NULL) {
        PyErr_Format(type, "%s: %U", input_text(name, text, sizeof(text)), message);
        Py_DECREF(message);
    }
    if (cause != NULL) {
        PyObject *new_type, *new_traceback;
        PyErr_Fetch(&new_type, &exception, &new_traceback);
        PyErr_NormalizeException(&new_type, &exception, &new_traceback);
        if (exception != NULL) {
            PyException_SetCause(exception, Py_NewRef(cause));
        }
        PyErr_Restore(new_type, exception, new_traceback);
    }
    Py_XDECREF(cause_type);
    Py_XDECREF(cause);
    Py_XDECREF(traceback);
    return -1;
}

static void
release_object(void *owner)
{
    Py_DECREF((PyObject *)owner);
}

static void
release_managed(void *owner)
{
    DLManagedTensorVersioned *managed = owner;

    if (managed->deleter != NULL) {
        managed->deleter(managed);
    }
}

static void
release_managed_legacy(void *owner)
{
    DLManagedTensor *managed = owner;

    if (managed->deleter != NULL) {
        managed->deleter(managed);
    }
}

struct buffer_loan {
    Py_buffer view;
    /* Copied: of a bytearray's view they lie in the Py_buffer that was filled first. */
    int64_t shape_and_strides[]; /* strides in elements */
};

static void
release_buffer(void *owner)
{
    struct buffer_loan *loan = owner;

    PyBuffer_Release(&loan->view);
    PyMem_Free(loan);
}

static int
check_tensor(struct module_state *state, struct paml_value *value,
             const struct input_name *name)
{
    if (value->tensor.ndim > PAML_MAX_RANK) {
        return paml_input_refuse(state->InputError, name,
                                 "has %d dimensions, at most %d are taken",
                                 (int)value->tensor.ndim, PAML_MAX_RANK);
    }
    return 0;
}

/* --- the buffer protocol: numpy, array.array, memoryview, bytes --- */

/* The DLPack type of a struct-module format; 0 bits: there is none. */
static DLDataType
dtype_of_format(const char *format, Py_ssize_t itemsize)
{
    DLDataType dtype = {kDLOpaqueHandle, 0, 1};
    uint8_t bits = (uint8_t)(8 * itemsize);

    if (format == NULL) {
        return (DLDataType){kDLUInt, 8, 1};
    }
    if (*format == '@' || *format == '=' || *format == '<') {
        format++;
    }
    if (format[0] == 'Z' && (format[1] == 'f' || format[1] == 'd') && format[2] == 0) {
        return (DLDataType){kDLComplex, bits, 1};
    }
    if (format[0] == '\0' || format[1] != '\0' || itemsize > 8) {
        return dtype;
    }
    switch (format[0]) {
    case '?':
        return (DLDataType){kDLBool, 8, 1};
    case 'b':
    case 'h':
    case 'i':
    case 'l':
    case 'q':
    case 'n':
        return (DLDataType){kDLInt, bits, 1};
    case 'B':
    case 'H':
    case 'I':
    case 'L':
    case 'Q':
    case 'N':
        return (DLDataType){kDLUInt, bits, 1};
    case 'e':
    case 'f':
    case 'd':
        return (DLDataType){kDLFloat, bits, 1};
    default:
        return dtype;
    }
}

/* Strides that are no multiple of the item size (fields of structured arrays): a copy,
   the one case where the caller's thread pays for one. */
static int
copy_buffer(struct paml_value *value, Py_buffer *view, DLDataType dtype)
{
    if (paml_tensor_new(value, dtype, view->ndim, view->shape) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return PyBuffer_ToContiguous(value->tensor.data, view, view->len, 'C');
}

static int append_small_floats(struct module_state *, struct paml_request *, PyObject *,
                               const struct input_name *);

static int
append_buffer(struct module_state *state, struct paml_request *request,
              PyObject *object, const struct input_name *name)
{
    struct paml_value *value;
    struct buffer_loan *loan;
    Py_buffer view;
    DLDataType dtype;
    int64_t *strides;

    if (PyObject_GetBuffer(object, &view, PyBUF_RECORDS_RO) < 0) {
        PyObject *type, *error, *traceback;
        int status;

        PyErr_Fetch(&type, &error, &traceback);
        status = append_small_floats(state, request, object, name);
        if (status <= 0) {
            Py_XDECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(traceback);
            return status;
        }
        PyErr_Restore(type, error, traceback);
        return paml_input_refuse(PyExc_TypeError, name,
                                 "a %s lends no memory that is understood",
                                 Py_TYPE(object)->tp_name);
    }
    dtype = dtype_of_format(view.format, view.itemsize);
    if (dtype.bits == 0 && paml_strings_are_format(view.format)) {
        PyBuffer_Release(&view);
        return paml_strings_append(state, request, object, 0, name);
    }
    if (dtype.bits == 0) {
        paml_input_refuse(
            PyExc_TypeError, name,
            "elements of format '%s' (%zd bytes) are no tensor's; numbers in native "
            "byte order and bool are",
            view.format, view.itemsize);
        goto fail;
    }
    loan = PyMem_Malloc(sizeof(*loan) + 2 * (size_t)view.ndim * sizeof(int64_t));
    if (loan == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    value = paml_request_input(request);
    if (value == NULL) {
        PyMem_Free(loan);
        goto fail;
    }
    loan->view = view;
    strides = loan->shape_and_strides + view.ndim;
    for (int i = 0; i < view.ndim; i++) {
        loan->shape_and_strides[i] = view.shape[i];
    }
    value->kind = PAML_TENSOR;
    value->tensor = (DLTensor){.data = view.buf,
                               .device = {kDLCPU, 0},
                               .ndim = view.ndim,
                               .dtype = dtype,
                               .shape = loan->shape_and_strides};
    if (!PyBuffer_IsContiguous(&view, 'C')) {
        value->tensor.strides = strides;
        for (int i = 0; i < view.ndim; i++) {
            strides[i] = view.strides[i] / view.itemsize;
            if (view.strides[i] % view.itemsize != 0) {
                PyMem_Free(loan);
                value->kind = PAML_NONE;
                if (copy_buffer(value, &view, dtype) < 0) {
                    goto fail;
                }
                PyBuffer_Release(&view);
                return 0;
            }
        }
    }
    value->owner = loan;
    value->release = release_buffer;
    return check_tensor(state, value, name);

fail:
    PyBuffer_Release(&view);
    return -1;
}

/* An array of a dtype of ml_dtypes', which neither the buffer protocol nor numpy's
   DLPack has: lent as bits. 1: the object is none. */
static int
append_small_floats(struct module_state *state, struct paml_request *request,
                    PyObject *object, const struct input_name *name)
{
    static const struct {
        const char *name, *bits;
        DLDataType dtype;
    } known[] = {
        {"bfloat16", "u2", {kDLBfloat, 16, 1}},
        {"float8_e4m3fn", "u1", {kDLFloat8_e4m3fn, 8, 1}},
        {"float8_e4m3fnuz", "u1", {kDLFloat8_e4m3fnuz, 8, 1}},
        {"float8_e5m2", "u1", {kDLFloat8_e5m2, 8, 1}},
        {"float8_e5m2fnuz", "u1", {kDLFloat8_e5m2fnuz, 8, 1}},
    };
    PyObject *dtype = PyObject_GetAttrString(object, "dtype"), *view = NULL;
    PyObject *text = dtype != NULL ? PyObject_GetAttrString(dtype, "name") : NULL;
    uint32_t at = request->op.n_inputs;
    int status = 1;

    if (text != NULL && PyUnicode_Check(text)) {
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
            if (PyUnicode_CompareWithASCIIString(text, known[i].name) != 0) {
                continue;
            }
            view = PyObject_CallMethod(object, "view", "s", known[i].bits);
            status = view != NULL ? append_buffer(state, request, view, name) : -1;
            if (status == 0) {
                request->op.inputs[at].tensor.dtype = known[i].dtype;
            }
            break;
        }
    }
    Py_XDECREF(dtype);
    Py_XDECREF(text);
    Py_XDECREF(view);
    if (status == 1) {
        PyErr_Clear();
    }
    return status;
}

/* --- DLPack --- */

static int
append_managed(struct module_state *state, struct paml_request *request,
               DLManagedTensorVersioned *managed, const struct input_name *name)
{
    struct paml_value *value;

    if (managed->version.major != DLPACK_MAJOR_VERSION) {
        unsigned major = managed->version.major;
        release_managed(managed);
        return paml_input_refuse(PyExc_TypeError, name, "speaks DLPack %u, not %d",
                                 major, DLPACK_MAJOR_VERSION);
    }
    value = paml_request_input(request);
    if (value == NULL) {
        release_managed(managed);
        return -1;
    }
    value->kind = PAML_TENSOR;
    value->tensor = managed->dl_tensor;
    value->owner = managed;
    value->release = release_managed;
    return check_tensor(state, value, name);
}

/* object.__dlpack__(): works for every producer, and costs a Python call. */
static int
append_capsule(struct module_state *state, struct paml_request *request,
               PyObject *object, const struct input_name *name)
{
    PyObject *method = PyObject_GetAttr(object, state->str_dlpack), *capsule = NULL;
    PyObject *keywords = NULL;
    struct paml_value *value;
    DLManagedTensor *legacy;
    void *managed;
    int status = -1;

    if (method == NULL) {
        return -1;
    }
    keywords = Py_BuildValue("{s(ii)}", "max_version", DLPACK_MAJOR_VERSION,
                             DLPACK_MINOR_VERSION);
    if (keywords != NULL) {
        PyObject *none = PyTuple_New(0);
        if (none != NULL) {
            capsule = PyObject_Call(method, none, keywords);
            Py_DECREF(none);
        }
    }
    if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear(); /* a producer from before max_version */
        capsule = PyObject_CallNoArgs(method);
    }
    Py_XDECREF(keywords);
    Py_DECREF(method);
    if (capsule == NULL) {
        return paml_input_refuse(PyExc_TypeError, name,
                                 "a %s can't be lent through DLPack",
                                 Py_TYPE(object)->tp_name);
    }
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        PyCapsule_SetName(capsule, "used_dltensor_versioned");
        status = append_managed(state, request, managed, name);
    } else if (PyCapsule_IsValid(capsule, "dltensor")) {
        legacy = PyCapsule_GetPointer(capsule, "dltensor");
        value = paml_request_input(request);
        if (value != NULL) {
            PyCapsule_SetName(capsule, "used_dltensor");
            value->kind = PAML_TENSOR;
            value->tensor = legacy->dl_tensor;
            value->owner = legacy;
            value->release = release_managed_legacy;
            status = check_tensor(state, value, name);
        }
    } else {
        paml_input_refuse(PyExc_TypeError, name,
                          "__dlpack__ of a %s gave no DLPack capsule",
                          Py_TYPE(object)->tp_name);
    }
    Py_DECREF(capsule);
    return status;
}

/* Finds the C exchange API of a type and remembers the last one. 1: there is one. */
static int
find_exchange_api(struct module_state *state, PyTypeObject *type)
{
    const DLPackExchangeAPI *api;
    PyObject *capsule, *torch, *tensor = NULL;
    int is_torch = 0;

    if (type == state->exchange_type) {
        return 1;
    }
    capsule = PyObject_GetAttr((PyObject *)type, state->str_exchange_api);
    if (capsule == NULL) {
        PyErr_Clear();
        return 0;
    }
    api = PyCapsule_IsValid(capsule, "dlpack_exchange_api")
              ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
              : NULL;
    if (api == NULL || api->header.version.major != DLPACK_MAJOR_VERSION) {
        Py_DECREF(capsule);
        return 0;
    }
    torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
    if (torch != NULL) {
        tensor = PyObject_GetAttrString(torch, "Tensor");
        is_torch = tensor != NULL ? PyObject_IsSubclass((PyObject *)type, tensor) : 0;
        PyErr_Clear();
    }
    if (is_torch > 0) {
        Py_XSETREF(state->torch_tensor, Py_NewRef(tensor));
    }
    Py_XDECREF(tensor);
    Py_XSETREF(state->exchange_type, (PyTypeObject *)Py_NewRef(type));
    Py_XSETREF(state->exchange_capsule, capsule);
    state->exchange_api = api;
    state->exchange_is_torch = is_torch > 0;
    return 1;
}

/* 1: the view is conjugated or negated lazily, which DLPack drops silently. */
static int
is_lazy_view(struct module_state *state, PyObject *tensor, DLDataType dtype)
{
    PyObject *answer = PyObject_CallMethodNoArgs(tensor, state->str_is_neg);
    int lazy = answer != NULL ? PyObject_IsTrue(answer) : -1;

    Py_XDECREF(answer);
    if (lazy == 0 && dtype.code == kDLComplex) {
        answer = PyObject_CallMethodNoArgs(tensor, state->str_is_conj);
        lazy = answer != NULL ? PyObject_IsTrue(answer) : -1;
        Py_XDECREF(answer);
    }
    return lazy;
}

static int
append_exchanged(struct module_state *state, struct paml_request *request,
                 PyObject *object, const struct input_name *name, int resolved)
{
    const DLPackExchangeAPI *api = state->exchange_api;
    int is_torch = state->exchange_is_torch, lazy = 0, status;
    DLManagedTensorVersioned *managed = NULL;
    PyObject *without_conj, *plain;

    if (api->managed_tensor_from_py_object_no_sync(object, &managed) != 0) {
        return paml_input_refuse(
            PyExc_TypeError, name,
            "this %s can't be lent as a dense tensor (sparse, quantized, meta "
            "and nested ones can't)",
            Py_TYPE(object)->tp_name);
    }
    if (is_torch && !resolved) {
        lazy = is_lazy_view(state, object, managed->dl_tensor.dtype);
    }
    if (lazy == 0) {
        return append_managed(state, request, managed, name);
    }
    release_managed(managed);
    if (lazy < 0) {
        return -1;
    }
    without_conj = PyObject_CallMethodNoArgs(object, state->str_resolve_conj);
    if (without_conj == NULL) {
        return -1;
    }
    plain = PyObject_CallMethodNoArgs(without_conj, state->str_resolve_neg);
    Py_DECREF(without_conj);
    if (plain == NULL) {
        return -1;
    }
    status = append_exchanged(state, request, plain, name, 1);
    Py_DECREF(plain);
    return status;
}

/* --- everything else --- */

static int
append_string(struct module_state *state, struct paml_request *request,
              PyObject *object, int kind, const struct input_name *name)
{
    struct paml_value *value;
    const char *data;
    Py_ssize_t size;

    if (kind == PAML_BYTES) {
        data = PyBytes_AS_STRING(object);
        size = PyBytes_GET_SIZE(object);
    } else {
        data = PyUnicode_AsUTF8AndSize(object, &size);
        if (data == NULL) {
            return paml_input_refuse(state->InputError, name,
                                     "the text can't be encoded");
        }
    }
    value = paml_request_input(request);
    if (value == NULL) {
        return -1;
    }
    value->kind = (uint32_t)kind;
    value->string.data = data;
    value->string.size = (size_t)size;
    value->owner = Py_NewRef(object);
    value->release = release_object;
    return 0;
}

static int
append_number(struct module_state *state, struct paml_request *request,
              PyObject *object, uint32_t kinds, const struct input_name *name)
{
    struct paml_value *value = paml_request_input(request);

    if (value == NULL) {
        return -1;
    }
    if (PyBool_Check(object)) {
        value->kind = PAML_BOOL;
        value->integer = object == Py_True;
    } else if (PyFloat_Check(object)) {
        value->kind = PAML_FLOAT;
        value->real = PyFloat_AS_DOUBLE(object);
    } else if (!(kinds & PAML_KIND_BIT(PAML_INT)) &&
               (kinds & PAML_KIND_BIT(PAML_FLOAT))) {
        value->kind = PAML_FLOAT;
        value->real = PyLong_AsDouble(object);
    } else {
        value->kind = PAML_INT;
        value->integer = PyLong_AsLongLong(object);
    }
    if (PyErr_Occurred()) {
        return paml_input_refuse(state->InputError, name,
                                 "the number doesn't fit in 64 bits");
    }
    return 0;
}

/* A numpy scalar or a 0-d array where the model wants a number. */
static int
append_converted(struct module_state *state, struct paml_request *request,
                 PyObject *object, uint32_t kinds, const struct input_name *name)
{
    PyObject *number = kinds & PAML_KIND_BIT(PAML_FLOAT) ? PyNumber_Float(object)
                                                         : PyNumber_Index(object);
    int status;

    if (number == NULL) {
        return paml_input_refuse(PyExc_TypeError, name, "expected a number, got %s",
                                 Py_TYPE(object)->tp_name);
    }
    status = append_number(state, request, number, kinds, name);
    Py_DECREF(number);
    return status;
}

static int
append_items(struct module_state *state, struct paml_request *request, PyObject *object,
             const struct input_name *name, struct tensor_census *census, int depth)
{
    struct paml_value *value = paml_request_input(request);
    PyObject *items;
    int is_dict = PyDict_Check(object), status = 0;

    if (value == NULL) {
        return -1;
    }
    value->kind = is_dict ? PAML_DICT : PyTuple_Check(object) ? PAML_TUPLE : PAML_LIST;
    /* A copy: nested producers run Python code, which may change the container. */
    items = is_dict ? PyDict_Items(object) : PySequence_Tuple(object);
    if (items == NULL) {
        return -1;
    }
    value->count = (uint32_t)PySequence_Fast_GET_SIZE(items);
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items) && status == 0; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        if (is_dict) {
            status = append(state, request, PyTuple_GET_ITEM(item, 0), PAML_KIND_ANY,
                            name, census, depth + 1);
            item = PyTuple_GET_ITEM(item, 1);
        }
        if (status == 0) {
            status =
                append(state, request, item, PAML_KIND_ANY, name, census, depth + 1);
        }
    }
    Py_DECREF(items);
    return status;
}

static int
append_tensor(struct module_state *state, struct paml_request *request,
              PyObject *object, const struct input_name *name,
              struct tensor_census *census)
{
    if (PyObject_CheckBuffer(object)) {
        uint32_t at = request->op.n_inputs;
        int status = append_buffer(state, request, object, name);
        census->other +=
            status == 0 && !paml_dtype_is_strings(request->op.inputs[at].tensor.dtype);
        return status;
    }
    if (find_exchange_api(state, Py_TYPE(object))) {
        census->torch += state->exchange_is_torch;
        census->other += !state->exchange_is_torch;
        return append_exchanged(state, request, object, name, 0);
    }
    census->other++;
    return append_capsule(state, request, object, name);
}

static int
is_tensor(struct module_state *state, PyObject *object)
{
    return Py_TYPE(object) == state->exchange_type || PyObject_CheckBuffer(object) ||
           PyObject_HasAttr((PyObject *)Py_TYPE(object), state->str_dlpack);
}

/* "a tensor or a float", of a bit mask. */
static void
expected_text(uint32_t kinds, char *text, size_t size)
{
    size_t length = 0;

    text[0] = '\0';
    for (int kind = PAML_NONE; kind < PAML_OBJECT && length < size; kind++) {
        if (kinds & PAML_KIND_BIT(kind)) {
            length += (size_t)snprintf(text + length, size - length, "%s%s",
                                       length > 0 ? " or " : "", paml_kind_name(kind));
        }
    }
}

static int
append(struct module_state *state, struct paml_request *request, PyObject *object,
       uint32_t kinds, const struct input_name *name, struct tensor_census *census,
       int depth)
{
    uint32_t numbers = PAML_KIND_BIT(PAML_INT) | PAML_KIND_BIT(PAML_FLOAT);
    char expected[128];
    int kind;

    if (depth > MAX_DEPTH) {
        return paml_input_refuse(state->InputError, name,
                                 "is nested deeper than %d levels", MAX_DEPTH);
    }
    if (PyBytes_Check(object)) {
        kind = kinds & PAML_KIND_BIT(PAML_BYTES) ? PAML_BYTES : PAML_TENSOR;
    } else if (PyFloat_CheckExact(object)) {
        kind = PAML_FLOAT;
    } else if (PyBool_Check(object)) {
        kind = PAML_BOOL;
    } else if (PyLong_Check(object)) {
        kind = PAML_INT;
    } else if (PyUnicode_Check(object)) {
        kind = PAML_STRING;
    } else if (object == Py_None) {
        kind = PAML_NONE;
    } else if (PyTuple_Check(object)) {
        kind = PAML_TUPLE;
    } else if (PyList_Check(object)) {
        kind = PAML_LIST;
    } else if (PyDict_Check(object)) {
        kind = PAML_DICT;
    } else if (is_tensor(state, object)) {
        kind = PAML_TENSOR;
        if (!(kinds & PAML_KIND_BIT(PAML_TENSOR)) && (kinds & numbers)) {
            return append_converted(state, request, object, kinds, name);
        }
    } else if (PyFloat_Check(object)) {
        kind = PAML_FLOAT;
    } else {
        return paml_input_refuse(
            PyExc_TypeError, name,
            "expected a tensor (anything with __dlpack__ or the buffer "
            "protocol), a number, a string or a structure of them, got %s",
            Py_TYPE(object)->tp_name);
    }
    if (!(kinds & PAML_KIND_BIT(kind)) &&
        !(kind == PAML_INT && (kinds & PAML_KIND_BIT(PAML_FLOAT)))) {
        expected_text(kinds, expected, sizeof(expected));
        return paml_input_refuse(PyExc_TypeError, name, "expected %s, got %s", expected,
                                 Py_TYPE(object)->tp_name);
    }
    switch (kind) {
    case PAML_NONE:
        return paml_request_input(request) != NULL ? 0 : -1;
    case PAML_TENSOR:
        return append_tensor(state, request, object, name, census);
    case PAML_BOOL:
    case PAML_INT:
    case PAML_FLOAT:
        return append_number(state, request, object, kinds, name);
    case PAML_STRING:
    case PAML_BYTES:
        return append_string(state, request, object, kind, name);
    default:
        return append_items(state, request, object, name, census, depth);
    }
}

int
paml_value_append(struct module_state *state, struct paml_request *request,
                  PyObject *object, uint32_t kinds, const struct input_name *name,
                  struct tensor_census *census)
{
    return append(state, request, object, kinds, name, census, 0);
}

int
paml_value_append_large(struct module_state *state, struct paml_request *request,
                        PyObject *object, const struct input_name *name)
{
    const DLDataType dtype = {kDLUInt, 64, 1};
    struct paml_value *value;
    unsigned long long number;
    int overflow = 0;

    if (PyLong_Check(object)) {
        PyLong_AsLongLongAndOverflow(object, &overflow);
    }
    if (overflow <= 0) {
        return 0;
    }
    number = PyLong_AsUnsignedLongLong(object);
    if (PyErr_Occurred()) {
        return paml_input_refuse(state->InputError, name,
                                 "the number doesn't fit in 64 bits");
    }
    value = paml_request_input(request);
    if (value == NULL) {
        return -1;
    }
    if (paml_tensor_new(value, dtype, 0, NULL) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(value->tensor.data, &number, sizeof(number));
    return 1;
}

int
paml_value_append_object(struct paml_request *request, PyObject *object)
{
    struct paml_value *value = paml_request_input(request);

    if (value == NULL) {
        Py_DECREF(object);
        return -1;
    }
    value->kind = PAML_OBJECT;
    value->object = object;
    value->owner = object;
    value->release = release_object;
    return 0;
}
