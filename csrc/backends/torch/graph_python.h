/* From Python objects to a graph; the one place of the shim that reads them. */
#ifndef PAML_TORCH_GRAPH_PYTHON_H
#define PAML_TORCH_GRAPH_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace pyasyncml {

/* graph(description, keep) -> capsule: see pyasyncml/export/_describe.py for what is in
   a description. The capsule is the `options` of a torch model. It keeps `keep` alive
   until the last program made from it has ended: tensors whose Python objects are gone
   would otherwise be dropped by a worker, which may need the GIL for it.
   Thread: any. GIL: held. */
PyObject *graph_from_python(PyObject *module, PyObject *args);

/* with_weights(capsule, tensors, keep) -> capsule: the same graph over other tensors.
   Thread: any. GIL: held. */
PyObject *graph_with_weights(PyObject *module, PyObject *args);

extern const char graph_from_python_doc[], graph_with_weights_doc[];

} // namespace pyasyncml
#endif
