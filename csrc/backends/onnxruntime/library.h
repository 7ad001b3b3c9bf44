/* ONNX Runtime's C library, opened when first needed: never linked, no header of it.
 *
 * Its functions are reached through a table that only ever grows, so their places in it
 * are the ABI. Those that are used are listed here with their places and types, and
 * copied into `ort` when the library is opened; from then on nothing here changes.
 */
#ifndef PAML_ORT_LIBRARY_H
#define PAML_ORT_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

#include "backend.h"

/* The oldest table that has all that is used: ONNX Runtime 1.16's. */
#define ORT_TABLE_VERSION 16

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorInfo OrtTensorInfo; /* OrtTensorTypeAndShapeInfo */
typedef struct OrtOptionalInfo OrtOptionalInfo;
typedef struct OrtCudaOptions OrtCudaOptions; /* OrtCUDAProviderOptionsV2 */

/* ONNXType */
enum ort_kind {
    ORT_KIND_TENSOR = 1,
    ORT_KIND_SEQUENCE,
    ORT_KIND_MAP,
    ORT_KIND_OPAQUE,
    ORT_KIND_SPARSE,
    ORT_KIND_OPTIONAL,
};

/* OrtErrorCode, as far as it matters. */
enum { ORT_INVALID_ARGUMENT = 2 };

/* OrtLoggingLevel */
enum { ORT_LOG_INFO = 1, ORT_LOG_WARNING, ORT_LOG_ERROR, ORT_LOG_FATAL };

typedef void (*ort_log_function)(void *param, int level, const char *category,
                                 const char *id, const char *location,
                                 const char *message);

/* X(place, returned, name, parameters). A status is NULL where all went well. */
#define ORT_FUNCTIONS(X)                                                               \
    X(1, int, GetErrorCode, (const OrtStatus *))                                       \
    X(2, const char *, GetErrorMessage, (const OrtStatus *))                           \
    X(4, OrtStatus *, CreateEnvWithCustomLogger,                                       \
      (ort_log_function, void *param, int level, const char *id, OrtEnv **))           \
    X(6, OrtStatus *, DisableTelemetryEvents, (const OrtEnv *))                        \
    X(7, OrtStatus *, CreateSession,                                                   \
      (const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **))    \
    X(9, OrtStatus *, Run,                                                             \
      (OrtSession *, const OrtRunOptions *, const char *const *input_names,            \
       const OrtValue *const *inputs, size_t n_inputs,                                 \
       const char *const *output_names, size_t n_outputs, OrtValue **outputs))         \
    X(10, OrtStatus *, CreateSessionOptions, (OrtSessionOptions **))                   \
    X(11, OrtStatus *, SetOptimizedModelFilePath,                                      \
      (OrtSessionOptions *, const char *path))                                         \
    X(16, OrtStatus *, EnableMemPattern, (OrtSessionOptions *))                        \
    X(17, OrtStatus *, DisableMemPattern, (OrtSessionOptions *))                       \
    X(18, OrtStatus *, EnableCpuMemArena, (OrtSessionOptions *))                       \
    X(19, OrtStatus *, DisableCpuMemArena, (OrtSessionOptions *))                      \
    X(23, OrtStatus *, SetSessionGraphOptimizationLevel, (OrtSessionOptions *, int))   \
    X(24, OrtStatus *, SetIntraOpNumThreads, (OrtSessionOptions *, int))               \
    X(25, OrtStatus *, SetInterOpNumThreads, (OrtSessionOptions *, int))               \
    X(30, OrtStatus *, SessionGetInputCount, (const OrtSession *, size_t *))           \
    X(31, OrtStatus *, SessionGetOutputCount, (const OrtSession *, size_t *))          \
    X(32, OrtStatus *, SessionGetOverridableInitializerCount,                          \
      (const OrtSession *, size_t *))                                                  \
    X(33, OrtStatus *, SessionGetInputTypeInfo,                                        \
      (const OrtSession *, size_t index, OrtTypeInfo **))                              \
    X(34, OrtStatus *, SessionGetOutputTypeInfo,                                       \
      (const OrtSession *, size_t index, OrtTypeInfo **))                              \
    X(35, OrtStatus *, SessionGetOverridableInitializerTypeInfo,                       \
      (const OrtSession *, size_t index, OrtTypeInfo **))                              \
    X(36, OrtStatus *, SessionGetInputName,                                            \
      (const OrtSession *, size_t index, OrtAllocator *, char **))                     \
    X(37, OrtStatus *, SessionGetOutputName,                                           \
      (const OrtSession *, size_t index, OrtAllocator *, char **))                     \
    X(38, OrtStatus *, SessionGetOverridableInitializerName,                           \
      (const OrtSession *, size_t index, OrtAllocator *, char **))                     \
    X(39, OrtStatus *, CreateRunOptions, (OrtRunOptions **))                           \
    X(46, OrtStatus *, RunOptionsSetTerminate, (OrtRunOptions *))                      \
    X(47, OrtStatus *, RunOptionsUnsetTerminate, (OrtRunOptions *))                    \
    X(48, OrtStatus *, CreateTensorAsOrtValue,                                         \
      (OrtAllocator *, const int64_t *shape, size_t ndim, int type, OrtValue **))      \
    X(49, OrtStatus *, CreateTensorWithDataAsOrtValue,                                 \
      (const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,          \
       size_t ndim, int type, OrtValue **))                                            \
    X(51, OrtStatus *, GetTensorMutableData, (OrtValue *, void **))                    \
    X(53, OrtStatus *, GetStringTensorDataLength, (const OrtValue *, size_t *))        \
    X(54, OrtStatus *, GetStringTensorContent,                                         \
      (const OrtValue *, void *data, size_t bytes, size_t *offsets, size_t n))         \
    X(55, OrtStatus *, CastTypeInfoToTensorInfo,                                       \
      (const OrtTypeInfo *, const OrtTensorInfo **))                                   \
    X(56, OrtStatus *, GetOnnxTypeFromTypeInfo, (const OrtTypeInfo *, int *))          \
    X(60, OrtStatus *, GetTensorElementType, (const OrtTensorInfo *, int *))           \
    X(61, OrtStatus *, GetDimensionsCount, (const OrtTensorInfo *, size_t *))          \
    X(62, OrtStatus *, GetDimensions, (const OrtTensorInfo *, int64_t *, size_t))      \
    X(63, OrtStatus *, GetSymbolicDimensions,                                          \
      (const OrtTensorInfo *, const char **names, size_t n))                           \
    X(65, OrtStatus *, GetTensorTypeAndShape, (const OrtValue *, OrtTensorInfo **))    \
    X(67, OrtStatus *, GetValueType, (const OrtValue *, int *))                        \
    X(68, OrtStatus *, CreateMemoryInfo,                                               \
      (const char *name, int allocator, int id, int memory, OrtMemoryInfo **))         \
    X(69, OrtStatus *, CreateCpuMemoryInfo,                                            \
      (int allocator, int memory, OrtMemoryInfo **))                                   \
    X(76, OrtStatus *, AllocatorFree, (OrtAllocator *, void *))                        \
    X(78, OrtStatus *, GetAllocatorWithDefaultOptions, (OrtAllocator **))              \
    X(80, OrtStatus *, GetValue,                                                       \
      (const OrtValue *, int index, OrtAllocator *, OrtValue **))                      \
    X(81, OrtStatus *, GetValueCount, (const OrtValue *, size_t *))                    \
    X(93, void, ReleaseStatus, (OrtStatus *))                                          \
    X(94, void, ReleaseMemoryInfo, (OrtMemoryInfo *))                                  \
    X(95, void, ReleaseSession, (OrtSession *))                                        \
    X(96, void, ReleaseValue, (OrtValue *))                                            \
    X(97, void, ReleaseRunOptions, (OrtRunOptions *))                                  \
    X(98, void, ReleaseTypeInfo, (OrtTypeInfo *))                                      \
    X(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorInfo *))                      \
    X(100, void, ReleaseSessionOptions, (OrtSessionOptions *))                         \
    X(125, OrtStatus *, GetAvailableProviders, (char ***, int *))                      \
    X(126, OrtStatus *, ReleaseAvailableProviders, (char **, int))                     \
    X(130, OrtStatus *, AddSessionConfigEntry,                                         \
      (OrtSessionOptions *, const char *key, const char *value))                       \
    X(192, OrtStatus *, HasValue, (const OrtValue *, int *))                           \
    X(204, OrtStatus *, SessionOptionsAppendExecutionProvider_CUDA_V2,                 \
      (OrtSessionOptions *, const OrtCudaOptions *))                                   \
    X(205, OrtStatus *, CreateCUDAProviderOptions, (OrtCudaOptions **))                \
    X(206, OrtStatus *, UpdateCUDAProviderOptions,                                     \
      (OrtCudaOptions *, const char *const *keys, const char *const *values,           \
       size_t n))                                                                      \
    X(208, void, ReleaseCUDAProviderOptions, (OrtCudaOptions *))                       \
    X(216, OrtStatus *, SessionOptionsAppendExecutionProvider,                         \
      (OrtSessionOptions *, const char *name, const char *const *keys,                 \
       const char *const *values, size_t n))                                           \
    X(250, OrtStatus *, CastTypeInfoToOptionalTypeInfo,                                \
      (const OrtTypeInfo *, const OrtOptionalInfo **))                                 \
    X(251, OrtStatus *, GetOptionalContainedTypeInfo,                                  \
      (const OrtOptionalInfo *, OrtTypeInfo **))                                       \
    X(252, OrtStatus *, GetResizedStringTensorElementBuffer,                           \
      (OrtValue *, size_t index, size_t bytes, char **))

#define ORT_DECLARE(place, returned, name, parameters) returned(*name) parameters;

struct ort_library {
    ORT_FUNCTIONS(ORT_DECLARE)
    OrtEnv *env;
    OrtMemoryInfo *host;     /* CPU memory */
    OrtAllocator *allocator; /* the library's default one; never freed */
    const char *version;     /* "1.32.0" */
};

extern struct ort_library ort;

/* Opens the library, once in a process. `debug`: its log goes to stderr, else nowhere.
   Returns 0, or PAML_ERR_LOAD with what is wrong.
   Thread: any, one at a time. GIL: not needed. */
int ort_library_open(const char *path, int debug, struct paml_error *err);

/* The names of the execution providers it was built with, "A, B", written to text. */
const char *ort_providers(char *text, size_t size);
int ort_has_provider(const char *name);

#endif
