/* Sessions and their options. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "status.h"

static OrtStatus *
set_common(OrtSessionOptions *options, int threads)
{
    OrtStatus *status = ort.SetIntraOpNumThreads(options, threads > 0 ? threads : 1);

    if (status == NULL) {
        status = ort.SetInterOpNumThreads(options, 1);
    }
    /* Threads that wait must not burn the processors that others' models need. */
    if (status == NULL) {
        status =
            ort.AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0");
    }
    return status;
}

/* The program's settings; they come after ours, and so prevail. */
static OrtStatus *
set_what_was_said(OrtSessionOptions *options, const struct ort_program *program)
{
    const struct ort_settings *settings = program->settings;
    const struct ort_setting *item;
    OrtStatus *status = NULL;
    size_t from = 0;

    if (settings->graph_optimization_level >= 0) {
        status = ort.SetSessionGraphOptimizationLevel(
            options, settings->graph_optimization_level);
    }
    if (status == NULL && settings->mem_pattern >= 0) {
        status = settings->mem_pattern ? ort.EnableMemPattern(options)
                                       : ort.DisableMemPattern(options);
    }
    if (status == NULL && settings->cpu_mem_arena >= 0) {
        status = settings->cpu_mem_arena ? ort.EnableCpuMemArena(options)
                                         : ort.DisableCpuMemArena(options);
    }
    while (status == NULL &&
           (item = ort_settings_find(settings, ORT_SET_CONFIG, &from)) != NULL) {
        status = ort.AddSessionConfigEntry(options, item->name, item->value);
    }
    /* By the first session alone: others may be made at the same time. */
    from = 0;
    item = ort_settings_find(settings, ORT_SET_OPTIMIZED, &from);
    if (status == NULL && item != NULL && program->session == NULL) {
        status = ort.SetOptimizedModelFilePath(options, item->name);
    }
    return status;
}

static int
append_cuda(OrtSessionOptions *options, const char *const *keys,
            const char *const *values, size_t count, struct paml_error *err)
{
    OrtCudaOptions *cuda = NULL;
    OrtStatus *status = ort.CreateCUDAProviderOptions(&cuda);

    if (status == NULL) {
        status = ort.UpdateCUDAProviderOptions(cuda, keys, values, count);
    }
    if (status == NULL) {
        status = ort.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda);
    }
    if (cuda != NULL) {
        ort.ReleaseCUDAProviderOptions(cuda);
    }
    return status == NULL ? PAML_OK : ort_fail(status, PAML_ERR_LOAD, err);
}

#define CPU_PROVIDER "CPUExecutionProvider"
#define CUDA_PROVIDER "CUDAExecutionProvider"

static int
append_cuda_device(OrtSessionOptions *options, int index, struct paml_error *err)
{
    const char *key = "device_id", *value;
    char text[16];

    snprintf(text, sizeof(text), "%d", index);
    value = text;
    return append_cuda(options, &key, &value, 1, err);
}

/* What SessionOptionsAppendExecutionProvider() calls a provider: most are known there
   by what comes before "ExecutionProvider", as it is spelt. */
static const char *
short_name(const char *provider, char *text, size_t size)
{
    static const char *const spelt[][2] = {{"Azure", "AZURE"}, {"Xnnpack", "XNNPACK"}};
    const char *end = strstr(provider, "ExecutionProvider");

    snprintf(text, size, "%.*s",
             end != NULL ? (int)(end - provider) : (int)strlen(provider), provider);
    for (size_t i = 0; i < sizeof(spelt) / sizeof(spelt[0]); i++) {
        if (strcmp(text, spelt[i][0]) == 0) {
            return spelt[i][1];
        }
    }
    return text;
}

/* Appends a provider by its name and the options that stand after it. */
static int
append_named(OrtSessionOptions *options, const struct ort_settings *settings,
             const struct ort_setting *provider, struct paml_error *err)
{
    size_t first = (size_t)(provider - settings->items) + 1, count = 0;
    const char **keys, **values;
    char text[512];
    int code = PAML_OK;

    if (!ort_has_provider(provider->name)) {
        return paml_fail(err, PAML_ERR_LOAD,
                         "options: providers: ONNX Runtime %s here has no '%s'; it has "
                         "%s",
                         ort.version, provider->name,
                         ort_providers(text, sizeof(text)));
    }
    if (strcmp(provider->name, CPU_PROVIDER) == 0) {
        return PAML_OK; /* it is there, and the last, whatever is said */
    }
    while (first + count < settings->count &&
           settings->items[first + count].kind == ORT_SET_PROVIDER_OPTION) {
        count++;
    }
    keys = calloc(2 * count + 1, sizeof(*keys));
    if (keys == NULL) {
        return paml_fail(err, PAML_ERR_MEMORY, "no memory for a session's options");
    }
    values = keys + count;
    for (size_t i = 0; i < count; i++) {
        keys[i] = settings->items[first + i].name;
        values[i] = settings->items[first + i].value;
    }
    if (strcmp(provider->name, CUDA_PROVIDER) == 0) {
        code = append_cuda(options, keys, values, count, err);
    } else {
        OrtStatus *status = ort.SessionOptionsAppendExecutionProvider(
            options, short_name(provider->name, text, sizeof(text)), keys, values,
            count);

        code = status == NULL ? PAML_OK : ort_fail(status, PAML_ERR_LOAD, err);
    }
    free(keys);
    return code;
}

static int
append_device(OrtSessionOptions *options, DLDevice device, struct paml_error *err)
{
    char name[32], providers[512];

    if (device.device_type == kDLCPU) {
        return PAML_OK;
    }
    if (device.device_type == kDLCUDA && ort_has_provider(CUDA_PROVIDER)) {
        return append_cuda_device(options, device.device_id, err);
    }
    return paml_fail(
        err, PAML_ERR_LOAD, "device='%s:%d': ONNX Runtime %s here runs on %s%s",
        device.device_type == kDLCUDA    ? "cuda"
        : device.device_type == kDLROCM  ? "rocm"
        : device.device_type == kDLMetal ? "mps"
        : device.device_type == kDLOneAPI
            ? "xpu"
            : (snprintf(name, sizeof(name), "type%d", (int)device.device_type), name),
        (int)device.device_id, ort.version, ort_providers(providers, sizeof(providers)),
        device.device_type == kDLCUDA
            ? "; for CUDA: pip install onnxruntime-gpu"
            : "; of devices, the CPU and CUDA can be asked for");
}

/* The providers that were named, in order, else the device's. */
static int
append_providers(OrtSessionOptions *options, const struct ort_settings *settings,
                 DLDevice device, struct paml_error *err)
{
    size_t from = 0;
    const struct ort_setting *provider =
        ort_settings_find(settings, ORT_SET_PROVIDER, &from);
    int code = PAML_OK;

    if (provider == NULL) {
        return append_device(options, device, err);
    }
    while (provider != NULL && code == PAML_OK) {
        code = append_named(options, settings, provider, err);
        provider = ort_settings_find(settings, ORT_SET_PROVIDER, &from);
    }
    return code;
}

/* ONNX Runtime names the file in some of its messages only. */
static int
name_file(const char *path, int code, struct paml_error *err)
{
    char message[PAML_MESSAGE_SIZE];

    if (code != PAML_OK && strstr(err->message, path) == NULL) {
        memcpy(message, err->message, sizeof(message));
        paml_fail(err, code, "%s: %.*s", path,
                  (int)(sizeof(message) - 1 - strnlen(path, sizeof(message) / 2)),
                  message);
    }
    return code;
}

/* Thread: worker. GIL: not held. Locks: none. */
int
ort_session_new(const struct ort_program *program, DLDevice device, int threads,
                OrtSession **session, struct paml_error *err)
{
    const char *path = program->path;
    OrtSessionOptions *options = NULL;
    OrtStatus *status = ort.CreateSessionOptions(&options);
    int code = PAML_OK;

    if (status == NULL) {
        status = set_common(options, threads);
    }
    if (status == NULL && program->settings != NULL) {
        status = set_what_was_said(options, program);
    }
    if (status == NULL) {
        code = append_providers(options, program->settings, device, err);
        if (code == PAML_OK) {
            status = ort.CreateSession(ort.env, path, options, session);
        }
    }
    if (options != NULL) {
        ort.ReleaseSessionOptions(options);
    }
    if (status != NULL) {
        code = ort_fail(status, PAML_ERR_LOAD, err);
    }
    return name_file(path, code, err);
}
