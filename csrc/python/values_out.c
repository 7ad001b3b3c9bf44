/* paml_values to Python objects. See values.h. */
#include "values.h"

#include <string.h>

#include "string_values.h"

/* A tensor that came out of a run: lends its memory through the buffer protocol and
   DLPack. numpy arrays are made over it; without numpy it is the result itself. */
typedef struct {
    PyObject_HEAD struct module_state *state;
    struct paml_value value;
    Py_ssize_t *strides; /* in bytes, for the buffer protocol */
    char format[4];
} TensorObj;

static const char *
format_of_dtype(DLDataType dtype)
{
    static const char *const ints[] = {"b", "h", "i", "q"};
    static const char *const uints[] = {"B", "H", "I", "Q"};
    int log2_bytes = dtype.bits == 8    ? 0
                     : dtype.bits == 16 ? 1
                     : dtype.bits == 32 ? 2
                                        : 3;

    switch (dtype.code) {
    case kDLInt:
        return ints[log2_bytes];
    case kDLUInt:
        return uints[log2_bytes];
    case kDLFloat:
        return dtype.bits == 16 ? "e" : dtype.bits == 32 ? "f" : "d";
    case kDLComplex:
        return dtype.bits == 64 ? "Zf" : "Zd";
    case kDLBool:
        return "?";
    default:
        return NULL;
    }
}

/* Takes the value's owner over. */
static TensorObj *
tensor_new(struct module_state *state, struct paml_value *value)
{
    TensorObj *self = PyObject_New(TensorObj, state->TensorType);
    const DLTensor *tensor = &value->tensor;
    Py_ssize_t stride = (Py_ssize_t)paml_dtype_bytes(tensor->dtype, 1);

    if (self == NULL) {
        return NULL;
    }
    self->state = state;
    self->value = *value;
    value->owner = NULL;
    value->release = NULL;
    self->strides = NULL;
    if (tensor->ndim > 0) {
        self->strides = PyMem_New(Py_ssize_t, tensor->ndim);
        if (self->strides == NULL) {
            Py_DECREF(self);
            return (TensorObj *)PyErr_NoMemory();
        }
        for (int32_t i = tensor->ndim - 1; i >= 0; i--) {
            self->strides[i] = tensor->strides != NULL
                                   ? tensor->strides[i] *
                                         (Py_ssize_t)paml_dtype_bytes(tensor->dtype, 1)
                                   : stride;
            stride *= tensor->shape[i];
        }
    }
    return self;
}

static void
Tensor_dealloc(TensorObj *self)
{
    PyTypeObject *type = Py_TYPE(self);

    paml_value_release(&self->value);
    PyMem_Free(self->strides);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int
Tensor_getbuffer(TensorObj *self, Py_buffer *view, int flags)
{
    const DLTensor *tensor = &self->value.tensor;
    const char *format = format_of_dtype(tensor->dtype);
    int contiguous = paml_tensor_is_contiguous(tensor);

    view->obj = NULL;
    if (tensor->device.device_type != kDLCPU) {
        PyErr_SetString(PyExc_BufferError, "the tensor is not in host memory");
        return -1;
    }
    if (format == NULL && (flags & PyBUF_FORMAT)) {
        char name[64];
        PyErr_Format(PyExc_BufferError, "the buffer protocol has no format for %s",
                     paml_dtype_name(tensor->dtype, name, sizeof(name)));
        return -1;
    }
    if (!contiguous &&
        ((flags & PyBUF_STRIDES) != PyBUF_STRIDES ||
         (flags & (PyBUF_C_CONTIGUOUS | PyBUF_F_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS) &
          ~PyBUF_STRIDES))) {
        PyErr_SetString(PyExc_BufferError, "the tensor is not C-contiguous");
        return -1;
    }
    if (contiguous && tensor->ndim > 1 &&
        (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS) {
        PyErr_SetString(PyExc_BufferError, "the tensor is not Fortran-contiguous");
        return -1;
    }
    memset(view, 0, sizeof(*view));
    view->buf = (char *)tensor->data + tensor->byte_offset;
    view->obj = Py_NewRef((PyObject *)self);
    view->itemsize = (Py_ssize_t)paml_dtype_bytes(tensor->dtype, 1);
    view->len = (Py_ssize_t)paml_value_nbytes(&self->value);
    view->format = flags & PyBUF_FORMAT ? (char *)format : NULL;
    view->ndim = tensor->ndim;
    view->shape = flags & PyBUF_ND ? (Py_ssize_t *)tensor->shape : NULL;
    view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : NULL;
    return 0;
}

/* --- DLPack out --- */

/* One allocation: what the consumer gets, and the value it keeps alive. */
struct managed_output {
    DLManagedTensorVersioned managed;
    struct paml_value value;
    int64_t strides[]; /* only where the value has none: DLPack 1.2 wants them */
};

static void
managed_output_delete(DLManagedTensorVersioned *managed)
{
    struct managed_output *output = managed->manager_ctx;

    paml_value_release(&output->value);
    PyMem_RawFree(output);
}

/* Takes the value's owner over. */
static DLManagedTensorVersioned *
managed_output_new(struct paml_value *value)
{
    int32_t ndim = value->tensor.ndim;
    size_t extra = value->tensor.strides == NULL ? (size_t)ndim * sizeof(int64_t) : 0;
    struct managed_output *output = PyMem_RawMalloc(sizeof(*output) + extra);
    int64_t stride = 1;

    if (output == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(&output->managed, 0, sizeof(output->managed));
    output->value = *value;
    value->owner = NULL;
    value->release = NULL;
    output->managed.version =
        (DLPackVersion){DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
    output->managed.manager_ctx = output;
    output->managed.deleter = managed_output_delete;
    output->managed.dl_tensor = output->value.tensor;
    if (value->tensor.strides == NULL) {
        for (int32_t i = ndim - 1; i >= 0; i--) {
            output->strides[i] = stride;
            stride *= value->tensor.shape[i];
        }
        output->managed.dl_tensor.strides = output->strides;
    }
    return &output->managed;
}

static void
capsule_destructor(PyObject *capsule)
{
    DLManagedTensorVersioned *managed;

    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        managed->deleter(managed);
    }
}

static void
release_tensor_object(void *owner)
{
    PyGILState_STATE gil = PyGILState_Ensure();

    Py_DECREF((PyObject *)owner);
    PyGILState_Release(gil);
}

PyDoc_STRVAR(Tensor_dlpack_doc,
             "__dlpack__($self, /, *, stream=None, max_version=None, dl_device=None,\n"
             "           copy=None)\n--\n\nA DLPack capsule over the same memory.");

static void
legacy_delete(DLManagedTensor *legacy)
{
    DLManagedTensorVersioned *managed = legacy->manager_ctx;

    PyMem_RawFree(legacy);
    managed->deleter(managed);
}

static void
legacy_capsule_destructor(PyObject *capsule)
{
    DLManagedTensor *legacy;

    if (PyCapsule_IsValid(capsule, "dltensor")) {
        legacy = PyCapsule_GetPointer(capsule, "dltensor");
        legacy->deleter(legacy);
    }
}

/* For consumers from before DLPack 1.0. Takes `managed` over. */
static PyObject *
legacy_capsule(DLManagedTensorVersioned *managed)
{
    DLManagedTensor *legacy = PyMem_RawMalloc(sizeof(*legacy));
    PyObject *capsule;

    if (legacy == NULL) {
        managed->deleter(managed);
        return PyErr_NoMemory();
    }
    legacy->dl_tensor = managed->dl_tensor;
    legacy->manager_ctx = managed;
    legacy->deleter = legacy_delete;
    capsule = PyCapsule_New(legacy, "dltensor", legacy_capsule_destructor);
    if (capsule == NULL) {
        legacy_delete(legacy);
    }
    return capsule;
}

static PyObject *
Tensor_dlpack(TensorObj *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
    DLDevice here = self->value.tensor.device;
    DLManagedTensorVersioned *managed;
    struct paml_value view;
    int major = 0, minor = 0, type, index;
    PyObject *capsule;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream,
                                     &version, &device, &copy) ||
        (version != Py_None &&
         !PyArg_ParseTuple(version, "ii:max_version", &major, &minor))) {
        return NULL;
    }
    if (device != Py_None) {
        if (!PyArg_ParseTuple(device, "ii:dl_device", &type, &index)) {
            return NULL;
        }
        if (type != (int)here.device_type || index != (int)here.device_id) {
            PyErr_SetString(PyExc_BufferError, "dl_device: the tensor is elsewhere");
            return NULL;
        }
    }
    if (copy == Py_True) {
        PyErr_SetString(PyExc_BufferError, "copy=True: only a view can be had");
        return NULL;
    }
    /* A view of the value whose owner is this object. */
    view = self->value;
    view.owner = self;
    view.release = release_tensor_object;
    managed = managed_output_new(&view);
    if (managed == NULL) {
        return NULL;
    }
    Py_INCREF(self);
    if (major < 1) {
        return legacy_capsule(managed);
    }
    capsule = PyCapsule_New(managed, "dltensor_versioned", capsule_destructor);
    if (capsule == NULL) {
        managed->deleter(managed);
    }
    return capsule;
}

PyDoc_STRVAR(Tensor_dlpack_device_doc,
             "__dlpack_device__($self, /)\n--\n\n(device type, device index)");

static PyObject *
Tensor_dlpack_device(TensorObj *self, PyObject *Py_UNUSED(ignored))
{
    DLDevice device = self->value.tensor.device;

    return Py_BuildValue("(ii)", (int)device.device_type, (int)device.device_id);
}

static PyObject *
shape_tuple(const DLTensor *tensor)
{
    PyObject *shape = PyTuple_New(tensor->ndim);

    for (int32_t i = 0; shape != NULL && i < tensor->ndim; i++) {
        PyObject *size = PyLong_FromLongLong(tensor->shape[i]);
        if (size == NULL) {
            Py_CLEAR(shape);
            break;
        }
        PyTuple_SET_ITEM(shape, i, size);
    }
    return shape;
}

static PyObject *
Tensor_repr(TensorObj *self)
{
    char dtype[64], device[64];
    PyObject *shape = shape_tuple(&self->value.tensor), *repr;

    if (shape == NULL) {
        return NULL;
    }
    repr = PyUnicode_FromFormat(
        "<pyasyncml tensor %s%R on %s>",
        paml_dtype_name(self->value.tensor.dtype, dtype, sizeof(dtype)), shape,
        paml_device_name(self->value.tensor.device, device, sizeof(device)));
    Py_DECREF(shape);
    return repr;
}

static PyMethodDef Tensor_methods[] = {
    {"__dlpack__", (PyCFunction)(void (*)(void))Tensor_dlpack,
     METH_VARARGS | METH_KEYWORDS, Tensor_dlpack_doc},
    {"__dlpack_device__", (PyCFunction)Tensor_dlpack_device, METH_NOARGS,
     Tensor_dlpack_device_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Tensor_slots[] = {
    {Py_tp_doc,
     "Memory of a model's output; numpy.asarray() and from_dlpack() take it."},
    {Py_tp_dealloc, Tensor_dealloc},
    {Py_tp_methods, Tensor_methods},
    {Py_tp_repr, Tensor_repr},
    {Py_bf_getbuffer, Tensor_getbuffer},
    {0, NULL},
};

static PyType_Spec Tensor_spec = {
    .name = "pyasyncml._core.Tensor",
    .basicsize = sizeof(TensorObj),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Tensor_slots,
};

/* --- numpy --- */

/* numpy if the process has it or can have it; None otherwise. Borrowed. */
static PyObject *
find_numpy(struct module_state *state)
{
    if (state->numpy == NULL) {
        state->numpy = PyImport_ImportModule("numpy");
        if (state->numpy == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_ImportError)) {
                return NULL;
            }
            PyErr_Clear();
            state->numpy = Py_NewRef(Py_None);
        } else {
            state->ndarray = PyObject_GetAttrString(state->numpy, "ndarray");
            if (state->ndarray == NULL) {
                Py_CLEAR(state->numpy);
            }
        }
    }
    return state->numpy;
}

/* The numpy.dtype of a DLPack type (borrowed). ml_dtypes has those numpy lacks. */
static PyObject *
numpy_dtype(struct module_state *state, DLDataType dtype)
{
    PyObject *key = PyLong_FromLong(dtype.code << 24 | dtype.bits << 16 | dtype.lanes);
    PyObject *found, *scalar, *extra;
    char name[64];

    if (key == NULL) {
        return NULL;
    }
    found = PyDict_GetItemWithError(state->dtypes, key);
    if (found != NULL || PyErr_Occurred()) {
        Py_DECREF(key);
        return found;
    }
    paml_dtype_name(dtype, name, sizeof(name));
    if (format_of_dtype(dtype) != NULL && dtype.lanes == 1) {
        scalar = PyUnicode_FromString(name);
    } else {
        extra = PyImport_ImportModule("ml_dtypes");
        scalar = extra != NULL ? PyObject_GetAttrString(extra, name) : NULL;
        Py_XDECREF(extra);
    }
    if (scalar != NULL) {
        found = PyObject_CallMethod(state->numpy, "dtype", "O", scalar);
        Py_DECREF(scalar);
    }
    if (found == NULL) {
        PyErr_Clear();
        PyErr_Format(
            state->BackendError,
            "an output is %s, which numpy has no dtype for: give torch tensors "
            "to get torch tensors, or pip install ml_dtypes",
            name);
    } else if (PyDict_SetItem(state->dtypes, key, found) < 0) {
        Py_CLEAR(found);
    } else {
        Py_DECREF(found); /* the dict holds it */
    }
    Py_DECREF(key);
    return found;
}

static PyObject *
tensor_to_numpy(struct module_state *state, struct paml_value *value)
{
    const DLTensor tensor = value->tensor;
    PyObject *numpy = find_numpy(state), *dtype, *shape = NULL, *array = NULL;
    TensorObj *memory;

    if (numpy == NULL) {
        return NULL;
    }
    if (numpy == Py_None || tensor.device.device_type != kDLCPU) {
        return (PyObject *)tensor_new(state, value);
    }
    dtype = numpy_dtype(state, tensor.dtype);
    memory = dtype != NULL ? tensor_new(state, value) : NULL;
    if (memory == NULL) {
        return NULL;
    }
    if (!paml_tensor_is_contiguous(&tensor)) {
        array = PyObject_CallMethod(numpy, "asarray", "O", memory);
    } else if ((shape = shape_tuple(&tensor)) != NULL) {
        PyObject *arguments[] = {NULL, shape, dtype, (PyObject *)memory};
        array = PyObject_Vectorcall(state->ndarray, arguments + 1,
                                    3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(shape);
    Py_DECREF(memory);
    return array;
}

/* --- torch --- */

static PyObject *
tensor_to_torch(struct module_state *state, struct paml_value *value)
{
    const DLPackExchangeAPI *api = state->exchange_api;
    DLManagedTensorVersioned *managed;
    void *object = NULL;
    PyObject *memory, *torch, *tensor;

    if (api != NULL && state->exchange_is_torch) {
        managed = managed_output_new(value);
        if (managed == NULL) {
            return NULL;
        }
        if (api->managed_tensor_to_py_object_no_sync(managed, &object) != 0) {
            managed->deleter(managed);
            return NULL;
        }
        return object;
    }
    memory = (PyObject *)tensor_new(state, value);
    torch = memory != NULL ? PyImport_ImportModule("torch") : NULL;
    tensor =
        torch != NULL ? PyObject_CallMethod(torch, "from_dlpack", "O", memory) : NULL;
    Py_XDECREF(torch);
    Py_XDECREF(memory);
    return tensor;
}

/* --- structures --- */

struct cursor {
    struct paml_value *next, *end;
};

static PyObject *
take_object(struct module_state *state, struct cursor *cursor, enum flavour flavour)
{
    struct paml_value *value = cursor->next;
    PyObject *container, *item, *key;

    if (value == cursor->end) {
        PyErr_SetString(state->BackendError,
                        "the backend's output structure is cut off");
        return NULL;
    }
    cursor->next++;
    switch (value->kind) {
    case PAML_NONE:
        Py_RETURN_NONE;
    case PAML_TENSOR:
        if (paml_dtype_is_strings(value->tensor.dtype)) {
            PyObject *numpy = find_numpy(state); /* torch has no strings */
            return numpy != NULL ? paml_strings_to_object(numpy, &value->tensor) : NULL;
        }
        return flavour == FLAVOUR_TORCH ? tensor_to_torch(state, value)
                                        : tensor_to_numpy(state, value);
    case PAML_BOOL:
        return PyBool_FromLong(value->integer != 0);
    case PAML_INT:
        return PyLong_FromLongLong(value->integer);
    case PAML_FLOAT:
        return PyFloat_FromDouble(value->real);
    case PAML_STRING:
        return PyUnicode_DecodeUTF8(value->string.data, (Py_ssize_t)value->string.size,
                                    "surrogateescape");
    case PAML_BYTES:
        return PyBytes_FromStringAndSize(value->string.data,
                                         (Py_ssize_t)value->string.size);
    case PAML_OBJECT:
        return Py_NewRef((PyObject *)value->object);
    case PAML_DICT:
        container = PyDict_New();
        for (uint32_t i = 0; container != NULL && i < value->count; i++) {
            key = take_object(state, cursor, flavour);
            item = key != NULL ? take_object(state, cursor, flavour) : NULL;
            if (item == NULL || PyDict_SetItem(container, key, item) < 0) {
                Py_CLEAR(container);
            }
            Py_XDECREF(key);
            Py_XDECREF(item);
        }
        return container;
    default:
        container = value->kind == PAML_TUPLE ? PyTuple_New(value->count)
                                              : PyList_New(value->count);
        for (uint32_t i = 0; container != NULL && i < value->count; i++) {
            item = take_object(state, cursor, flavour);
            if (item == NULL) {
                Py_CLEAR(container);
            } else if (value->kind == PAML_TUPLE) {
                PyTuple_SET_ITEM(container, i, item);
            } else {
                PyList_SET_ITEM(container, i, item);
            }
        }
        return container;
    }
}

PyObject *
paml_outputs_to_object(struct module_state *state, struct paml_outputs *outputs,
                       enum flavour flavour)
{
    struct cursor cursor = {outputs->values, outputs->values + outputs->count};

    if (outputs->count == 0) {
        Py_RETURN_NONE;
    }
    return take_object(state, &cursor, flavour);
}

int
paml_values_exec(PyObject *module, struct module_state *state)
{
    state->TensorType =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &Tensor_spec, NULL);
    state->dtypes = PyDict_New();
    state->str_is_neg = PyUnicode_InternFromString("is_neg");
    state->str_is_conj = PyUnicode_InternFromString("is_conj");
    state->str_resolve_neg = PyUnicode_InternFromString("resolve_neg");
    state->str_resolve_conj = PyUnicode_InternFromString("resolve_conj");
    state->str_dlpack = PyUnicode_InternFromString("__dlpack__");
    state->str_exchange_api = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
    if (state->TensorType == NULL || state->dtypes == NULL ||
        state->str_is_neg == NULL || state->str_is_conj == NULL ||
        state->str_resolve_neg == NULL || state->str_resolve_conj == NULL ||
        state->str_dlpack == NULL || state->str_exchange_api == NULL) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "Tensor", (PyObject *)state->TensorType);
}
