/* See string_values.h. */
#include <string.h>

#include "string_values.h"

static PyObject *
item_new(DLDataType dtype, const struct paml_string *string)
{
    if (dtype.code == PAML_CODE_BYTES) {
        return PyBytes_FromStringAndSize(string->data, (Py_ssize_t)string->size);
    }
    /* Frameworks' texts need not be UTF-8. */
    return PyUnicode_DecodeUTF8(string->size > 0 ? string->data : "",
                                (Py_ssize_t)string->size, "surrogateescape");
}

/* The items along the axes from `axis` on, which begin at `at`, in C order. */
static int
fill(const DLTensor *tensor, const int64_t *strides, int32_t axis,
     const struct paml_string *at, PyObject ***slot)
{
    PyObject *item, *old;

    if (axis < tensor->ndim) {
        for (int64_t i = 0; i < tensor->shape[axis]; i++) {
            if (fill(tensor, strides, axis + 1, at + i * strides[axis], slot) < 0) {
                return -1;
            }
        }
        return 0;
    }
    item = item_new(tensor->dtype, at);
    if (item == NULL) {
        return -1;
    }
    old = **slot; /* numpy's empty arrays hold None */
    **slot = item;
    (*slot)++;
    Py_XDECREF(old);
    return 0;
}

static PyObject *
nested_lists(const DLTensor *tensor, const int64_t *strides, int32_t axis,
             const struct paml_string *at)
{
    PyObject *list, *item;

    if (axis == tensor->ndim) {
        return item_new(tensor->dtype, at);
    }
    list = PyList_New(tensor->shape[axis]);
    for (int64_t i = 0; list != NULL && i < tensor->shape[axis]; i++) {
        item = nested_lists(tensor, strides, axis + 1, at + i * strides[axis]);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *
object_array(PyObject *numpy, const DLTensor *tensor, const int64_t *strides,
             const struct paml_string *at)
{
    PyObject *shape = PyTuple_New(tensor->ndim), *array = NULL;
    Py_buffer view;
    PyObject **slot;
    int status;

    for (int32_t i = 0; shape != NULL && i < tensor->ndim; i++) {
        PyObject *size = PyLong_FromLongLong(tensor->shape[i]);
        if (size == NULL) {
            Py_CLEAR(shape);
            break;
        }
        PyTuple_SET_ITEM(shape, i, size);
    }
    if (shape != NULL) {
        array = PyObject_CallMethod(numpy, "empty", "Os", shape, "O");
        Py_DECREF(shape);
    }
    if (array == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(array, &view,
                           PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    slot = view.buf;
    status = fill(tensor, strides, 0, at, &slot);
    PyBuffer_Release(&view);
    if (status < 0) {
        Py_CLEAR(array);
    }
    return array;
}

PyObject *
paml_strings_to_object(PyObject *numpy, const DLTensor *tensor)
{
    const struct paml_string *at =
        (const struct paml_string *)((const char *)tensor->data + tensor->byte_offset);
    int64_t dense[PAML_MAX_RANK], *strides = tensor->strides, stride = 1;

    if (strides == NULL) {
        strides = dense;
        for (int32_t i = tensor->ndim - 1; i >= 0; i--) {
            dense[i] = stride;
            stride *= tensor->shape[i];
        }
    }
    return numpy == Py_None ? nested_lists(tensor, strides, 0, at)
                            : object_array(numpy, tensor, strides, at);
}
