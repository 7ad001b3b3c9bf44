/* What the files of the Future share among themselves: future.c (the type),
 * future_outcome.c, future_callbacks.c, future_dispatch.c, future_attributes.c and
 * future_iter.c.
 */
#ifndef PAML_FUTURE_INTERNAL_H
#define PAML_FUTURE_INTERNAL_H

#include "future.h"

#include <stdint.h>

/* A future made by __new__ alone, or emptied by the garbage collector, has no loop. */
static inline int
future_is_alive(const FutureObj *self)
{
    return self->loop != NULL;
}

/* -1 with RuntimeError where __init__ never ran. */
static inline int
future_ensure_alive(const FutureObj *self)
{
    if (!future_is_alive(self)) {
        PyErr_SetString(PyExc_RuntimeError, "Future object is not initialized.");
        return -1;
    }
    return 0;
}

/* --- future_outcome.c --- */

/* result(): a new reference, or NULL with what asyncio raises. */
PyObject *paml_future_result(FutureObj *self);
/* Converts the outputs of a settled request if nobody did so before: what that raises
   becomes the future's exception. -1 only when the conversion itself, further up the
   stack, asks for its own result. */
int paml_future_convert(FutureObj *self);
/* The error being raised, as one instance with its traceback; clears it. */
PyObject *paml_take_exception(void);
/* The arguments of a vectorcall as a tuple and a dict, for CPython's parser. */
int paml_pack_call(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                   PyObject **positional, PyObject **keywords);
/* Methods. */
PyObject *paml_future_result_method(FutureObj *self, PyObject *ignored);
PyObject *paml_future_exception_method(FutureObj *self, PyObject *ignored);
PyObject *paml_future_set_result_method(FutureObj *self, PyObject *result);
PyObject *paml_future_set_exception_method(FutureObj *self, PyObject *argument);
PyObject *paml_future_cancel_method(FutureObj *self, PyObject *const *args,
                                    Py_ssize_t nargs, PyObject *kwnames);
PyObject *paml_future_make_cancelled_error(FutureObj *self, PyObject *ignored);

/* --- future_callbacks.c --- */

PyObject *paml_future_add_done_callback(FutureObj *self, PyObject *const *args,
                                        Py_ssize_t nargs, PyObject *kwnames);
PyObject *paml_future_remove_done_callback(FutureObj *self, PyObject *function);
/* The value of `_callbacks`: a new list of (callback, context), or None. */
PyObject *paml_future_list_callbacks(FutureObj *self);
static inline int
callbacks_exist(const FutureObj *self)
{
    return self->callbacks.first.function != NULL || self->callbacks.count > 0;
}
/* Moves them out of the future, which then has none. */
void paml_callbacks_take(FutureObj *self, struct future_callbacks *taken);
/* Drops what paml_callbacks_take() gave; entries dropped before are NULL. */
void paml_callbacks_free(struct future_callbacks *taken);
int paml_future_visit_callbacks(FutureObj *self, visitproc visit, void *arg);

/* --- future_dispatch.c --- */

/* loop.call_soon(function, self, context=context) on the loop that the future has at
   this moment. */
int paml_future_call_soon(struct module_state *state, FutureObj *self,
                          PyObject *function, PyObject *context);

/* --- future_attributes.c --- */

extern PyGetSetDef paml_future_getset[];
PyObject *paml_future_repr(FutureObj *self);
/* The name after the last dot, as asyncio prints it. */
const char *paml_short_type_name(PyTypeObject *type);

/* --- future_iter.c --- */

extern PyType_Spec paml_future_iter_spec;
/* __iter__ and __await__. */
PyObject *paml_future_iter(FutureObj *self);

/* --- spelling that differs between the versions of CPython --- */

#if PY_VERSION_HEX < 0x030D0000
#define Py_IsFinalizing _Py_IsFinalizing
#endif

#endif
