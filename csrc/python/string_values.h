/* Tensors of strings (engine/string_tensor.h) from Python objects and back.
 *
 * Thread: any, GIL held.
 */
#ifndef PAML_STRING_VALUES_H
#define PAML_STRING_VALUES_H

#include "values.h"

/* Appends a tensor of strings: of a str or bytes (rank 0), of lists or tuples of them,
   nested to any shape, or of an array of dtype object, U, S or anything with tolist().
   `code`: PAML_CODE_TEXT or PAML_CODE_BYTES; 0: bytes if one of them is bytes. -1 with
   TypeError or InputError set, naming the input. */
int paml_strings_append(struct module_state *state, struct paml_request *request,
                        PyObject *object, uint8_t code, const struct input_name *name);

/* Whether the buffer protocol's format is one of those arrays'. */
int paml_strings_are_format(const char *format);

/* The tensor as an object array of str or bytes; as nested lists where `numpy` is None.
   A new reference, or NULL. */
PyObject *paml_strings_to_object(PyObject *numpy, const DLTensor *tensor);

#endif
