/* The callbacks of a Future: kept, added and removed.
 *
 * Every comparison here, and every reference dropped, may come back into the same
 * future: from an __eq__, or from the destructor of a callback or of a context
 * (cpython#125966, #125984 and #126083 tell of each). So what leaves the container is
 * moved out of it before it is dropped, and a loop over what stays goes by serial
 * number, which tells what is still there.
 *
 * Thread: loop. GIL: held. Locks: none.
 */
#include "future_internal.h"

#include <string.h>

/* --- the container --- */

static int
callbacks_append(FutureObj *self, PyObject *function, PyObject *context)
{
    struct future_callbacks *callbacks = &self->callbacks;
    struct future_callback *slot;

    if (!callbacks_exist(self)) {
        slot = &callbacks->first;
    } else {
        if (callbacks->count == callbacks->room) {
            size_t room = callbacks->room == 0 ? 4 : 2 * callbacks->room;
            void *rest = PyMem_Realloc(callbacks->rest, room * sizeof(*slot));
            if (rest == NULL) {
                PyErr_NoMemory();
                return -1;
            }
            callbacks->rest = rest;
            callbacks->room = room;
        }
        slot = &callbacks->rest[callbacks->count++];
    }
    Py_INCREF(function);
    Py_INCREF(context);
    slot->function = function;
    slot->context = context;
    slot->serial = self->next_serial++;
    return 0;
}

void
paml_callbacks_take(FutureObj *self, struct future_callbacks *taken)
{
    *taken = self->callbacks;
    memset(&self->callbacks, 0, sizeof(self->callbacks));
}

void
paml_callbacks_free(struct future_callbacks *taken)
{
    Py_CLEAR(taken->first.function);
    Py_CLEAR(taken->first.context);
    for (size_t i = 0; i < taken->count; i++) {
        Py_CLEAR(taken->rest[i].function);
        Py_CLEAR(taken->rest[i].context);
    }
    PyMem_Free(taken->rest);
}

int
paml_future_visit_callbacks(FutureObj *self, visitproc visit, void *arg)
{
    Py_VISIT(self->callbacks.first.function);
    Py_VISIT(self->callbacks.first.context);
    for (size_t i = 0; i < self->callbacks.count; i++) {
        Py_VISIT(self->callbacks.rest[i].function);
        Py_VISIT(self->callbacks.rest[i].context);
    }
    return 0;
}

static int
list_append_callback(PyObject *list, const struct future_callback *callback)
{
    /* Before 3.12 making a tuple may run the collector, and thus anything. */
    PyObject *function = callback->function, *context = callback->context, *pair;
    int err;

    Py_INCREF(function);
    Py_INCREF(context);
    pair = PyTuple_Pack(2, function, context);
    Py_DECREF(function);
    Py_DECREF(context);
    if (pair == NULL) {
        return -1;
    }
    err = PyList_Append(list, pair);
    Py_DECREF(pair);
    return err;
}

PyObject *
paml_future_list_callbacks(FutureObj *self)
{
    PyObject *list;

    /* Once settled, they are the loop's, or as good as. */
    if (self->status != FUTURE_PENDING || !callbacks_exist(self)) {
        Py_RETURN_NONE;
    }
    list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    if (self->callbacks.first.function != NULL &&
        list_append_callback(list, &self->callbacks.first) < 0) {
        goto fail;
    }
    for (size_t i = 0; i < self->callbacks.count; i++) {
        if (list_append_callback(list, &self->callbacks.rest[i]) < 0) {
            goto fail;
        }
    }
    return list;

fail:
    Py_DECREF(list);
    return NULL;
}

/* --- the methods --- */

static PyObject *
add_callback(FutureObj *self, PyObject *function, PyObject *context)
{
    if (!future_is_alive(self)) {
        PyErr_SetString(PyExc_RuntimeError, "uninitialized Future object");
        return NULL;
    }
    /* Callbacks of a settled future: its hub has yet to run them, and asyncio would
       run this one after them. */
    if (self->status == FUTURE_PENDING || callbacks_exist(self)) {
        if (callbacks_append(self, function, context) < 0) {
            return NULL;
        }
    } else {
        struct module_state *state = paml_state_of_type(Py_TYPE(self));
        int err;
        if (state == NULL) {
            return NULL;
        }
        Py_INCREF(context);
        err = paml_future_call_soon(state, self, function, context);
        Py_DECREF(context);
        if (err < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* For calls that are not of the usual form: CPython's own parser accepts them, or
   words the complaint. Borrowed references, which the caller's frame keeps alive;
   `*context` stays as it is if not given. */
static int
parse_unusual_add(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                  PyObject **function, PyObject **context)
{
    static char *names[] = {"", "context", NULL};
    PyObject *positional, *keywords;
    int parsed;

    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError,
                     "add_done_callback() takes exactly 1 positional argument (%zd "
                     "given)",
                     nargs);
        return -1;
    }
    if (paml_pack_call(args, nargs, kwnames, &positional, &keywords) < 0) {
        return -1;
    }
    parsed = PyArg_ParseTupleAndKeywords(positional, keywords, "O|$O:add_done_callback",
                                         names, function, context);
    Py_DECREF(positional);
    Py_DECREF(keywords);
    return parsed ? 0 : -1;
}

PyObject *
paml_future_add_done_callback(FutureObj *self, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    PyObject *function = NULL, *context = NULL, *result;
    Py_ssize_t keywords = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    if (nargs == 1 && keywords == 0) {
        function = args[0];
    } else {
        struct module_state *state = paml_state_of_type(Py_TYPE(self));
        if (state == NULL) {
            return NULL;
        }
        /* By value: asyncio's own tuple of names holds a string of its own. */
        if (nargs == 1 && keywords == 1 &&
            PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "context") ==
                0) {
            function = args[0];
            context = args[1];
        } else if (parse_unusual_add(args, nargs, kwnames, &function, &context) < 0) {
            return NULL;
        }
    }
    if (context != NULL) {
        return add_callback(self, function, context);
    }
    context = PyContext_CopyCurrent();
    if (context == NULL) {
        return NULL;
    }
    result = add_callback(self, function, context);
    Py_DECREF(context);
    return result;
}

/* The index in `rest` of the first callback with this serial or a later one; `hint`
   is where it is as long as nobody else removes any. */
static size_t
index_of_serial(const struct future_callbacks *callbacks, uint64_t serial, size_t hint)
{
    size_t i = 0;

    if (hint > 0 && hint <= callbacks->count &&
        callbacks->rest[hint - 1].serial == serial - 1) {
        return hint;
    }
    while (i < callbacks->count && callbacks->rest[i].serial < serial) {
        i++;
    }
    return i;
}

/* Serials of callbacks found equal, ascending. */
struct serials {
    uint64_t *items; /* PyMem */
    size_t count, room;
};

static int
serials_append(struct serials *serials, uint64_t serial)
{
    if (serials->count == serials->room) {
        size_t room = serials->room == 0 ? 16 : 2 * serials->room;
        void *items = PyMem_Realloc(serials->items, room * sizeof(*serials->items));
        if (items == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        serials->items = items;
        serials->room = room;
    }
    serials->items[serials->count++] = serial;
    return 0;
}

/* Compares function with those in `rest` whose serial is below `end`, and that are
   still there when their turn comes. */
static int
find_equal(FutureObj *self, PyObject *function, uint64_t end, struct serials *found)
{
    uint64_t serial = 0;
    size_t i = 0;

    for (;;) {
        PyObject *candidate;
        int equal;

        i = index_of_serial(&self->callbacks, serial, i);
        if (i == self->callbacks.count || self->callbacks.rest[i].serial >= end) {
            return 0;
        }
        serial = self->callbacks.rest[i].serial;
        candidate = self->callbacks.rest[i].function;
        Py_INCREF(candidate);
        equal = PyObject_RichCompareBool(candidate, function, Py_EQ);
        Py_DECREF(candidate);
        if (equal < 0 || (equal && serials_append(found, serial) < 0)) {
            return -1;
        }
        serial++;
        i++;
    }
}

/* Removes from `rest` what was found, as far as it is still there. Nothing is called
   until the container is whole again. Returns how many there were; -1 on error. */
static Py_ssize_t
remove_found(FutureObj *self, const struct serials *found)
{
    struct future_callbacks *callbacks = &self->callbacks;
    struct future_callback *removed = NULL;
    size_t kept = 0, next = 0, count = 0;

    if (found->count == 0) {
        return 0;
    }
    removed = PyMem_Malloc(found->count * sizeof(*removed));
    if (removed == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < callbacks->count; i++) {
        uint64_t serial = callbacks->rest[i].serial;
        while (next < found->count && found->items[next] < serial) {
            next++;
        }
        if (next < found->count && found->items[next] == serial) {
            removed[count++] = callbacks->rest[i];
        } else {
            callbacks->rest[kept++] = callbacks->rest[i];
        }
    }
    callbacks->count = kept;
    for (size_t i = 0; i < count; i++) {
        Py_DECREF(removed[i].function);
        Py_DECREF(removed[i].context);
    }
    PyMem_Free(removed);
    return (Py_ssize_t)count;
}

PyObject *
paml_future_remove_done_callback(FutureObj *self, PyObject *function)
{
    struct serials found = {NULL, 0, 0};
    uint64_t end = self->next_serial; /* what is added meanwhile is not compared */
    Py_ssize_t removed = 0, removed_rest;

    if (future_ensure_alive(self) < 0) {
        return NULL;
    }
    if (self->status != FUTURE_PENDING) {
        return PyLong_FromLong(0);
    }
    if (self->callbacks.first.function != NULL) {
        struct future_callback first = self->callbacks.first;
        int equal;

        Py_INCREF(first.function);
        equal = PyObject_RichCompareBool(first.function, function, Py_EQ);
        if (equal > 0 && self->callbacks.first.function == first.function &&
            self->callbacks.first.serial == first.serial) {
            memset(&self->callbacks.first, 0, sizeof(first));
            Py_DECREF(first.function);
            Py_DECREF(first.context);
            removed = 1;
        }
        Py_DECREF(first.function);
        if (equal < 0) {
            return NULL;
        }
    }
    if (self->callbacks.count == 0) {
        return PyLong_FromSsize_t(removed);
    }
    removed_rest =
        find_equal(self, function, end, &found) < 0 ? -1 : remove_found(self, &found);
    PyMem_Free(found.items);
    if (removed_rest < 0) {
        return NULL;
    }
    return PyLong_FromSsize_t(removed + removed_rest);
}
