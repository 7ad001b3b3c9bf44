/* See string_values.h. The strings' bytes are borrowed: each element keeps a reference
   to its str or bytes, or the loan of the array that they lie in. */
#include <string.h>

#include "string_values.h"

#define DEPTH_MOST 32

/* What a tensor's value owns: one allocation. */
struct loan {
    Py_buffer view; /* obj == NULL: none is held */
    int64_t count;
    PyObject **kept;              /* count of them, NULL where the view has the bytes */
    struct paml_string *elements; /* count of them */
    int64_t shape[];
};

static void
loan_release(void *owner)
{
    struct loan *loan = owner;

    for (int64_t i = 0; i < loan->count; i++) {
        Py_XDECREF(loan->kept[i]);
    }
    if (loan->view.obj != NULL) {
        PyBuffer_Release(&loan->view);
    }
    PyMem_Free(loan);
}

/* NULL with an error set. */
static struct loan *
loan_new(int ndim, const int64_t *shape)
{
    size_t each = sizeof(PyObject *) + sizeof(struct paml_string), count = 1, size;
    size_t head = sizeof(struct loan) + (size_t)ndim * sizeof(int64_t);
    struct loan *loan = NULL;

    for (int i = 0; i < ndim; i++) {
        if (__builtin_mul_overflow(count, (size_t)shape[i], &count)) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    if (!__builtin_mul_overflow(count, each, &size) && size < PY_SSIZE_T_MAX - head) {
        loan = PyMem_Calloc(1, head + size);
    }
    if (loan == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    loan->count = (int64_t)count;
    if (ndim > 0) {
        memcpy(loan->shape, shape, (size_t)ndim * sizeof(int64_t));
    }
    loan->elements = (struct paml_string *)((char *)loan + head);
    loan->kept = (PyObject **)(loan->elements + count);
    return loan;
}

/* What one call works with. */
struct reading {
    struct module_state *state;
    const struct input_name *name;
    struct loan *loan;
    int64_t next;  /* element */
    int any_bytes; /* one of them is bytes */
};

static int
refuse_item(const struct reading *reading, PyObject *item)
{
    return paml_input_refuse(PyExc_TypeError, reading->name,
                             "expected str or bytes, or arrays or lists of them, got "
                             "an element that is a %s",
                             Py_TYPE(item)->tp_name);
}

/* Puts the next element. `item` is borrowed. */
static int
read_item(struct reading *reading, PyObject *item)
{
    struct paml_string *element = &reading->loan->elements[reading->next];
    Py_ssize_t size;

    if (item != NULL && PyUnicode_Check(item)) {
        element->data = PyUnicode_AsUTF8AndSize(item, &size);
        if (element->data == NULL) {
            return paml_input_refuse(reading->state->InputError, reading->name,
                                     "a text can't be encoded");
        }
    } else if (item != NULL && PyBytes_Check(item)) {
        element->data = PyBytes_AS_STRING(item);
        size = PyBytes_GET_SIZE(item);
        reading->any_bytes = 1;
    } else {
        return refuse_item(reading, item != NULL ? item : Py_None);
    }
    element->size = (size_t)size;
    reading->loan->kept[reading->next++] = Py_NewRef(item);
    return 0;
}

/* --- lists --- */

static int
is_list(PyObject *object)
{
    return PyList_Check(object) || PyTuple_Check(object);
}

/* The shape that the first items have; -1 with an error set. */
static int
list_shape(const struct reading *reading, PyObject *list, int64_t *shape)
{
    int ndim = 0;

    while (is_list(list)) {
        if (ndim == DEPTH_MOST) {
            return paml_input_refuse(reading->state->InputError, reading->name,
                                     "is nested deeper than %d levels", DEPTH_MOST);
        }
        shape[ndim] = PySequence_Fast_GET_SIZE(list);
        if (shape[ndim++] == 0) {
            break;
        }
        list = PySequence_Fast_GET_ITEM(list, 0);
    }
    return ndim;
}

/* Nothing here runs Python code, so the lists stay as they are. */
static int
read_list(struct reading *reading, PyObject *list, int ndim, const int64_t *shape)
{
    if (ndim == 0) {
        return read_item(reading, list);
    }
    if (!is_list(list)) {
        return refuse_item(reading, list);
    }
    if (PySequence_Fast_GET_SIZE(list) != shape[0]) {
        return paml_input_refuse(reading->state->InputError, reading->name,
                                 "lists of one depth differ in length: %lld and %zd",
                                 (long long)shape[0], PySequence_Fast_GET_SIZE(list));
    }
    for (int64_t i = 0; i < shape[0]; i++) {
        if (read_list(reading, PySequence_Fast_GET_ITEM(list, i), ndim - 1, shape + 1) <
            0) {
            return -1;
        }
    }
    return 0;
}

/* --- arrays --- */

int
paml_strings_are_format(const char *format)
{
    size_t length = format != NULL ? strlen(format) : 0;

    return length > 0 && (format[length - 1] == 'O' || format[length - 1] == 's' ||
                          format[length - 1] == 'w');
}

/* Element of dtype S: its bytes stay where they are, without the zeros at the end. */
static void
read_fixed_bytes(struct reading *reading, const char *data, Py_ssize_t size)
{
    struct paml_string *element = &reading->loan->elements[reading->next++];

    while (size > 0 && data[size - 1] == '\0') {
        size--;
    }
    element->data = data;
    element->size = (size_t)size;
    reading->any_bytes = 1;
}

/* Element of dtype U: four bytes a character, in native order. */
static int
read_fixed_text(struct reading *reading, const char *data, Py_ssize_t size)
{
    Py_ssize_t length = size / 4;
    Py_UCS4 last;
    PyObject *text;
    int status;

    for (; length > 0; length--) {
        memcpy(&last, data + 4 * (length - 1), sizeof(last));
        if (last != 0) {
            break;
        }
    }
    text = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, data, length);
    if (text == NULL) {
        return paml_input_refuse(reading->state->InputError, reading->name,
                                 "holds a text that is none");
    }
    status = read_item(reading, text);
    Py_DECREF(text);
    return status;
}

/* All elements of an array along the axes from `axis` on, which begin at `data`. */
static int
read_array(struct reading *reading, const Py_buffer *view, int axis, const char *data)
{
    char kind = view->format[strlen(view->format) - 1];
    PyObject *item;

    if (axis < view->ndim) {
        for (Py_ssize_t i = 0; i < view->shape[axis]; i++) {
            if (read_array(reading, view, axis + 1, data + i * view->strides[axis]) <
                0) {
                return -1;
            }
        }
        return 0;
    }
    if (kind == 's') {
        read_fixed_bytes(reading, data, view->itemsize);
        return 0;
    }
    if (kind == 'w') {
        return read_fixed_text(reading, data, view->itemsize);
    }
    memcpy(&item, data, sizeof(item));
    return read_item(reading, item);
}

/* Takes the view over. */
static struct loan *
read_view(struct reading *reading, Py_buffer *view)
{
    int64_t shape[PyBUF_MAX_NDIM];
    const char *format = view->format;

    if (format[0] == '>' || view->ndim > PyBUF_MAX_NDIM) {
        paml_input_refuse(PyExc_TypeError, reading->name,
                          "expected text in native byte order");
        PyBuffer_Release(view);
        return NULL;
    }
    for (int i = 0; i < view->ndim; i++) {
        shape[i] = view->shape[i];
    }
    reading->loan = loan_new(view->ndim, shape);
    if (reading->loan == NULL) {
        PyBuffer_Release(view);
        return NULL;
    }
    reading->loan->view = *view;
    if (read_array(reading, view, 0, view->buf) < 0) {
        loan_release(reading->loan);
        return NULL;
    }
    return reading->loan;
}

/* Sets *ndim; NULL with an error set. */
static struct loan *
read_object(struct reading *reading, PyObject *object, int *ndim)
{
    int64_t shape[DEPTH_MOST];
    Py_buffer view;
    PyObject *list;
    struct loan *loan;

    if (!is_list(object) && !PyUnicode_Check(object) && !PyBytes_Check(object)) {
        if (PyObject_CheckBuffer(object)) {
            if (PyObject_GetBuffer(object, &view, PyBUF_RECORDS_RO) == 0) {
                *ndim = view.ndim;
                if (paml_strings_are_format(view.format)) {
                    return read_view(reading, &view);
                }
                paml_input_refuse(PyExc_TypeError, reading->name,
                                  "expected str or bytes, or arrays or lists of them, "
                                  "got elements of format '%s'",
                                  view.format != NULL ? view.format : "B");
                PyBuffer_Release(&view);
                return NULL;
            }
            PyErr_Clear(); /* numpy's StringDType lends nothing */
        }
        list = PyObject_CallMethod(object, "tolist", NULL);
        if (list == NULL) {
            paml_input_refuse(PyExc_TypeError, reading->name,
                              "expected str or bytes, or arrays or lists of them, got "
                              "%s",
                              Py_TYPE(object)->tp_name);
            return NULL;
        }
        loan = is_list(list) || PyUnicode_Check(list) || PyBytes_Check(list)
                   ? read_object(reading, list, ndim)
                   : (refuse_item(reading, list), NULL);
        Py_DECREF(list);
        return loan;
    }
    *ndim = list_shape(reading, object, shape);
    if (*ndim < 0) {
        return NULL;
    }
    reading->loan = loan_new(*ndim, shape);
    if (reading->loan != NULL && read_list(reading, object, *ndim, shape) < 0) {
        loan_release(reading->loan);
        return NULL;
    }
    return reading->loan;
}

int
paml_strings_append(struct module_state *state, struct paml_request *request,
                    PyObject *object, uint8_t code, const struct input_name *name)
{
    struct reading reading = {.state = state, .name = name};
    struct paml_value *value;
    struct loan *loan;
    int ndim = 0;

    loan = read_object(&reading, object, &ndim);
    if (loan == NULL) {
        return -1;
    }
    value = paml_request_input(request);
    if (value == NULL) {
        loan_release(loan);
        return -1;
    }
    if (code == 0) {
        code = reading.any_bytes ? PAML_CODE_BYTES : PAML_CODE_TEXT;
    }
    value->kind = PAML_TENSOR;
    value->tensor = (DLTensor){.data = loan->elements,
                               .device = {kDLCPU, 0},
                               .ndim = ndim,
                               .dtype = {code, 8 * sizeof(struct paml_string), 1},
                               .shape = loan->shape};
    value->owner = loan;
    value->release = loan_release;
    return 0;
}
