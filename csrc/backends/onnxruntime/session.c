/* Sessions and their options. */
#include <stdio.h>
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

static int
append_cuda(OrtSessionOptions *options, int index, struct paml_error *err)
{
    OrtCudaOptions *cuda = NULL;
    const char *key = "device_id", *value;
    char text[16];
    OrtStatus *status = ort.CreateCUDAProviderOptions(&cuda);

    snprintf(text, sizeof(text), "%d", index);
    value = text;
    if (status == NULL) {
        status = ort.UpdateCUDAProviderOptions(cuda, &key, &value, 1);
    }
    if (status == NULL) {
        status = ort.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda);
    }
    if (cuda != NULL) {
        ort.ReleaseCUDAProviderOptions(cuda);
    }
    return status == NULL ? PAML_OK : ort_fail(status, PAML_ERR_LOAD, err);
}

static int
append_provider(OrtSessionOptions *options, DLDevice device, struct paml_error *err)
{
    char name[32], providers[512];

    if (device.device_type == kDLCPU) {
        return PAML_OK;
    }
    if (device.device_type == kDLCUDA && ort_has_provider("CUDAExecutionProvider")) {
        return append_cuda(options, device.device_id, err);
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
ort_session_new(const char *path, DLDevice device, int threads, OrtSession **session,
                struct paml_error *err)
{
    OrtSessionOptions *options = NULL;
    OrtStatus *status = ort.CreateSessionOptions(&options);
    int code = PAML_OK;

    if (status == NULL) {
        status = set_common(options, threads);
    }
    if (status == NULL) {
        code = append_provider(options, device, err);
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
