/* TensorFlow's C library, found in the user's installed wheel and loaded when it is
 * first needed. No header of TensorFlow is used: these prototypes are the project's
 * own, of the part of its C interface that hasn't changed since 2.4.
 *
 * Thread: `paml_tf_open` is called with the module's lock; `tf` is read-only
 * afterwards, and never changes or goes.
 */
#ifndef PAML_TF_LIBRARY_H
#define PAML_TF_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* TensorFlow's own names for its own types: what they hold is its secret. */
typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_Graph TF_Graph;
typedef struct TF_Operation TF_Operation;
typedef struct TF_Session TF_Session;
typedef struct TF_SessionOptions TF_SessionOptions;
typedef struct TF_DeviceList TF_DeviceList;

typedef struct {
    TF_Operation *operation;
    int index;
} TF_Output;

typedef struct {
    const void *data;
    size_t length;
    void (*deallocator)(void *data, size_t length);
} TF_Buffer;

/* A string as tensors hold it. 24 bytes, whatever is in them. */
typedef struct {
    uint64_t words[3];
} TF_TString;

/* TF_Code, as far as anything is done about it. */
enum {
    TF_OK = 0,
    TF_CANCELLED = 1,
    TF_INVALID_ARGUMENT = 3,
    TF_RESOURCE_EXHAUSTED = 8,
};

/* F(result, name, parameters) for every function that is used. */
#define PAML_TF_FUNCTIONS(F)                                                           \
    F(const char *, Version, (void))                                                   \
    F(TF_Status *, NewStatus, (void))                                                  \
    F(void, DeleteStatus, (TF_Status *))                                               \
    F(int, GetCode, (const TF_Status *))                                               \
    F(const char *, Message, (const TF_Status *))                                      \
    F(void, DeleteBuffer, (TF_Buffer *))                                               \
    F(TF_Buffer *, GetAllOpList, (void))                                               \
    F(TF_Tensor *, NewTensor,                                                          \
      (int dtype, const int64_t *shape, int rank, void *data, size_t size,             \
       void (*release)(void *data, size_t size, void *argument), void *argument))      \
    F(void, DeleteTensor, (TF_Tensor *))                                               \
    F(TF_Tensor *, TensorMaybeMove, (TF_Tensor *))                                     \
    F(int, TensorType, (const TF_Tensor *))                                            \
    F(int, NumDims, (const TF_Tensor *))                                               \
    F(int64_t, Dim, (const TF_Tensor *, int))                                          \
    F(void *, TensorData, (const TF_Tensor *))                                         \
    F(size_t, TensorByteSize, (const TF_Tensor *))                                     \
    F(void, StringInit, (TF_TString *))                                                \
    F(void, StringCopy, (TF_TString *, const char *, size_t))                          \
    F(const char *, StringGetDataPointer, (const TF_TString *))                        \
    F(size_t, StringGetSize, (const TF_TString *))                                     \
    F(void, StringDealloc, (TF_TString *))                                             \
    F(TF_Graph *, NewGraph, (void))                                                    \
    F(void, DeleteGraph, (TF_Graph *))                                                 \
    F(TF_Operation *, GraphOperationByName, (TF_Graph *, const char *))                \
    F(int, OperationNumOutputs, (TF_Operation *))                                      \
    F(int, OperationOutputType, (TF_Output))                                           \
    F(TF_SessionOptions *, NewSessionOptions, (void))                                  \
    F(void, DeleteSessionOptions, (TF_SessionOptions *))                               \
    F(void, SetConfig, (TF_SessionOptions *, const void *, size_t, TF_Status *))       \
    F(TF_Session *, LoadSessionFromSavedModel,                                         \
      (const TF_SessionOptions *, const TF_Buffer *run_options, const char *folder,    \
       const char *const *tags, int n_tags, TF_Graph *, TF_Buffer *meta_graph,         \
       TF_Status *))                                                                   \
    F(void, CloseSession, (TF_Session *, TF_Status *))                                 \
    F(void, DeleteSession, (TF_Session *, TF_Status *))                                \
    F(void, SessionRun,                                                                \
      (TF_Session *, const TF_Buffer *run_options, const TF_Output *inputs,            \
       TF_Tensor *const *input_values, int n_inputs, const TF_Output *outputs,         \
       TF_Tensor **output_values, int n_outputs, const TF_Operation *const *targets,   \
       int n_targets, TF_Buffer *run_metadata, TF_Status *))                           \
    F(TF_DeviceList *, SessionListDevices, (TF_Session *, TF_Status *))                \
    F(void, DeleteDeviceList, (TF_DeviceList *))                                       \
    F(int, DeviceListCount, (const TF_DeviceList *))                                   \
    F(const char *, DeviceListName, (const TF_DeviceList *, int, TF_Status *))         \
    F(const char *, DeviceListType, (const TF_DeviceList *, int, TF_Status *))

struct paml_tf_functions {
#define PAML_TF_MEMBER(result, name, parameters) result(*name) parameters;
    PAML_TF_FUNCTIONS(PAML_TF_MEMBER)
#undef PAML_TF_MEMBER
};

extern struct paml_tf_functions tf;

/* Loads the library at `path`, and before it the one it needs, at `framework` (or
   NULL). Once they are there, does nothing. PAML_OK or PAML_ERR_LOAD. */
int paml_tf_open(const char *path, const char *framework, struct paml_error *err);

#endif
